"""Protects the search for a wrong last operator: rounding is not mistaken for one."""

from __future__ import annotations

import numpy as np
import pytest
from renormlite.runtime_checks.end_to_end.last_function import other_function

STEP = 1 / 256
RNG = np.random.default_rng(0)


def rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values / STEP), 0, 255) * STEP


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_another_beta_is_named(classes, beta):
    logits = 2 * RNG.normal(size=(32, classes))  # of a network that decides
    found = other_function(rounded(softmax(beta * logits)), rounded(softmax(logits)), STEP)
    assert found.startswith("with the logits times")
    assert abs(float(found.rpartition(" ")[2]) - beta) < 0.1


@pytest.mark.parametrize(("scale", "shift"), [(0.5, 0.0), (1.0, 0.1), (-1.0, 0.9), (1.3, 0.0)])
def test_a_scale_or_an_offset_is_named(scale, shift):
    x = rounded(RNG.uniform(0, 0.7, size=(32, 4)))
    assert other_function(rounded(scale * x + shift), x, STEP).startswith(f"times {scale:.2g}")


@pytest.mark.parametrize("noise", [0.5, 2.0, 8.0, 40.0])
@pytest.mark.parametrize("classes", [1, 2, 10])
def test_an_unknown_rule_is_not_reported_as_a_function(noise, classes):
    """Whether rules differ by a step or, as in an untrained network, in most bits."""
    for _ in range(20):
        x = RNG.uniform(0.2, 0.8, size=(32, classes))
        x = x if classes == 1 else softmax(np.log(x))
        y = x + noise * STEP * RNG.normal(size=x.shape)
        y = y if classes == 1 else np.abs(y) / np.abs(y).sum(axis=-1, keepdims=True)
        assert not other_function(rounded(y), rounded(x), STEP)


def test_constant_outputs_are_not_reported_as_a_function():
    assert not other_function(np.zeros((32, 2)), np.zeros((32, 2)), STEP)
    assert not other_function(np.zeros((32, 2)), rounded(RNG.uniform(size=(32, 2))), STEP)
