"""N-gram language models: baseline of the neural ones, and a judge of text."""
