"""The rules of the fold, one family a file."""
