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
