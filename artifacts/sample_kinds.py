"""Kinds of samples, and the expected outputs for samples with NaN or infinity.

Runtimes do not agree on NaN and infinity, and no format defines their treatment: LiteRT's built-in
kernels saturate infinity at ±3.4e38, OpenVINO's relu converts NaN to zero, pooling and maxima drop
it, a softmax keeps it in one element or spreads it to all. In all measurements (docs/limits.md),
they do agree on the outputs that NaN and infinity do *not* reach. That is the contract: an output
that is finite in the trained model although an input is not, and that stays finite if every
operation propagates NaN, must be right. Other outputs have no expected value.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .precisions import precision_named

REAL, RANDOM, BORDER, EXTREME = "real", "random", "border", "extreme"
DENORMAL, NONFINITE, SEARCH = "denormal", "nonfinite", "search"

# The kinds that error budgets and decisions use: the first of them that exists.
TYPICAL = (REAL, RANDOM)

# Inputs unlike those that a model is used for, of which no runtime has to represent every number.
UNUSUAL = (EXTREME, BORDER, DENORMAL)


def kinds_of(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return (N,) kinds of samples given by a user: "real" or "nonfinite"."""
    finite = np.all(
        [np.isfinite(array).reshape(len(array), -1).all(axis=1) for array in inputs.values()],
        axis=0,
    )
    return np.where(finite, REAL, NONFINITE)


def typical_samples(kind: np.ndarray) -> tuple[str, np.ndarray]:
    """Return the kind of samples that represent the use of a model, and their indices.

    It is "real", "random" if there are no real samples, and "all" if there are neither.
    """
    for name in TYPICAL:
        index = np.flatnonzero(kind == name)
        if len(index):
            return name, index
    return "all", np.arange(len(kind))


def representative(kind: np.ndarray) -> np.ndarray:
    """Return (N,) whether a sample may be averaged with others.

    Samples that a search chose for their error, or that compare only a few elements, may not.
    """
    return (kind != SEARCH) & (kind != NONFINITE)


def averaged(kind: np.ndarray) -> np.ndarray:
    """Return (N,) whether a sample is averaged: the representative ones, or all if none is."""
    among = representative(kind)
    return among if among.any() else np.ones_like(among)


def pooled(ratios: np.ndarray, kind: np.ndarray) -> float:
    """Return the root mean square of (N,) ratios over the samples that are averaged."""
    return float(np.sqrt(np.mean(np.square(ratios[averaged(kind)]))))


def file_inputs(inputs: Mapping[str, np.ndarray], precision: str) -> dict[str, np.ndarray]:
    """Return the inputs for a file; for integer files, NaN and infinity are replaced by zero."""
    if precision_named(precision).takes_nonfinite:
        return dict(inputs)
    return {name: _finite(array) for name, array in inputs.items()}


def _finite(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.kind != "f" else np.where(np.isfinite(array), array, 0)


def without(
    outputs: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return outputs with NaN where there is no expected value."""
    return {
        name: array if wanted[name].all() else np.where(wanted[name], array, np.nan)
        for name, array in outputs.items()
    }


def without_undefined(
    outputs: Mapping[str, np.ndarray],
    kind: np.ndarray,
    reference: Mapping[str, np.ndarray],
    precision: str,
    noise: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Return a file's outputs, replaced by the trained model's where there is no expected value.

    Args:
        outputs: Keras output name to (N, …).
        kind: (N,) kinds of the samples.
        reference: The trained model's outputs, with NaN where there is no expected value.
        precision: Precision of the file; integer files have no expected values in "nonfinite"
            samples, nor where the trained model gives NaN or infinity.
        noise: Keras output name to the (N,) noise of the file; nothing is expected of unusual
            samples whose noise is infinite, such as those beyond half precision.
    """
    found = dict(outputs)
    for name, array in outputs.items():
        known = reference.get(name)
        if known is None or known.shape != array.shape:
            continue
        column = (-1, *[1] * (array.ndim - 1))
        if precision_named(precision).takes_nonfinite:
            free = np.isnan(known)
            if free.any():
                free &= np.isin(kind, (NONFINITE, *UNUSUAL)).reshape(column)
        else:
            free = (kind == NONFINITE).reshape(column) | ~np.isfinite(known)
        limits = (noise or {}).get(name)
        if limits is not None and np.isinf(limits).any():
            free = free | (np.isin(kind, UNUSUAL) & np.isinf(limits)).reshape(column)
        if not free.any():
            continue
        # Integers and booleans are converted to float64, which has NaN.
        dtype = array.dtype if array.dtype.kind == "f" else np.float64
        found[name] = np.where(free, known, array).astype(dtype, copy=False)
    return found
