"""Compares runs with different numbers of threads: differing bits, and errors beyond the bound.

Kernels that split a sum among threads add in another order, so different bits alone are not a
fault: LiteRT's builtin float kernels differ between one and two threads. With every number of
threads, two runs must give the same bits, within the bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Union

import numpy as np

from ...errors import UserError

Threads = Union[int, Sequence[int]]  # noqa: UP007 (Python 3.9 evaluates it)


# More than any processor has; some runtimes crash on very large numbers.
_MOST = 1024


@dataclass(frozen=True)
class ThreadComparison:
    """One output with another number of threads, compared with the judged run.

    Attributes:
        output: Keras output name.
        threads: The other number.
        against: The number in the judged run.
        differing: Elements whose bits differ.
        elements: Elements of all samples.
        max_abs: Greatest difference where both are finite.
    """

    output: str
    threads: int
    against: int
    differing: int
    elements: int
    max_abs: float

    @property
    def sentence(self) -> str:
        """Describe whether the bits are the same."""
        than = f"with {self.threads} threads as with {self.against}"
        if not self.differing:
            return f"output '{self.output}' has the same bits {than}"
        return (
            f"output '{self.output}' differs in bits between {self.threads} threads and "
            f"{self.against}: {self.differing} / {self.elements} elements "
            f"({100 * self.differing / self.elements:.3g} %), at most {self.max_abs:.3g} apart"
        )


def thread_counts(threads: Threads) -> tuple[int, ...]:
    """Return the numbers of threads to run with; the first one is judged.

    Raises:
        UserError: There is none, one is out of range, or one is named twice.
    """
    counts = (threads,) if isinstance(threads, int) else tuple(threads)
    if not counts or min(counts) < 1 or max(counts) > _MOST or len(set(counts)) < len(counts):
        raise UserError(
            f"threads must be a number from 1 to {_MOST}, or several different ones to compare, "
            f"such as 1,4. Received: {','.join(map(str, counts)) or 'none'}."
        )
    return counts


def parse_threads(text: str) -> tuple[int, ...]:
    """Read `1` or `1,4`.

    Raises:
        UserError: It is something else.
    """
    parts: Iterable[str] = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"--threads takes a number, or several as in 1,4. Received: '{text}'.")
    return thread_counts([int(part) for part in parts])


def compare_bits(
    output: str, first: np.ndarray, other: np.ndarray, against: int, threads: int
) -> ThreadComparison:
    """Compare the outputs of two numbers of threads, bit for bit.

    Args:
        output: Keras output name.
        first: (N, …) output of the judged run.
        other: (N, …) of the same type, with the other number.
        against: Threads of the former.
        threads: Threads of the latter.
    """
    a, b = np.ascontiguousarray(first), np.ascontiguousarray(other)
    bits = np.dtype(f"u{a.itemsize}")
    differs = a.view(bits) != b.view(bits)
    both = np.isfinite(a) & np.isfinite(b)
    apart = np.abs(np.subtract(a, b, where=both, out=np.zeros(a.shape), dtype=np.float64))
    return ThreadComparison(
        output, threads, against, int(differs.sum()), a.size, float(apart.max(initial=0.0))
    )
