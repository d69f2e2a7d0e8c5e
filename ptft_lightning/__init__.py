"""Pretrain a language model on your own text, then fine-tune it for your own tasks."""

__version__ = "0.1.0"
