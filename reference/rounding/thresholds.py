"""Finds the sums for which two rounding rules give different integers, over all possible sums.

The result of a rule is non-decreasing in the exact sum. For each level k there is a least sum t_k
whose result is at least k. These thresholds, at most 255 per channel for 8 bits, determine the
rule. Two rules differ on exactly the sums between their thresholds for the same level.

A threshold is close to the sum whose exact quotient is k - 1/2; bisection from there takes a few
steps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .quantized import Ints

Rounded = Callable[[Ints], Ints]

# Rules deviate from the exact quotient by the roundings of float32, 2^-24 for each of three
# operations, and by the two roundings of a fixed-point product, each at most one sum.
_STRAY, _APART = 2.0**-21, 4


def thresholds(rounded: Rounded, ratio: np.ndarray, ends: Ints, levels: Ints) -> Ints:
    """Return, for each level, the least sums that a rule rounds to that level or above.

    Args:
        rounded: The rule: sums (L, C) to integers, non-decreasing in each sum.
        ratio: (C,) float64, the exact factor for the sums of each channel.
        ends: (2, C) least and greatest sum of each channel.
        levels: (L,) integers.

    Returns:
        (L, C) thresholds. If every sum reaches a level, the least sum; if none does, the greatest
        sum plus one.
    """
    least, most = np.broadcast_arrays(ends[0][None], ends[1][None])
    least, most = (np.repeat(end, len(levels), axis=0) for end in (least, most))
    wanted = levels[:, None]
    centre = np.clip(np.ceil((wanted - 0.5) / ratio), least - 1, most + 1).astype(np.int64)
    width = (_APART + np.abs(centre) * _STRAY + 1 / ratio / 1024).astype(np.int64)
    # Sums up to `low` are below the level, `high` reaches it; both may lie outside the ends.
    low, high = np.maximum(centre - width, least - 1), np.minimum(centre + width, most + 1)
    inside = np.clip(low, least, most)
    low = np.where((low >= least) & (rounded(inside) >= wanted), least - 1, low)
    inside = np.clip(high, least, most)
    high = np.where((high <= most) & (rounded(inside) < wanted), most + 1, high)
    while True:
        open_ = high - low > 1
        if not open_.any():
            return high
        middle = np.where(open_, (low + high) // 2, np.clip(low, least, most))
        reached = rounded(middle) >= wanted
        high = np.where(open_ & reached, middle, high)
        low = np.where(open_ & ~reached, middle, low)


def differing_sums(first: Ints, second: Ints) -> Ints:
    """Return the number of sums in each channel that two rules round to different integers.

    Args:
        first: (L, C) thresholds of one rule.
        second: (L, C) thresholds of the other.
    """
    low, high = np.minimum(first, second), np.maximum(first, second)
    # A sum may lie between the thresholds of several levels, so the union is counted, in the order
    # of the levels, in which both ends increase.
    before = np.maximum.accumulate(high, axis=0)
    start = low.copy()
    start[1:] = np.maximum(low[1:], before[:-1])
    return np.asarray(np.maximum(high - start, 0).sum(axis=0))
