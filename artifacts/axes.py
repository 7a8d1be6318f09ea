"""The order of axes in which one shape is another, such as channels first and last."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Optional

_MOST_AXES = 5

Shape = Sequence[Optional[int]]  # noqa: UP045 (Python 3.9 evaluates it); None, -1: any size


def transposition(shape: Shape, wanted: Shape) -> tuple[int, ...] | None:
    """Return how to transpose an array of one shape so that it fits another.

    The first axis, of samples, stays. Of several orders, that from channels first to channels last
    or the reverse is returned.

    Args:
        shape: The shape.
        wanted: The other shape.

    Returns:
        The axes for `numpy.transpose`; None if there are none, or if the shape fits as it is.
    """
    if len(shape) != len(wanted) or not 3 <= len(shape) <= _MOST_AXES:
        return None
    fitting = (axes for axes in _orders(len(shape)) if _fits([shape[a] for a in axes], wanted))
    return None if _fits(shape, wanted) else next(fitting, None)


def _orders(rank: int) -> Iterator[tuple[int, ...]]:
    yield (0, *range(2, rank), 1)
    yield (0, rank - 1, *range(1, rank - 1))
    for order in itertools.permutations(range(1, rank)):
        yield (0, *order)


def _fits(shape: Shape, wanted: Shape) -> bool:
    pairs = list(zip(shape, wanted))[1:]
    return all(want in (None, -1, size) or size in (None, -1) for size, want in pairs)
