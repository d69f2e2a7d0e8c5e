"""Tokens in, hidden states out; knows no loss, no logger, no strategy."""
