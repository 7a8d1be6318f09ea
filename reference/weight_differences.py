"""Compares the numbers of a constant in a file with those that a network expects."""

from __future__ import annotations

import numpy as np

from ..artifacts.graphs.base import GraphTensor
from ..artifacts.precisions import SMALLEST_NORMAL, half_rounding

# The error of a quantized weight is at most half a step. Converters compute w / scale in float32
# with a scale rounded to float32, so a number near the middle of two steps may go to either. The
# quotient has three roundings, which matter where it is large, as in 32-bit biases.
_HALF_STEP = 0.5

_QUOTIENT = 3 * 2.0**-24

# Folding needs a few float32 operations, each with a relative error of 2^-24, on numbers as large
# as the tensor's.
FOLDED_ELSEWHERE = 16 * 2.0**-24

# Two converters compute a step from the same range by a few operations in float32.
_SAME_STEPS = 8 * 2.0**-24


def agreeing(wrong: np.ndarray, expected: np.ndarray, real: np.ndarray) -> float:
    """Return the share of elements that agree; 1 only for all.

    A zero that stands for a number below half a step says nothing about the rest.
    """
    telling = wrong | (real != 0) | (expected == 0)
    return 1 - float(wrong.sum()) / max(int(telling.sum()), 1)


def wrong_numbers(expected: np.ndarray, constant: GraphTensor) -> tuple[np.ndarray, np.ndarray]:
    """Return where a constant differs from the expected numbers, and its real numbers."""
    data = constant.data
    assert data is not None
    real = constant.real(data).reshape(-1)
    if data.dtype.kind == "f":
        with np.errstate(over="ignore"):  # weights beyond half precision become infinite
            rounded = expected.astype(data.dtype).astype(np.float64)
        return ~((real == rounded) | (np.isnan(real) & np.isnan(rounded))), real
    if constant.quantization is None:
        return np.ones(expected.shape, bool), real
    if not real.any():  # whatever their step, zeros represent 0 and what runtimes replace by it
        return np.abs(expected) >= SMALLEST_NORMAL, real
    step = np.broadcast_to(constant.quantization.step(data.ndim), data.shape).reshape(-1)
    return ~(np.abs(real - expected) <= _HALF_STEP * step + _QUOTIENT * np.abs(expected)), real


def wrong_in_foreign(
    expected: np.ndarray, constant: GraphTensor, error: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the same with a tolerance for a fold that computes in float32 in another order.

    The tolerance is relative to the largest element too, since a bias is a difference of numbers
    that may be larger than the bias. Expected numbers that are themselves rounded add their error,
    unless both are rounded to the same steps: then they are the same number.
    """
    wrong, real = wrong_numbers(expected, constant)
    size = np.abs(expected) + np.abs(expected).max(initial=0.0)
    data, step = constant.data, np.zeros(1)
    assert data is not None
    if data.dtype.kind != "f":
        if constant.quantization is None:
            return wrong, real
        step = np.broadcast_to(constant.quantization.step(data.ndim), data.shape).reshape(-1) / 2
    elif data.dtype == np.float16:
        step = half_rounding(np.abs(expected))
    same = np.isclose(step, error, rtol=_SAME_STEPS, atol=0.0)
    allowed = np.where(same, step, step + error) + FOLDED_ELSEWHERE * size
    with np.errstate(invalid="ignore"):
        return ~(np.abs(real - expected) <= allowed), real
