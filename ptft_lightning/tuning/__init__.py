"""Phase two: which parameters move."""
