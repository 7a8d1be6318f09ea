"""Exact significance tests of counts."""

from __future__ import annotations

import math

import numpy as np

# Significance level: what is at least this likely by chance does not count.
CHANCE = 0.05
# Terms below this share of their sum do not change any digit of it.
_NEGLIGIBLE = 1e-20
# Standard deviations that a normal number exceeds once in 10,000 times, on one side.
_RARE = 3.719


def at_least(hits: int, trials: int, rate: float) -> float:
    """Return the probability of at least this many hits at a given rate per trial."""
    if hits <= 0 or rate >= 1:
        return 1.0
    if rate <= 0:
        return 0.0
    # Logarithms, since binomial coefficients of many trials exceed a float.
    total, mode = 0.0, rate * trials
    for k in range(hits, trials + 1):
        term = math.exp(
            math.lgamma(trials + 1)
            - math.lgamma(k + 1)
            - math.lgamma(trials - k + 1)
            + k * math.log(rate)
            + (trials - k) * math.log1p(-rate)
        )
        total += term
        if k > mode and term <= _NEGLIGIBLE * total:  # the remaining terms are as small
            break
    return min(1.0, total)


def all_within(share: float, count: int) -> float:
    """Return the probability that uniform random numbers span at most a share of their interval."""
    if share >= 1:
        return 1.0
    return float(count * share ** (count - 1) - (count - 1) * share**count)


def independent_errors(
    actual: np.ndarray, expected: np.ndarray, noise: np.ndarray, where: np.ndarray
) -> float:
    """Return the number of independent errors that determine the size of all errors.

    It is the number of equal squares that average as these squares do, (Σ e²)² / Σ (e²)². An
    element that has the same value in several samples has one error, however many samples.

    Args:
        actual: (N, …) an output.
        expected: (N, …) float64.
        noise: (N,) expected error of each sample.
        where: (N,) samples to count.

    Returns:
        At least 1.
    """
    found, right = (
        np.asarray(array, np.float64).reshape(len(array), -1)[where] for array in (actual, expected)
    )
    column = np.broadcast_to(np.arange(found.shape[1]), found.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (found - right) / np.asarray(noise, np.float64)[where][:, None]
    known = np.isfinite(ratio) & (ratio != 0)
    if not known.any():
        return 1.0
    keys = [column[known], right[known], found[known]]
    order = np.lexsort(keys)
    first = np.ones(len(order), bool)
    first[1:] = np.any([np.diff(key[order]) != 0 for key in keys], axis=0)
    size = ratio[known][order]
    squares = np.add.reduceat(np.square(size / np.abs(size).max()), np.flatnonzero(first))
    return float(np.square(squares.sum()) / np.square(squares).sum())


def greatest_rms(count: float) -> float:
    """Return the root mean square that normal errors exceed once in 10,000 times.

    Relative to the expected one. It follows from the chi-squared distribution, by Wilson and
    Hilferty's approximation of its quantiles (1931).

    Args:
        count: Number of independent errors, at least 1.
    """
    variance = 2 / (9 * count)
    return float((1 - variance + _RARE * math.sqrt(variance)) ** 1.5)


def mcnemar(lost: int, gained: int) -> float:
    """Return the two-sided exact probability of a split of fair coins at least this uneven."""
    total, least = lost + gained, min(lost, gained)
    tail, ways = 0, 1
    for k in range(least + 1):
        tail += ways
        ways = ways * (total - k) // (k + 1)
    # Exact integers: 2**total overflows a float.
    return float(min(1.0, 2 * tail / 2**total))
