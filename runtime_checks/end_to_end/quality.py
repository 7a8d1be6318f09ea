"""The quality of each output relative to the trained model, on typical samples.

These are the real samples, or the random ones if there are none. One signal-to-noise ratio for a
whole output hides a part of it that is lost, so each slice of the last axis has its own.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...artifacts.golden_set import GoldenSet
from ...artifacts.sample_kinds import typical_samples

# Allowed variation in the trained model of a slice that is constant in a file: a tenth for scores
# from 0 to 1, a thousandth of their size for other numbers. Features that few samples have are
# excluded: the middle half of the samples must span a twentieth of the range.
_SMALL_SCORE, _SMALL_PART, _MIDDLE = 0.1, 1e-3, 0.05

# Greatest number of slices of the last axis that are judged separately.
_MOST_SLICES = 4096


@dataclass(frozen=True)
class Slices:
    """Totals of each slice of the last axis of an output, over one or more parts of the samples.

    Every tuple has one entry for each of the C slices.

    Attributes:
        signal: Sums of the squares of the truth.
        noise: Sums of the squares of the errors.
        least: Least values of the truth.
        most: Greatest values of the truth.
        file_least: Least values in the file.
        file_most: Greatest values in the file.
        varied: Number of parts in which not only a few samples of the truth differ.
        parts: Number of parts.
        finite: Whether all values are finite.
    """

    signal: tuple[float, ...]
    noise: tuple[float, ...]
    least: tuple[float, ...]
    most: tuple[float, ...]
    file_least: tuple[float, ...]
    file_most: tuple[float, ...]
    varied: tuple[int, ...]
    parts: int
    finite: bool

    @classmethod
    def of(cls, truth: np.ndarray, found: np.ndarray) -> Slices:
        """Return the totals of one part.

        Args:
            truth: (N, C) float64 truth.
            found: (N, C) outputs of the file, as float64.
        """
        signal, noise = _powers(truth, found)
        usable = np.isfinite(truth) & np.isfinite(found)
        known, given = np.where(usable, truth, 0.0), np.where(usable, found, 0.0)
        least, most = known.min(axis=0), known.max(axis=0)
        low, high = np.quantile(known, [0.25, 0.75], axis=0)
        return cls(
            signal=tuple(signal.tolist()),
            noise=tuple(noise.tolist()),
            least=tuple(least.tolist()),
            most=tuple(most.tolist()),
            file_least=tuple(given.min(axis=0).tolist()),
            file_most=tuple(given.max(axis=0).tolist()),
            varied=tuple((high - low > _MIDDLE * (most - least)).astype(int).tolist()),
            parts=1,
            finite=bool(usable.all()),
        )

    def plus(self, other: Slices) -> Slices:
        """Return the totals of these parts and later ones."""

        def joined(join: Callable[[Any, Any], Any], name: str) -> tuple[Any, ...]:
            return tuple(map(join, getattr(self, name), getattr(other, name)))

        return Slices(
            **{name: joined(operator.add, name) for name in ("signal", "noise", "varied")},
            **{name: joined(min, name) for name in ("least", "file_least")},
            **{name: joined(max, name) for name in ("most", "file_most")},
            parts=self.parts + other.parts,
            finite=self.finite and other.finite,
        )

    @property
    def decibels(self) -> tuple[float | None, ...]:
        """The signal-to-noise ratio of each slice."""
        return tuple(map(power_decibels, self.signal, self.noise))

    @property
    def spans(self) -> tuple[float, ...]:
        """The greatest difference between two values of each slice in the trained model."""
        return tuple(map(operator.sub, self.most, self.least))

    @property
    def dead(self) -> tuple[int, ...]:
        """The slices that are constant in the file and vary in the trained model."""
        if not self.finite:
            return ()
        least, most, spans = map(np.array, (self.least, self.most, self.spans))
        sizes = np.maximum(np.abs(least), np.abs(most))
        scores = (least >= 0) & (sizes <= 1)
        usual = (spans > _SMALL_PART * sizes) & (2 * np.array(self.varied) >= self.parts)
        varies = np.where(scores, spans > _SMALL_SCORE, usual)
        constant = np.array(self.file_least) == np.array(self.file_most)
        return tuple(np.flatnonzero(varies & constant).tolist())


@dataclass(frozen=True)
class OutputQuality:
    """The quality of one output on typical samples.

    Attributes:
        output: Keras output name.
        kind: Those samples: "real", "random", … or "all".
        samples: How many they are.
        snr_db: The truth's power over the error's, in decibels; None if the truth is zero, or if
            the output consists of class numbers.
        slices: Totals of each slice of the last axis; None for an output without one.
        step: The least distance between two different values of the output; 0 if there is none.
    """

    output: str
    kind: str
    samples: int
    snr_db: float | None
    slices: Slices | None
    step: float

    @property
    def dead(self) -> tuple[int, ...]:
        """Slices of the last axis that are constant in the file and not in the trained model."""
        return () if self.slices is None else self.slices.dead

    @property
    def dead_span(self) -> float:
        """Their greatest variation in the trained model."""
        spans = () if self.slices is None else self.slices.spans
        return max((spans[index] for index in self.dead), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """Return nested dictionaries for JSON, without the output's name."""
        return {
            "kind": self.kind,
            "samples": self.samples,
            "snr_db": self.snr_db,
            "slice_db": () if self.slices is None else self.slices.decibels,
            "dead": self.dead,
            "dead_span": self.dead_span,
            "step": self.step,
        }


def output_quality(
    output: str, actual: np.ndarray, golden: GoldenSet, *, orders: bool = False
) -> OutputQuality:
    """Measure one output on typical samples.

    Args:
        output: Keras output name.
        actual: (N, …) outputs of the target.
        golden: The samples and their truth.
        orders: Whether the output is class numbers in an order (`task_agreement`).
    """
    kind, index = typical_samples(golden.kind)
    truth = np.asarray(golden.truth[output], np.float64)[index]
    given = np.asarray(actual, np.float64)[index]
    sliced = not orders and truth.ndim > 1 and 1 < truth.shape[-1] <= _MOST_SLICES and truth.size
    width = truth.shape[-1] if sliced else 1
    rows, found = truth.reshape(-1, width), given.reshape(-1, width)
    slices = Slices.of(rows, found) if sliced else None
    powers = _powers(rows, found) if slices is None else (slices.signal, slices.noise)
    signal, noise = (float(np.sum(power)) for power in powers)
    values = np.unique(given[np.isfinite(given)])
    return OutputQuality(
        output=output,
        kind=kind,
        samples=len(index),
        snr_db=None if orders else power_decibels(signal, noise),
        slices=slices,
        step=float(np.diff(values).min()) if len(values) > 1 else 0.0,
    )


def _powers(truth: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums over (N, C) values of the squares of the truth and of the errors, (C,)."""
    usable = np.isfinite(truth) & np.isfinite(found)
    known = np.where(usable, truth, 0.0)
    errors = np.where(usable, found - known, 0.0)
    return np.sum(np.square(known), axis=0), np.sum(np.square(errors), axis=0)


def power_decibels(signal: float, noise: float) -> float | None:
    """Return a ratio of powers in decibels; None if there is no signal."""
    if signal == 0:
        return None
    return math.inf if noise == 0 else 10 * math.log10(signal / noise)
