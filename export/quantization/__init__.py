"""Chooses integer ranges: calibration, equalization, and the quantizers."""
