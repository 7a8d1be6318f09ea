"""Positions of values in a chart, in percent of its width, so that it fits every screen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Tick:
    """A labelled line of an axis; ``at`` is in percent of the chart's width."""

    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A linear map from values to percent of a chart's width.

    Values beyond an end are drawn at ``under`` or ``over``, outside the ends, so that "exact" and
    "infinite" have their own positions.

    Attributes:
        low: Value at ``start``.
        high: Value at ``end``.
        ticks: Labelled lines.
        start: Percent of the width where the scale begins.
        end: Percent of the width where it ends.
        under: Position of values below ``low``.
        over: Position of values above ``high``.
    """

    low: float
    high: float
    ticks: tuple[Tick, ...]
    start: float
    end: float
    under: float
    over: float

    def at(self, value: float) -> float:
        """Return the position of a value in percent; NaN counts as beyond the end."""
        if math.isnan(value) or value > self.high:
            return self.over
        if value < self.low:
            return self.under
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)


def log_axis(
    values: Iterable[float],
    *,
    least: int,
    most: int,
    under: str = "0",
    always: tuple[int, int] | None = None,
) -> Axis:
    """Return an axis over the decades of some positive values, mapping their log10.

    Args:
        values: The values to show; zeros and infinities are drawn beyond the ends.
        least: Lowest decade to show.
        most: Highest decade to show.
        under: Label of the position below, for zero and smaller values.
        always: Decades to show in any case.
    """
    decades = [math.log10(v) for v in values if 0 < v < math.inf]
    decades.extend(always or ())
    if not decades:
        decades = [0.0]
    low = min(max(least, math.floor(min(decades))), most - 1)
    high = min(most, max(low + 1, math.ceil(max(decades))))
    return _axis(low, high, _decade_step(high - low), lambda e: _power(int(e)), under, "∞")


def decibel_axis(values: Iterable[float]) -> Axis:
    """Return an axis of signal-to-noise ratios: exact at the left, no signal at the right."""
    finite = [value for value in values if math.isfinite(value)]
    best = 20 * max(2, math.ceil(max(finite, default=140.0) / 20))
    return _axis(-best, 0, 20 if best <= 180 else 40, lambda v: f"{-int(v)}", "exact", "lost")


def exponent(value: float) -> float:
    """Return log10 for a logarithmic axis: zero is below every decade, infinity above."""
    if value == 0:
        return -math.inf
    return math.log10(value) if math.isfinite(value) else value


def _axis(
    low: float, high: float, step: float, label: Callable[[float], str], under: str, over: str
) -> Axis:
    start, end, outside = 12.0, 92.0, (4.0, 98.0)
    count = math.floor((high - low) / step + 1e-9)
    axis = Axis(low, high, (), start, end, *outside)
    inner = [Tick(axis.at(low + i * step), label(low + i * step)) for i in range(count + 1)]
    ticks = (Tick(outside[0], under), *inner, Tick(outside[1], over))
    return Axis(low, high, ticks, start, end, *outside)


def _decade_step(decades: int) -> int:
    """Return how many decades lie between ticks, for at most eight of them."""
    return max(1, math.ceil(decades / 7))


def _power(exponent: int) -> str:
    """Return a power of ten as a short label."""
    plain = {-2: "0.01", -1: "0.1", 0: "1", 1: "10", 2: "100"}
    digits = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return plain.get(exponent, f"10{digits}")
