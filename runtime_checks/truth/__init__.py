"""What should come out, and how exactly: the folded network in NumPy, the noise of arithmetic."""
