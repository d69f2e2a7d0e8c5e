"""A run as one page: what its directory holds, drawn."""
