"""A trained language model put to work: text goes on, masks are filled, texts are scored."""
