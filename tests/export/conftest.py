"""Small networks with non-trivial norms, and one call that exports them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import renormlite as rl
from renormlite.artifacts.manifest import Manifest


def settle(model: keras.Model, seed: int = 0) -> keras.Model:
    """Set the statistics of every norm as after training, with negative and tiny gammas."""
    generator = np.random.default_rng(seed)
    pending = list(model.layers)
    while pending:
        layer = pending.pop()
        pending += getattr(layer, "layers", [])
        if not isinstance(layer, (rl.BatchRenormalization, keras.layers.BatchNormalization)):
            continue
        size = layer.moving_mean.shape
        gamma = generator.uniform(0.5, 2, size)
        gamma[::3] *= -1
        gamma[1::5] = 1e-4
        layer.gamma.assign(gamma)
        layer.beta.assign(generator.normal(0, 0.5, size))
        layer.moving_mean.assign(generator.normal(0, 0.5, size))
        layer.moving_variance.assign(generator.uniform(0.1, 3, size))
    return model


@pytest.fixture
def settled() -> Callable[..., keras.Model]:
    """Return the function that sets a model's norms to statistics as after training."""
    return settle


@pytest.fixture
def small() -> keras.Model:
    """Conv, depthwise and dense blocks with norms: (N, 12, 12, 3) `image` to (N, 5) `scores`."""
    layers = keras.layers
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(image)
    x = layers.ReLU()(rl.BatchRenormalization()(x))
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False, name="depth")(x)
    x = layers.ReLU()(rl.BatchRenormalization()(x))
    x = layers.Flatten()(x)
    x = layers.ReLU()(rl.BatchRenormalization()(layers.Dense(24, use_bias=False, name="fc")(x)))
    return settle(keras.Model(image, layers.Dense(5, name="scores")(x), name="small"))


Export = Callable[..., tuple[Manifest, Path]]


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """Return a function that exports a model to `tmp_path/net`."""

    def run(model: keras.Model, **options: object) -> tuple[Manifest, Path]:
        directory = tmp_path / "net"
        return rl.export_model(model, directory, **options), directory

    return run
