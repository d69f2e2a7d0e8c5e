"""Phase one: what is predicted."""
