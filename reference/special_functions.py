"""The error function and softmax in NumPy, so that the checks need no SciPy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

_erf = np.frompyfunc(math.erf, 1, 1)
_erfc = np.frompyfunc(math.erfc, 1, 1)


def erf(x: np.ndarray) -> np.ndarray:
    """Return the error function of each element, computed in float64, in the type of `x`."""
    return np.asarray(_erf(x), np.float64).astype(x.dtype)


def erfc(x: np.ndarray) -> np.ndarray:
    """Return 1 - erf(x) without cancellation, computed in float64, in the type of `x`."""
    return np.asarray(_erfc(x), np.float64).astype(x.dtype)


def rounded_once(function: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    """Return a function computed in float64 and rounded to the type of its argument.

    That is what C libraries give for nearly all float32 numbers. NumPy's own functions of float32
    err by a few units in the last place, and by other ones on other processors.
    """
    return lambda x: np.asarray(function(x.astype(np.float64))).astype(x.dtype)


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return exp(x) over its sum along an axis, shifted so that nothing overflows."""
    raised = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(raised / raised.sum(axis=axis, keepdims=True))
