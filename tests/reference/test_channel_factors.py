"""Protects that a kernel with scaled channels is recognized, and that another one is not."""

from __future__ import annotations

import numpy as np
import pytest
from renormlite.reference.channel_factors import differ_by_channels, exchanged_channels

RNG = np.random.default_rng(0)


def rounded(kernel):
    steps = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)), keepdims=True) / 127
    return np.rint(kernel / steps) * steps


@pytest.mark.parametrize("shape", [(3, 3, 4, 6), (20, 8), (3, 3, 16, 1)])
def test_scaled_channels(shape):
    kernel = RNG.normal(0, 1, shape)
    scaled = kernel * RNG.uniform(0.3, 3, (shape[-2], 1)) * RNG.uniform(0.3, 3, shape[-1])
    assert differ_by_channels(kernel, rounded(scaled))
    assert not differ_by_channels(kernel, rounded(RNG.normal(0, 1, shape)))
    assert not differ_by_channels(kernel, rounded(kernel[..., ::-1, :]))
    assert not differ_by_channels(kernel, rounded(kernel * RNG.uniform(0.5, 2, shape)))


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("shape", [(3, 3, 4, 6), (20, 8), (3, 3, 16, 2)])
def test_exchanged_and_scaled_channels(shape, axis):
    kernel = RNG.normal(0, 1, shape)
    order = np.arange(shape[axis])
    order[[0, -1]] = -1, 0
    order %= shape[axis]
    scaled = kernel * RNG.uniform(0.3, 3, (shape[-2], 1)) * RNG.uniform(0.3, 3, shape[-1])
    found = exchanged_channels(kernel, rounded(np.take(scaled, order, axis)))
    assert found is not None
    assert found[0] == len(shape) + axis
    # The file's channel i is the network's order[i], so the network's i is at the inverse.
    np.testing.assert_array_equal(found[1], np.argsort(order))
    assert exchanged_channels(kernel, rounded(scaled)) is None
    assert exchanged_channels(kernel, rounded(RNG.normal(0, 1, shape))) is None
    assert exchanged_channels(kernel, rounded(scaled[::-1] * RNG.uniform(0.2, 2, shape))) is None
