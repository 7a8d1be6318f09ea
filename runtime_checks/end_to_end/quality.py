"""The quality of each output relative to the trained model, on typical samples.

These are the real samples, or the random ones if there are none. One signal-to-noise ratio for a
whole output hides a part of it that is lost, so each slice of the last axis has its own.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...artifacts.golden_set import GoldenSet
from ...artifacts.sample_kinds import typical_samples
from .chance import CHANCE, all_within

# Allowed variation in the trained model of a slice that is constant in a file: a tenth for scores
# from 0 to 1, a thousandth of their size for other numbers.
_SMALL_SCORE, _SMALL_PART = 0.1, 1e-3

# Instead of a probability of 0, whose logarithm is not a number of JSON.
_TINY = 1e-300

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
        alike: Logarithms of the probability that values distributed like the truth's, rounded to
            the steps of the file, are all the same; 0 where the file's values are not.
        usual: Logarithms of the probability that N values of a slice are this constant, if they
            are distributed like those of the slices that vary; 0 where the file's values vary.
        samples: Number of samples.
        step: The least distance between two values of the file; 0 if it is not known.
        finite: Whether all values are finite.
    """

    signal: tuple[float, ...]
    noise: tuple[float, ...]
    least: tuple[float, ...]
    most: tuple[float, ...]
    file_least: tuple[float, ...]
    file_most: tuple[float, ...]
    alike: tuple[float, ...]
    usual: tuple[float, ...]
    samples: int
    step: float
    finite: bool

    @classmethod
    def of(
        cls, truth: np.ndarray, found: np.ndarray, *, samples: int = 0, step: float = 0.0
    ) -> Slices:
        """Return the totals of one part.

        Args:
            truth: (N, C) float64 truth.
            found: (N, C) outputs of the file, as float64.
            samples: Number of samples, if they have several rows each.
            step: The least distance between two values of the file; 0 if it is not known.
        """
        samples = samples or len(truth)
        signal, noise = _powers(truth, found)
        usable = np.isfinite(truth) & np.isfinite(found)
        known, given = np.where(usable, truth, 0.0), np.where(usable, found, 0.0)
        least, most = known.min(axis=0), known.max(axis=0)
        lows, highs = given.min(axis=0), given.max(axis=0)
        constant = lows == highs
        alike, usual = np.zeros(len(lows)), np.zeros(len(lows))
        varying = given[:, ~constant] if constant.any() else given[:, :0]
        for value in np.unique(lows[constant]):
            share = np.mean(varying == value) if varying.size else 0.0
            usual[constant & (lows == value)] = samples * math.log(max(share, _TINY))
        for place in np.flatnonzero(constant):
            values = known[:, place]
            alike[place] = _log_alike(np.rint(values / step) if step else values)
        return cls(
            signal=tuple(signal.tolist()),
            noise=tuple(noise.tolist()),
            least=tuple(least.tolist()),
            most=tuple(most.tolist()),
            file_least=tuple(lows.tolist()),
            file_most=tuple(highs.tolist()),
            alike=tuple(alike.tolist()),
            usual=tuple(usual.tolist()),
            samples=samples,
            step=step,
            finite=bool(usable.all()),
        )

    def plus(self, other: Slices) -> Slices:
        """Return the totals of these parts and later ones."""

        def joined(join: Callable[[Any, Any], Any], name: str) -> tuple[Any, ...]:
            return tuple(map(join, getattr(self, name), getattr(other, name)))

        return Slices(
            **{name: joined(operator.add, name) for name in ("signal", "noise", "alike", "usual")},
            **{name: joined(min, name) for name in ("least", "file_least")},
            **{name: joined(max, name) for name in ("most", "file_most")},
            samples=self.samples + other.samples,
            step=min(filter(None, (self.step, other.step)), default=0.0),
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
        """The slices that are constant in the file and vary in the trained model, beyond chance."""
        return self._constant[0]

    @property
    def unresolved(self) -> tuple[int, ...]:
        """Other slices that are constant in the file and vary in the trained model."""
        return self._constant[1]

    @functools.cached_property
    def _constant(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The slices that are constant in the file alone: beyond chance, and within.

        A right file rounds the values of the trained model, and may give one value for a few of
        them. Where they span less than a step, it is tested whether other samples would span one.
        An activation may also be flat for a few samples, as it is in other slices for some.
        """
        if not self.finite:
            return (), ()
        least, most, spans = map(np.array, (self.least, self.most, self.spans))
        sizes = np.maximum(np.abs(least), np.abs(most))
        scores = (least >= 0) & (sizes <= 1)
        varies = spans > np.where(scores, _SMALL_SCORE, _SMALL_PART * sizes)
        constant = np.array(self.file_least) == np.array(self.file_most)
        tested = int(varies.sum())
        dead: list[int] = []
        unresolved: list[int] = []
        for place in np.flatnonzero(varies & constant).tolist():
            if spans[place] < self.step:
                within = all_within(spans[place] / self.step, self.samples)
                chance = max(within, math.exp(self.usual[place]))
            else:
                chance = math.exp(self.alike[place])
            (dead if tested * chance < CHANCE else unresolved).append(place)
        return tuple(dead), tuple(unresolved)


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
        step: The least distance between two values of the output, as far as it is known; 0 if
            there is none.
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
        return self.span_of(self.dead)

    @property
    def unresolved(self) -> tuple[int, ...]:
        """Slices that are as constant, on too few samples or with too little variation to tell."""
        return () if self.slices is None else self.slices.unresolved

    def span_of(self, places: Sequence[int]) -> float:
        """Return the greatest variation of some slices in the trained model."""
        spans = () if self.slices is None else self.slices.spans
        return max((spans[place] for place in places), default=0.0)

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
    output: str,
    actual: np.ndarray,
    golden: GoldenSet,
    *,
    orders: bool = False,
    step: float | None = None,
) -> OutputQuality:
    """Measure one output on typical samples.

    Args:
        output: Keras output name.
        actual: (N, …) outputs of the target.
        golden: The samples and their truth.
        orders: Whether the output is class numbers in an order (`task_agreement`).
        step: The step of the file's integers; None if it is not known.
    """
    kind, index = typical_samples(golden.kind)
    truth = np.asarray(golden.truth[output], np.float64)[index]
    given = np.asarray(actual, np.float64)[index]
    sliced = not orders and truth.ndim > 1 and 1 < truth.shape[-1] <= _MOST_SLICES and truth.size
    width = truth.shape[-1] if sliced else 1
    rows, found = truth.reshape(-1, width), given.reshape(-1, width)
    if step is None:
        values = np.unique(given[np.isfinite(given)])
        step = float(np.diff(values).min()) if len(values) > 1 else 0.0
    slices = Slices.of(rows, found, samples=len(index), step=step) if sliced else None
    powers = _powers(rows, found) if slices is None else (slices.signal, slices.noise)
    signal, noise = (float(np.sum(power)) for power in powers)
    return OutputQuality(
        output=output,
        kind=kind,
        samples=len(index),
        snr_db=None if orders else power_decibels(signal, noise),
        slices=slices,
        step=step,
    )


def _log_alike(levels: np.ndarray) -> float:
    """Return the logarithm of the probability that N draws with the shares of N levels are one."""
    _, counts = np.unique(levels, return_counts=True)
    logarithms = len(levels) * np.log(counts / len(levels))
    return float(np.logaddexp.reduce(logarithms))


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
