"""Fixtures of the fold's tests: unusual statistics, and one check of everything."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as kl
from renormlite import BatchRenormalization, FoldResult, fold

Statistics = Callable[[np.random.Generator, keras.Layer], None]


def randomize(model: keras.Model, seed: int = 0, *, positive: bool = False) -> keras.Model:
    """Set unusual statistics on every norm, with negative and tiny gammas."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, (kl.BatchNormalization, BatchRenormalization)):
            channels = layer.moving_mean.shape[0]
            gamma = rng.uniform(0.3, 2.0, channels)
            if not positive:
                gamma *= rng.choice([-1, 1], channels)
            if layer.scale:
                layer.gamma.assign(gamma)
            if layer.center:
                layer.beta.assign(rng.normal(size=channels))
            layer.moving_mean.assign(rng.normal(size=channels))
            layer.moving_variance.assign(rng.uniform(0.2, 3.0, channels))
        elif getattr(layer, "use_bias", False) and hasattr(layer, "bias"):
            layer.bias.assign(rng.normal(size=layer.bias.shape))
    return model


def state(model: keras.Model) -> list[Any]:
    """The parts of a model that folding could change."""
    layers = list(model._flatten_layers())
    return [
        [w.numpy().tobytes() for w in model.weights],
        [len(x._inbound_nodes) for x in layers],
        [len(x._outbound_nodes) for x in layers],
        [x.name for x in layers],
    ]


@pytest.fixture
def folded() -> Callable[..., FoldResult]:
    """Fold a randomized model and check what must hold of every fold.

    The proof passes in float64, the input is untouched, and the float32 models agree too.
    """

    def check(model: keras.Model, *, positive: bool = False, seed: int = 0, **options: Any) -> Any:
        randomize(model, seed, positive=positive)
        before = state(model)
        result = fold(model, **options)
        assert state(model) == before
        assert result.proof.passed, result.proof
        assert not result.proof.rolled_back
        rng = np.random.default_rng(seed)
        inputs = [rng.normal(size=[2, *x.shape[1:]]) for x in result.model.inputs]
        single = isinstance(model, keras.Sequential)
        structure = model.inputs[0] if single else model.input
        fed = keras.tree.pack_sequence_as(structure, [x.astype("float32") for x in inputs])
        pairs = zip(
            keras.tree.flatten(model(fed, training=False)),
            keras.tree.flatten(result.model(fed)),
            strict=True,
        )
        for expected, got in pairs:
            # Float32 on both sides: a fold reorders roundings, a wrong fold is far off.
            scale = np.abs(expected).max() + 1e-6
            np.testing.assert_allclose(got, expected, atol=2e-4 * scale, rtol=0)
        return result

    return check


@pytest.fixture
def randomized() -> Callable[..., keras.Model]:
    return randomize


@pytest.fixture
def state_of() -> Callable[[keras.Model], list[Any]]:
    return state
