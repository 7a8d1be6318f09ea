"""Exported networks with trained-like norms, for the benchmarks of the checks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import renormlite as rl
from renormlite.models.mlperf_tiny import NETWORKS
from scipy.ndimage import gaussian_filter

NAMES = ("image_classification", "keyword_spotting", "visual_wake_words")


def smooth_inputs(shape: Sequence[int], rng: np.random.Generator, count: int) -> np.ndarray:
    """Return noise with correlated neighbours, as in images and spectra."""
    x = rng.normal(size=(count, *shape))
    if len(shape) > 1:
        x = gaussian_filter(x, (0, *[2] * (len(shape) - 1), 0))
    else:
        x = np.cumsum(x, axis=1)
    return np.asarray(x / x.std(), np.float32)


def trained_like(name: str, seed: int) -> tuple[keras.Model, np.ndarray]:
    """Build a network with gammas of both signs and the statistics of its activations."""
    keras.utils.set_random_seed(seed)
    model = NETWORKS[name](lambda: rl.BatchRenormalization(momentum=0.8))
    rng = np.random.default_rng(seed)
    x = smooth_inputs(model.input_shape[1:], rng, 32)
    for layer in model.layers:
        if isinstance(layer, rl.BatchRenormalization):
            sign = np.where(rng.random(layer.gamma.shape) < 0.1, -1.0, 1.0)
            layer.gamma.assign(sign * rng.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(rng.normal(0, 0.3, layer.beta.shape))
    for _ in range(60):
        model(x, training=True)
    return model, x


def export(name: str, seed: int, directory: Path, precisions: Sequence[str]) -> Path:
    """Export a network of that seed and return the directory."""
    model, x = trained_like(name, seed)
    rl.export_model(model, directory, precisions=tuple(precisions), calibration=x, inputs=x[:16])
    return directory
