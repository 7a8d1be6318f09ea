"""Exact evaluation of the folded network: values, error bounds, noise, integer arithmetic."""
