"""Folds a random network without the proof and compares it with the outputs of Keras."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from random_graphs import random_inputs, random_model
from renormlite import fold

# Networks that agree in float32 up to this difference are correct: a wrong border, or an activation
# that a scale must not pass, differs by more than 1e-3.
_ROUNDING = 2e-5
# In float64, the error of the folded network is that of the original, up to random differences.
_TIMES_ORIGINAL = 30.0
# For networks that Keras cannot compute in float64: the difference of two float32 networks.
_FLOAT32 = 2e-4


@dataclass(frozen=True)
class Verdict:
    """The result of one random network.

    Attributes:
        seed: The network.
        problem: What is wrong; empty if nothing is.
        norms: How many norms it has.
        folded: How many of them folded completely.
        error: Greatest difference from the oracle, relative to the greatest output.
        exact: Whether float64 was there where it was asked for.
        runs: Whether Keras can run the network at all.
    """

    seed: int
    problem: str = ""
    norms: int = 0
    folded: int = 0
    error: float = 0.0
    exact: bool = True
    runs: bool = True


def examine(seed: int, *, prove: bool = False) -> Verdict:
    """Fold the network of a seed and compare.

    Args:
        seed: Of the network and its inputs.
        prove: Whether to run the proof as well, which must pass without taking a fold back.
    """
    keras.backend.clear_session()
    model = random_model(seed)
    inputs = random_inputs(model, seed)
    try:
        original = _outputs(model, inputs)
    except Exception:  # faults of Keras in layers that can be built
        return Verdict(seed, runs=False)
    result = fold(model, verify=False)
    if result.model.output_names != model.output_names:
        return Verdict(seed, f"output names {result.model.output_names}, {model.output_names}")
    if prove:
        proof = fold(model).proof
        assert proof is not None
        if not proof.passed or proof.rolled_back:
            return Verdict(seed, f"{proof.sentence}; rolled back {proof.rolled_back}")
    folded, truth = _outputs(result.model, inputs), None
    error, limit = _compared(original, folded, None)
    if error > _ROUNDING:
        # Only float64 shows which of the two float32 networks is wrong; it takes a second network.
        truth = _exact_outputs(seed, inputs, original)
        error, limit = _compared(original, folded, truth)
    problem = "" if error <= limit else f"outputs differ by {error:.1e}, allowed {limit:.1e}"
    report = result.report
    return Verdict(
        seed,
        problem,
        len(report.records),
        report.folded,
        error,
        exact=limit != _FLOAT32 or error <= _ROUNDING,
    )


def _outputs(model: keras.Model, inputs: Any) -> list[np.ndarray]:
    return [np.asarray(y) for y in keras.tree.flatten(model(inputs, training=False))]


def _exact_outputs(seed: int, inputs: Any, like: list[np.ndarray]) -> list[np.ndarray] | None:
    """Return the outputs of Keras in float64; None if it cannot compute them."""
    try:
        exact = random_model(seed, "float64")
        outputs = _outputs(exact, inputs)
    except Exception:  # some layers have no float64 kernel
        return None
    same = [y.shape for y in outputs] == [y.shape for y in like]
    return outputs if same and all(y.dtype == np.float64 for y in outputs) else None


def _compared(
    original: list[np.ndarray], folded: list[np.ndarray], truth: list[np.ndarray] | None
) -> tuple[float, float]:
    """Return the largest relative difference and its limit."""
    assert [y.shape for y in original] == [y.shape for y in folded]
    worst, allowed = 0.0, _ROUNDING if truth else _FLOAT32
    for i, (before, after) in enumerate(zip(original, folded, strict=True)):
        expected = truth[i] if truth else before
        finite = np.isfinite(before) & np.isfinite(expected) & (np.abs(expected) < 1e30)
        if not finite.any():
            continue
        scale = np.abs(expected[finite]).max() + 1e-30
        errors = [
            float(np.abs(y[finite] - expected[finite]).max() / scale) for y in (before, after)
        ]
        worst = max(worst, errors[1]) if np.isfinite(errors[1]) else float("inf")
        allowed = max(allowed, _TIMES_ORIGINAL * errors[0])
    return worst, allowed
