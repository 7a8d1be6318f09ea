"""Recognizes a kernel whose channels were multiplied by factors, whatever they are.

Another calibration equalizes the channels of a network by other factors. They are positive and
belong to an input or an output channel, so signs and the shape of the kernel within a channel stay.
"""

from __future__ import annotations

import numpy as np

# Numbers below this share of their output channel are lost in the steps of 8 bits.
_LEAST = 1 / 16

# A kernel is recognized by at least this many numbers, this share of which have the right sign.
_FEWEST, _RIGHT_SIGNS = 16, 0.98

# Half of the numbers agree within this factor once those of the channels are removed.
_CLOSE, _ROUNDS = 0.1, 4


def exchanged_channels(kernel: np.ndarray, found: np.ndarray) -> tuple[int, np.ndarray] | None:
    """Return how the channels of a kernel were exchanged before factors were applied.

    Args:
        kernel: (…, inputs, outputs) weights.
        found: Weights of the same shape, rounded to 8 bits.

    Returns:
        The axis, and where each of its channels is in `found`; None if no exchange of one axis and
        positive factors of the channels explain `found`.
    """
    if kernel.ndim < 2:
        return None
    for axis in (kernel.ndim - 1, kernel.ndim - 2):
        places = _places(_without_factors(kernel), _without_factors(found), axis)
        if places is not None and differ_by_channels(kernel, np.take(found, places, axis)):
            return axis, places
    return None


def _without_factors(kernel: np.ndarray) -> np.ndarray:
    """Return a kernel divided by the median sizes of its channels, which factors do not change."""
    for _ in range(_ROUNDS):
        for axis in (-1, -2):
            rest = tuple(a for a in range(kernel.ndim) if a != kernel.ndim + axis)
            middle = np.median(np.abs(kernel), axis=rest, keepdims=True)
            kernel = np.divide(kernel, middle, out=np.zeros_like(kernel), where=middle > 0)
    return kernel


def _places(expected: np.ndarray, found: np.ndarray, axis: int) -> np.ndarray | None:
    """Return where each slice is found, by the closest direction; None if unclear or in place."""
    rows = [np.moveaxis(side, axis, 0).reshape(side.shape[axis], -1) for side in (expected, found)]
    unit = [side / (np.linalg.norm(side, axis=1, keepdims=True) + 1e-300) for side in rows]
    places = np.argmax(unit[0] @ unit[1].T, axis=1)
    in_order = np.arange(len(places))
    exchanged = np.array_equal(np.sort(places), in_order) and not np.array_equal(places, in_order)
    return places if exchanged else None


def differ_by_channels(kernel: np.ndarray, found: np.ndarray) -> bool:
    """Return whether a kernel is another one with its channels multiplied by positive factors.

    Args:
        kernel: (…, inputs, outputs) weights.
        found: Weights of the same shape, rounded to 8 bits.
    """
    if kernel.ndim < 2:
        return False
    greatest = np.abs(found).max(axis=tuple(range(kernel.ndim - 1)), keepdims=True)
    usable = (np.abs(found) > _LEAST * greatest) & (kernel != 0)
    if usable.sum() < _FEWEST:
        return False
    right = np.sign(kernel) == np.sign(found)
    if np.mean(right[usable]) < _RIGHT_SIGNS:
        return False
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = np.where(usable & right, np.log(np.abs(found / kernel)), np.nan)
    for _ in range(_ROUNDS):
        for axis in (-1, -2):
            rest = tuple(a for a in range(kernel.ndim) if a != kernel.ndim + axis)
            middle = np.nanmedian(factors, axis=rest, keepdims=True)
            factors -= np.nan_to_num(middle)
    return bool(np.nanmedian(np.abs(factors)) < np.log1p(_CLOSE))
