"""Writes one file format each, with the graph rewrites that it needs."""
