"""Searches for the input on which a file differs most from the truth."""
