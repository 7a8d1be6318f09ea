"""The quality of each output relative to the trained model, on typical samples.

These are the real samples, or the random ones if there are none. One signal-to-noise ratio for a
whole output hides a part of it that is lost, so each slice of the last axis has its own.
"""

from __future__ import annotations

import math
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
class OutputQuality:
    """The quality of one output on typical samples.

    Attributes:
        output: Keras output name.
        kind: Those samples: "real", "random", … or "all".
        samples: How many they are.
        snr_db: The truth's power over the error's, in decibels; None if the truth is zero, or if
            the output consists of class numbers.
        slice_db: The same for each slice of the last axis; empty for an output without one.
        dead: Slices of the last axis that are constant in the file and not in the trained model.
        dead_span: Their greatest variation in the trained model.
        step: The least distance between two different values of the output.
    """

    output: str
    kind: str
    samples: int
    snr_db: float | None
    slice_db: tuple[float | None, ...]
    dead: tuple[int, ...]
    dead_span: float
    step: float

    def to_json(self) -> dict[str, Any]:
        """Return nested dictionaries for JSON, without the output's name."""
        return {key: value for key, value in vars(self).items() if key != "output"}


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
    sliced = not orders and truth.ndim > 1 and 1 < truth.shape[-1] <= _MOST_SLICES
    width = truth.shape[-1] if sliced else 1
    rows, found = truth.reshape(-1, width), given.reshape(-1, width)
    usable = np.isfinite(rows) & np.isfinite(found)
    signal = np.sum(np.square(np.where(usable, rows, 0.0)), axis=0)
    error = np.where(usable, found - np.where(usable, rows, 0.0), 0.0)
    noise = np.sum(np.square(error), axis=0)
    values = np.unique(found[np.isfinite(found)])
    dead = _dead(rows, found) if sliced and usable.all() else ()
    return OutputQuality(
        output=output,
        kind=kind,
        samples=len(index),
        snr_db=None if orders else power_decibels(float(signal.sum()), float(noise.sum())),
        slice_db=tuple(map(power_decibels, signal.tolist(), noise.tolist())) if sliced else (),
        dead=dead,
        dead_span=float(np.ptp(rows[:, dead], axis=0).max(initial=0.0)),
        step=float(np.diff(values).min()) if len(values) > 1 else 0.0,
    )


def power_decibels(signal: float, noise: float) -> float | None:
    """Return a ratio of powers in decibels; None if there is no signal."""
    if signal == 0:
        return None
    return math.inf if noise == 0 else 10 * math.log10(signal / noise)


def _dead(truth: np.ndarray, found: np.ndarray) -> tuple[int, ...]:
    """Return the columns that are constant in the second array and vary in the first."""
    spans, sizes = np.ptp(truth, axis=0), np.abs(truth).max(axis=0)
    low, high = np.quantile(truth, [0.25, 0.75], axis=0)
    scores = (truth.min(axis=0) >= 0) & (sizes <= 1)
    usual = (spans > _SMALL_PART * sizes) & (high - low > _MIDDLE * spans)
    varies = np.where(scores, spans > _SMALL_SCORE, usual)
    return tuple(np.flatnonzero(varies & (np.ptp(found, axis=0) == 0)).tolist())
