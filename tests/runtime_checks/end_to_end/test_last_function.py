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


@pytest.mark.parametrize(
    ("scale", "spread", "found"), [(2.0, 7, False), (2.0, 9, True), (0.1, 3, False), (0.1, 5, True)]
)
def test_a_scale_is_named_if_it_moves_more_than_four_roundings(scale, spread, found):
    """A rounding is one step, and as many as the factor if that is greater."""
    x = (spread / abs(scale - 1)) * STEP * np.tile([-1.0, 1.0], 8)[:, None]
    assert bool(other_function(scale * x, x, STEP)) is found


@pytest.mark.parametrize(("count", "found"), [(15, False), (16, True)])
def test_fewer_than_sixteen_elements_say_nothing(count, found):
    x = np.arange(count, dtype=float)[:, None]
    assert bool(other_function(2 * x, x, STEP)) is found


@pytest.mark.parametrize(("steps", "rows", "found"), [(4, 8, True), (3, 8, False), (4, 7, False)])
def test_eight_probabilities_of_four_steps_are_enough(steps, rows, found):
    x = STEP * np.array([[256.0 - steps, steps]] * rows + [[254.0, 2.0]] * (16 - rows))
    y = softmax(0.5 * np.log(x))
    assert other_function(y, x, STEP).startswith("with the logits times 0.5") is found
