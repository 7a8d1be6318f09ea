"""Totals of each part of the samples, and their sum.

Parts are always added in the order of the samples, so the totals do not depend, to the last bit, on
which process judged which part.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from ...artifacts.ranges import Clipped, Misfits, Overflow
from ...artifacts.sample_kinds import REAL
from ..end_to_end.chance import mcnemar
from ..end_to_end.quality import OutputQuality, Slices, power_decibels
from ..end_to_end.task_agreement import TaskAgreement, beyond_guessing

# Bins of a classifier's odds, in powers of two; the median is the lower end of its bin.
_PER_OCTAVE, _OCTAVES = 4, 16

Counts = tuple[tuple[Any, int], ...]
_Totals = TypeVar("_Totals", "TaskTotals", Slices)


@dataclasses.dataclass(frozen=True)
class TaskTotals:
    """Decisions of one output on real samples; see `TaskAgreement` for the other attributes.

    Attributes:
        confusion: (before, after) of changed decisions, and their number.
        odds: Number of samples in each bin of odds.
        labels: Labels, and the number of samples with each.
    """

    samples: int
    changed: int
    flips: int
    confusion: Counts
    labelled: int
    right_before: int
    right_after: int
    lost: int
    gained: int
    odds: tuple[int, ...]
    labels: Counts

    @classmethod
    def of(cls, task: TaskAgreement, odds: np.ndarray, labels: np.ndarray) -> TaskTotals:
        """Return the totals of one part.

        Args:
            task: Its decisions.
            odds: Odds of the trained model's decisions.
            labels: The labels that are known.
        """
        with np.errstate(divide="ignore"):
            place = np.floor(np.log2(odds) * _PER_OCTAVE).clip(0, _OCTAVES * _PER_OCTAVE - 1)
        counted = np.bincount(place.astype(int), minlength=_OCTAVES * _PER_OCTAVE)
        return cls(
            samples=task.samples,
            changed=task.changed,
            flips=task.flips,
            confusion=tuple(sorted(((a, b), count) for a, b, count in task.confusion)),
            labelled=task.labelled,
            right_before=task.right_before,
            right_after=task.right_after,
            lost=task.lost,
            gained=task.gained,
            odds=tuple(counted.tolist()),
            labels=tuple(sorted(Counter(labels.tolist()).items())),
        )

    def plus(self, other: TaskTotals) -> TaskTotals:
        """Return the totals of this part and another one."""
        added = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("confusion", "odds", "labels")
        }
        return TaskTotals(
            **added,
            confusion=_joined(self.confusion, other.confusion),
            odds=tuple(a + b for a, b in zip(self.odds, other.odds)),
            labels=_joined(self.labels, other.labels),
        )

    def agreement(self, output: str) -> TaskAgreement:
        """Return the totals in the form that the quality gates judge."""
        below = np.cumsum(self.odds)
        median = int(np.searchsorted(below, (self.samples + 1) // 2))
        ordered = sorted(self.confusion, key=lambda entry: -entry[1])
        return TaskAgreement(
            output=output,
            kind=REAL,
            samples=self.samples,
            changes=(),
            changed=self.changed,
            flips=self.flips,
            confusion=tuple((a, b, count) for (a, b), count in ordered),
            labelled=self.labelled,
            right_before=self.right_before,
            right_after=self.right_after,
            lost=self.lost,
            gained=self.gained,
            chance=mcnemar(self.lost, self.gained) if self.labelled else None,
            odds=2 ** (median / _PER_OCTAVE),
            beyond_guessing=beyond_guessing(self.right_before, dict(self.labels)),
        )


@dataclasses.dataclass(frozen=True)
class OutputTotals:
    """One output of one file on one target.

    Attributes:
        output: Keras output name.
        samples: N.
        elements: Elements compared.
        real: Number of samples without NaN or infinity; the sums below are over these.
        signal: Sum of the mean squares of these samples' truth.
        error: Sum of the mean squares of their errors.
        ratios: Sum of the squares of their errors over their expected noise.
        max_abs: Greatest absolute error.
        max_abs_sample: Number of the sample with that error.
        worst: Greatest error of a sample divided by its expected noise.
        worst_sample: Number of that sample.
        over: Number of samples above the limit on a single sample.
        worst_limit: The limit on a single sample.
        pooled_limit: The limit on all samples together.
        reason: Origin of the expected noise.
        against: What the output was compared with.
        slices: Totals of each slice of the last axis; None for an output without one.
        step: The least distance between two different values in one part; 0 if there is none.
        task: Its decisions; None for an output without decisions.
    """

    output: str
    samples: int
    elements: int
    real: int
    signal: float
    error: float
    ratios: float
    max_abs: float
    max_abs_sample: int
    worst: float
    worst_sample: int
    over: int
    worst_limit: float
    pooled_limit: float
    reason: str
    against: str
    slices: Slices | None
    step: float
    task: TaskTotals | None = None

    @property
    def pooled(self) -> float:
        """Root mean square of the errors over their expected noise."""
        return math.sqrt(self.ratios / self.real) if self.real else 0.0

    @property
    def snr_db(self) -> float | None:
        """Signal-to-noise ratio in decibels; None without a signal."""
        return power_decibels(self.signal, self.error)

    @property
    def quality(self) -> OutputQuality:
        """The quality of the output on all samples."""
        return OutputQuality(
            output=self.output,
            kind=REAL,
            samples=self.real,
            snr_db=self.snr_db,
            slices=self.slices,
            step=self.step,
        )

    @property
    def within(self) -> bool:
        """Whether the errors are within the limits."""
        return self.worst <= self.worst_limit and self.pooled <= self.pooled_limit

    def plus(self, other: OutputTotals) -> OutputTotals:
        """Return the totals of this part and a later one."""
        added = ("samples", "elements", "real", "signal", "error", "ratios", "over")
        sums = {name: getattr(self, name) + getattr(other, name) for name in added}
        largest = self if self.max_abs >= other.max_abs else other
        worst = self if self.worst >= other.worst else other
        return dataclasses.replace(
            worst,
            **sums,
            max_abs=largest.max_abs,
            max_abs_sample=largest.max_abs_sample,
            slices=_sum(self.slices, other.slices),
            step=min(filter(None, (self.step, other.step)), default=0.0),
            task=_sum(self.task, other.task),
        )

    def to_json(self) -> dict[str, Any]:
        """Return nested dictionaries for JSON, without the output's name."""
        task = None
        if self.task is not None:
            task = self.task.agreement(self.output).to_json()
            del task["changes"]
        own = {key: value for key, value in vars(self).items() if key not in ("output", "slices")}
        quality = self.quality.to_json()
        sliced = {key: quality[key] for key in ("snr_db", "slice_db", "dead", "dead_span")}
        return {**own, **sliced, "pooled": self.pooled, "task": task}


