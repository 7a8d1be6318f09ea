"""Protects the bounds on numbers that a file stores in half precision."""

from __future__ import annotations

import numpy as np
import pytest
from renormlite.artifacts.network import Node
from renormlite.runtime_checks.per_op.storage import Half, bound_in_half, expected_result


@pytest.mark.parametrize("size", [1.0, 1000.0])
def test_an_affine_of_two_operators_that_cancel(size):
    """The product is stored before the shift is added: its rounding is larger than the sum's."""
    x = np.linspace(0.9, 1.1, 41).astype(np.float16)[None]
    scale, shift = np.full(41, size, np.float16), np.full(41, -size, np.float16)
    stored = (x * scale) + shift
    assert stored.dtype == np.float16
    exact = x.astype(np.float64) * size - size
    weights = {"scale": scale, "shift": shift}
    node = Node("n", "affine", "norm", ("x",), (None, 41), {"axis": 1}, weights)
    expected, limit = Half().held(node, exact, np.zeros_like(exact))
    assert np.all(np.abs(stored - expected) <= limit)
    # Two roundings by half a unit in the last place, of numbers up to 1.1 times the size.
    assert np.all(limit <= 2**-11 * 4 * size)


def test_equal_numbers_of_an_input_have_equal_rounding_errors():
    """35 of 36 places of a softmax are equal, each half a step from the nearest 8-bit integer."""
    x = np.full((2, 1, 36), 12.49 / 255)
    x[:, 0, 0] = 1.0
    x[1] = np.random.default_rng(0).uniform(size=(1, 36))
    kernel = np.tile(np.arange(6.0, dtype=np.float32), 6)[:, None]
    node = Node("d", "dense", "d", ("x",), (None, 1, 1), {}, {"kernel": kernel})
    held = np.rint(x * 255) / 255
    for sample, least in ((0, 0.9), (1, 0.0)):
        part = x[sample : sample + 1]
        output, allowed = expected_result(
            node, [part], [np.zeros_like(part)], symmetric=False, halves=[False]
        )
        error = np.abs(held[sample] @ kernel - output[0])
        assert least * allowed[0] < error < allowed[0]
        assert allowed[0] < 0.51 / 255 * kernel.sum()


@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_sums_in_half_precision_are_within_the_bound_and_a_lost_filter_is_not(size):
    rng = np.random.default_rng(0)
    x = (size * rng.normal(size=(64, 200))).astype(np.float16)
    kernel = rng.normal(size=(200, 32)).astype(np.float16)
    total = np.zeros((64, 32), np.float16)
    for column, row in zip(x.T, kernel, strict=True):
        total = total + column[:, None] * row[None]
    assert total.dtype == np.float16
    node = Node("d", "dense", "d", ("x",), (None, 32), {}, {"kernel": kernel.astype(np.float32)})
    read = [x.astype(np.float64)]
    output, in_floats = expected_result(
        node, read, [np.zeros_like(read[0])], symmetric=None, halves=[False]
    )
    allowed = bound_in_half(node, read, output, in_floats)
    error = np.abs(total - output)
    assert np.all(error <= allowed)
    assert np.any(error > 10 * in_floats)
    assert np.mean(np.abs(output) > allowed) > 0.8
