"""TRAIN: normalization layers, their schedules and statistics, conversion, diagnostics."""
