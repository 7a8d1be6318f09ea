"""Finds a last operator that computes a wrong function of the integers that a known rule gives.

Two correct rounding rules differ from each other at random. If instead every integer of a target
is one function, other than the identity, of those that a known rule gives, the operators before the
last one are right and the last one is wrong: it scales, shifts, or weighs the scores of a softmax
differently.
"""

from __future__ import annotations

from typing import Optional

import numpy as np

# Rounding before and after a function leaves less than this many steps, root mean square.
_ROUNDED = 1.0

# The integers themselves must be this many times farther away than the function leaves, on at least
# this many elements: of two unrelated roundings, no function of one gives the other.
_FAR, _LEAST_ELEMENTS = 4.0, 16

# Probabilities of fewer steps say little about their logits.
_COUNTED = 4

# A function of the expected integers, its factor and its description; None for no such function.
Found = tuple[Optional[np.ndarray], float, str]  # noqa: UP045 (bundles run on Python 3.9)


def other_function(got: np.ndarray, expected: np.ndarray, step: float) -> str:
    """Describe the function of a rule's integers that a target gives; empty if there is none.

    The identity does not count.

    Args:
        got: (N, …) finite outputs of the target.
        expected: The outputs that a rule gives.
        step: The step of the integers.
    """
    if got.shape != expected.shape or got.size < _LEAST_ELEMENTS:
        return ""
    apart = _size((got - expected) / step)
    for found, factor, says in (_power(got, expected, step), _affine(got, expected)):
        # The rounding before a function grows by its factor.
        rounded = _ROUNDED * max(1.0, abs(factor))
        if found is None or apart < _FAR * rounded:
            continue
        if _size((found - got) / step) <= rounded:
            return says
    return ""


def _size(difference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(difference))))


def _power(got: np.ndarray, expected: np.ndarray, step: float) -> Found:
    """Return the softmax of a multiple of the logits of probabilities.

    Each is compared with the greatest of its row; those of only a few steps are not changed.
    """
    for array in (got, expected):
        if array.ndim < 2 or np.abs(array.sum(axis=-1) - 1).max() > array.shape[-1] * step:
            return None, 0.0, ""
    top = expected.argmax(axis=-1)[..., None]
    most = np.take_along_axis(got, top, -1)
    share = expected / np.maximum(np.take_along_axis(expected, top, -1), step)
    counted = (expected >= _COUNTED * step) & (share < 1)
    if counted.sum() < _LEAST_ELEMENTS / 2:
        return None, 0.0, ""
    tried = [
        (_size((most * share**beta - got)[counted] / step), float(beta))
        for beta in np.geomspace(1 / 8, 8, 121)
    ]
    beta = min(tried)[1]
    return np.where(counted, most * share**beta, got), beta, f"with the logits times {beta:.2g}"


def _affine(got: np.ndarray, expected: np.ndarray) -> Found:
    """Return the best scale and offset."""
    x, y = expected.astype(np.float64).ravel(), got.astype(np.float64).ravel()
    if not np.ptp(x) > 0 or not np.ptp(y) > 0:
        return None, 0.0, ""
    scale, shift = np.polyfit(x, y, 1)
    return scale * expected + shift, float(scale), f"times {scale:.3g}, plus {shift:.3g}"