@dataclasses.dataclass(frozen=True)
class Failure:
    """A check that failed in some parts, other than a limit on totals.

    Attributes:
        check: Name of the check.
        subject: The output or layer concerned.
        message: Message of the first part that failed.
        start: Number of that part's first sample.
        parts: Number of parts that failed.
    """

    check: str
    subject: str
    message: str
    start: int
    parts: int = 1


@dataclasses.dataclass(frozen=True)
class FileTotals:
    """One file on one target.

    Attributes:
        artifact: File name.
        target: The target.
        samples: N.
        outputs: Totals of each output.
        failures: Other checks that failed.
        misfits: Values that the file cannot represent.
    """

    artifact: str
    target: str
    samples: int
    outputs: tuple[OutputTotals, ...]
    failures: tuple[Failure, ...]
    misfits: Misfits

    def plus(self, other: FileTotals) -> FileTotals:
        """Return the totals of this part and a later one."""
        return dataclasses.replace(
            self,
            samples=self.samples + other.samples,
            outputs=_by_name(self.outputs, other.outputs),
            failures=_failures((*self.failures, *other.failures)),
            misfits=_misfits(self, other),
        )


def added(parts: Iterable[Sequence[FileTotals]]) -> tuple[FileTotals, ...]:
    """Return the totals of all parts, given in the order of the samples."""

    def plus(first: Sequence[FileTotals], second: Sequence[FileTotals]) -> tuple[FileTotals, ...]:
        return tuple(a.plus(b) for a, b in zip(first, second))

    total: Sequence[FileTotals] = functools.reduce(plus, parts)
    return tuple(total)


def _sum(first: _Totals | None, second: _Totals | None) -> _Totals | None:
    """Add the totals of two parts, each of which may have none."""
    if first is None or second is None:
        return second if first is None else first
    return first.plus(second)


def _joined(first: Counts, second: Counts) -> Counts:
    return tuple(sorted((Counter(dict(first)) + Counter(dict(second))).items()))


def _by_name(
    first: tuple[OutputTotals, ...], second: tuple[OutputTotals, ...]
) -> tuple[OutputTotals, ...]:
    """Add outputs by name; an output that could not be compared is absent from its part."""
    found = {entry.output: entry for entry in first}
    for entry in second:
        known = found.get(entry.output)
        found[entry.output] = entry if known is None else known.plus(entry)
    return tuple(found.values())


def _failures(failures: Iterable[Failure]) -> tuple[Failure, ...]:
    found: dict[tuple[str, str], Failure] = {}
    for entry in failures:
        key = entry.check, entry.subject
        known = found.get(key)
        found[key] = (
            entry if known is None else dataclasses.replace(known, parts=known.parts + entry.parts)
        )
    return tuple(found.values())


def _misfits(first: FileTotals, second: FileTotals) -> Misfits:
    clipped: dict[str, Clipped] = {}
    total = first.samples + second.samples
    for file in (first, second):
        for entry in file.misfits.clipped:
            share = entry.share * file.samples / total
            known = clipped.get(entry.place)
            clipped[entry.place] = (
                dataclasses.replace(entry, share=share)
                if known is None
                else dataclasses.replace(
                    known,
                    share=known.share + share,
                    values=known.values + entry.values,
                    least=min(known.least, entry.least),
                    most=max(known.most, entry.most),
                )
            )
    overflows: dict[tuple[str, str], Overflow] = {}
    for found in (*first.misfits.overflows, *second.misfits.overflows):
        key = found.layer, found.what
        if key not in overflows or found.size > overflows[key].size:
            overflows[key] = found
    ordered = sorted(clipped.values(), key=lambda entry: -entry.share)
    return Misfits(tuple(ordered), tuple(overflows.values()))
