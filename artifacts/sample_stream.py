"""Samples that are read in parts, so that a source may be larger than memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

# Name of the labels among the arrays of a source.
LABEL = "label"

# Arrays by input name, and the labels of the same samples.
Part = tuple[Mapping[str, np.ndarray], np.ndarray | None]

# Limits on the size of a part: bytes of its inputs as float32, and number of samples.
PART_BYTES, PART_SAMPLES = 1 << 24, 512


@dataclasses.dataclass(frozen=True)
class SampleStream:
    """Samples in the order of their source.

    Attributes:
        source: Their origin, for the manifest.
        chosen: Which of them were chosen, for the manifest; empty if that is unknown until they are
            read.
        count: Number of samples; None if it is unknown until they are read.
        parts: Given a number, yields the samples in parts of about that many; can be called once.
        notes: Sentences on samples that are left out or have no label.
    """

    source: str
    chosen: str
    count: int | None
    parts: Callable[[int], Iterator[Part]]
    notes: tuple[str, ...] = ()

    def take(self, limit: int | None) -> SampleStream:
        """Return at most `limit` samples: evenly spread if the count is known, else the first."""
        if limit is None or (self.count is not None and self.count <= limit):
            return self
        if self.count is None:
            return dataclasses.replace(self, parts=lambda size: _first(self.parts(size), limit))
        index = spread(self.count, limit)
        chosen = f"{limit} evenly spread over {self.count}"
        return SampleStream(
            self.source,
            chosen,
            limit,
            lambda size: _selected(self.parts(size), index),
            (*self.notes, f"of the samples in {self.source}, {chosen} are used"),
        )

    def batches(self, size: int) -> Iterator[Part]:
        """Yield the samples in parts of exactly `size`; the last part may be smaller."""
        waiting: list[Part] = []
        held = 0
        for part in self.parts(size):
            waiting.append(part)
            held += _length(part)
            while held >= size:
                whole = concatenated(waiting)
                yield _rows(whole, slice(0, size))
                waiting, held = [_rows(whole, slice(size, None))], held - size
        if held:
            yield concatenated(waiting)


def spread(count: int, limit: int) -> np.ndarray:
    """Return the indices of `limit` samples, evenly spread over `count`."""
    return np.linspace(0, count - 1, limit).round().astype(int)


def part_size(shapes: Sequence[Sequence[int | None]]) -> int:
    """Return the number of samples in a part, from the inputs' shapes with the batch axis."""
    elements = sum(math.prod(size or 1 for size in shape[1:]) for shape in shapes)
    return max(1, min(PART_SAMPLES, PART_BYTES // (4 * max(1, elements))))


def concatenated(parts: Sequence[Part]) -> Part:
    """Join parts; samples of parts without labels get -1 if another part has labels."""
    if len(parts) == 1:
        return parts[0]
    arrays = {name: np.concatenate([part[0][name] for part in parts]) for name in parts[0][0]}
    if all(labels is None for _, labels in parts):
        return arrays, None
    known = [np.full(_length(p), -1) if p[1] is None else p[1] for p in parts]
    return arrays, np.concatenate(known)


def _length(part: Part) -> int:
    return len(next(iter(part[0].values())))


def _rows(part: Part, rows: slice | np.ndarray) -> Part:
    arrays, labels = part
    chosen = {name: values[rows] for name, values in arrays.items()}
    return chosen, None if labels is None else labels[rows]


def _first(parts: Iterator[Part], limit: int) -> Iterator[Part]:
    for part in parts:
        yield _rows(part, slice(0, limit))
        limit -= _length(part)
        if limit <= 0:
            return


def _selected(parts: Iterator[Part], index: np.ndarray) -> Iterator[Part]:
    """Yield the samples with ascending indices."""
    start = 0
    for part in parts:
        end = start + _length(part)
        rows = index[(index >= start) & (index < end)] - start
        if rows.size:
            yield _rows(part, rows)
        start = end
        if index[-1] < end:
            return
