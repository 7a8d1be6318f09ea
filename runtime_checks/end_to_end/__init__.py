"""Judges the outputs of a target: limits, findings, error budget, task agreement."""
