"""Inside a file: its weights, every op by itself, the one at fault, and its reproduction."""
