"""One file per format of text files, loaded when a file of it is read."""
