"""Examines the operators of a file one by one: weights, values, rounding, the faulty operator."""
