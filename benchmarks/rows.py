"""The result of a part of `make bench`: one row per measurement, with its spread."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

# Two-sided 95 % quantiles of Student's t by degrees of freedom; the normal one beyond.
_STUDENT = dict(enumerate((12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26), start=1))


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
        case: What was measured on: a row of the table.
        subject: What was measured: a column of the table.
        unit: Unit of the number; "ratio", "share" or "count" without one.
        value: Median or mean.
        low: Lower end of its spread: the first quartile, or of the 95 % interval of the mean.
        high: Upper end.
        count: Number of measurements.
    """

    case: str
    subject: str
    unit: str
    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.case}: {self.subject} {self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def median_row(case: str, subject: str, unit: str, values: Sequence[float]) -> Row:
    """Return the median with its quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return _rounded(case, subject, unit, middle, low, high, len(values))


def count_row(case: str, subject: str, number: int) -> Row:
    """Return a number that was counted."""
    return _rounded(case, subject, "count", number, number, number, 1)


def mean_row(case: str, subject: str, unit: str, values: Sequence[float]) -> Row:
    """Return the mean with its 95 % interval, after Student."""
    mean, half = statistics.fmean(values), 0.0
    if len(values) > 1:
        t = _STUDENT.get(len(values) - 1, 1.96)
        half = t * statistics.stdev(values) / math.sqrt(len(values))
    return _rounded(case, subject, unit, mean, mean - half, mean + half, len(values))


def write(rows: Sequence[Row], path: str | Path | None) -> None:
    """Write the rows as JSON; without a path, nothing."""
    if path is not None:
        Path(path).write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))


def _rounded(
    case: str, subject: str, unit: str, value: float, low: float, high: float, count: int
) -> Row:
    return Row(case, subject, unit, round(value, 4), round(low, 4), round(high, 4), count)
