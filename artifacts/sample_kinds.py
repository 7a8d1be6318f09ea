"""Kinds of samples: what each is for, and what may be expected where it holds NaN or infinity.

Runtimes do not agree on NaN and infinity, and no format says what they must do: LiteRT's built-in
kernels saturate infinity at ±3.4e38, OpenVINO's relu makes NaN a zero, pooling and maxima drop it,
a softmax keeps it in one element or spreads it over all. They do agree, in everything that was
measured (docs/checks.md), where NaN and infinity do *not* come. That is the contract: an output
that is finite in the trained model although an input is not, and that stays finite when every
operation hands NaN on, is expected to be right. Of the others nothing is expected.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .precisions import precision_named

REAL, RANDOM, BORDER, EXTREME = "real", "random", "border", "extreme"
DENORMAL, NONFINITE, SEARCH = "denormal", "nonfinite", "search"

# The kinds that error budgets and decisions are about: the first of them that there is.
TYPICAL = (REAL, RANDOM)


def kinds_of(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return (N,) kinds of samples that somebody gives: "real", or "nonfinite"."""
    finite = np.all(
        [np.isfinite(array).reshape(len(array), -1).all(axis=1) for array in inputs.values()],
        axis=0,
    )
    return np.where(finite, REAL, NONFINITE)


def typical_samples(kind: np.ndarray) -> tuple[str, np.ndarray]:
    """Return the kind of samples that stand for a model's use, and the indices of these samples.

    They are the real ones, or the random ones where there are none; "all" where there are neither.
    """
    for name in TYPICAL:
        index = np.flatnonzero(kind == name)
        if len(index):
            return name, index
    return "all", np.arange(len(kind))


def representative(kind: np.ndarray) -> np.ndarray:
    """Return (N,) whether a sample may be averaged over with others.

    Not one that a search chose for its error, nor one that compares a few elements at most.
    """
    return ~np.isin(kind, [SEARCH, NONFINITE])


def pooled(ratios: np.ndarray, kind: np.ndarray) -> float:
    """Return the root mean square of (N,) ratios over the samples that stand for others."""
    among = representative(kind)
    return float(np.sqrt(np.mean(np.square(ratios[among if among.any() else slice(None)]))))


def file_inputs(inputs: Mapping[str, np.ndarray], precision: str) -> dict[str, np.ndarray]:
    """Return the inputs for a file: NaN and infinity become zero for a file of integers."""
    if precision_named(precision).takes_nonfinite:
        return dict(inputs)
    return {name: _finite(array) for name, array in inputs.items()}


def _finite(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.kind != "f" else np.where(np.isfinite(array), array, 0)


def without(
    outputs: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return outputs with NaN where nothing is expected."""
    return {
        name: array if wanted[name].all() else np.where(wanted[name], array, np.nan)
        for name, array in outputs.items()
    }


def without_undefined(
    outputs: Mapping[str, np.ndarray],
    kind: np.ndarray,
    reference: Mapping[str, np.ndarray],
    precision: str,
) -> dict[str, np.ndarray]:
    """Return a file's outputs, replaced by the trained model's where nothing is expected.

    Args:
        outputs: Keras output name to (N, …).
        kind: (N,) kinds of the samples.
        reference: The trained model's outputs, NaN where nothing is expected.
        precision: The file's; nothing is expected of a file of integers in "nonfinite" samples.
    """
    odd = kind == NONFINITE
    found = dict(outputs)
    for name, array in outputs.items():
        known = reference.get(name)
        if known is None or known.shape != array.shape or not odd.any():
            continue
        free = odd.reshape(-1, *[1] * (array.ndim - 1)) & (
            np.isnan(known) | (not precision_named(precision).takes_nonfinite)
        )
        # Integers and booleans become float64, which can hold NaN.
        dtype = array.dtype if array.dtype.kind == "f" else np.float64
        found[name] = np.where(free, known, array).astype(dtype, copy=False)
    return found
