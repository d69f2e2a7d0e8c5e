"""Models of other programs: read as ours, written as theirs; what is not the same is refused."""
