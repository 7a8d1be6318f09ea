"""Exact significance tests of counts."""

from __future__ import annotations

import math

# Significance level: what is at least this likely by chance does not count.
CHANCE = 0.05
# Terms below this share of their sum do not change any digit of it.
_NEGLIGIBLE = 1e-20


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


def mcnemar(lost: int, gained: int) -> float:
    """Return the two-sided exact probability of a split of fair coins at least this uneven."""
    total, least = lost + gained, min(lost, gained)
    tail, ways = 0, 1
    for k in range(least + 1):
        tail += ways
        ways = ways * (total - k) // (k + 1)
    # Exact integers: 2**total overflows a float.
    return float(min(1.0, 2 * tail / 2**total))
