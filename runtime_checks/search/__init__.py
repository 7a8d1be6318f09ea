"""Searches for the input on which the error of a file is largest."""
