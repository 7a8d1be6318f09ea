"""What is run besides the golden set: the user's own samples, and the worst that a search finds."""
