"""Phase two: what is predicted."""
