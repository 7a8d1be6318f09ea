"""For which sums do two rules of rounding give another integer? Decided for every sum there can be.

What a rule makes of an exact sum a grows with a. So for each level k there is one least sum t_k
that gives k or more, and these thresholds, at most 255 a channel for 8 bits, are the rule. Two
rules differ on exactly the sums between their thresholds: of each level, from the lesser to the
greater.

A threshold is near the sum whose exact quotient is k - 1/2; bisection from there needs a few steps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .quantized import Ints

Rounded = Callable[[Ints], Ints]

# Rules stray from the exact quotient by float32's rounding, 2^-24 for each of three operations, and
# by the two roundings of a fixed-point product, each a sum's width at most.
_STRAY, _APART = 2.0**-21, 4


def thresholds(rounded: Rounded, ratio: np.ndarray, ends: Ints, levels: Ints) -> Ints:
    """Return the least sums that a rule brings to each level.

    Args:
        rounded: The rule: sums (L, C) to integers, growing with each sum.
        ratio: (C,) float64, what it multiplies the sums of a channel by, but for its rounding.
        ends: (2, C) least and greatest sum of each channel.
        levels: (L,) integers.

    Returns:
        (L, C): the thresholds; the least sum where every sum reaches the level, the greatest plus
        one where none does.
    """
    least, most = np.broadcast_arrays(ends[0][None], ends[1][None])
    least, most = (np.repeat(end, len(levels), axis=0) for end in (least, most))
    wanted = levels[:, None]
    centre = np.clip(np.ceil((wanted - 0.5) / ratio), least - 1, most + 1).astype(np.int64)
    width = (_APART + np.abs(centre) * _STRAY + 1 / ratio / 1024).astype(np.int64)
    # Below `low` no sum reaches the level, at `high` every one does; both may lie outside the ends.
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
    """Return how many sums of each channel two rules bring to different integers.

    Args:
        first: (L, C) thresholds of one rule.
        second: (L, C) those of the other.
    """
    low, high = np.minimum(first, second), np.maximum(first, second)
    # A sum that lies between the thresholds of several levels is one sum: count the union, in the
    # order of the levels, in which both ends grow.
    before = np.maximum.accumulate(high, axis=0)
    start = low.copy()
    start[1:] = np.maximum(low[1:], before[:-1])
    return np.asarray(np.maximum(high - start, 0).sum(axis=0))
