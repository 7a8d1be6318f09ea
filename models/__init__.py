"""Reference networks and their training recipes on real data."""
