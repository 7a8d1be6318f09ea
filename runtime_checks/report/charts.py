"""The charts of the HTML page as geometry; `charts.html.j2` draws them as SVG without scripts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...artifacts.golden_set import GoldenSet
from ..end_to_end.error_budget import FAULT, ErrorBudget, Stage, decibels
from ..end_to_end.findings import OutputVerdict, TargetResult
from .axes import Axis, decibel_axis, exponent, log_axis
from .op_points import OpPoint

if TYPE_CHECKING:
    from ..check_record import CheckRecord

# Samples drawn for each kind; more would overlap.
_MARKS = 60

STAGES = ("folded", "exported", "quantized", "target")


@dataclass(frozen=True)
class Mark:
    """A point of a chart.

    Attributes:
        at: Percent of the width.
        style: CSS class for its stage, kind or verdict.
        title: Tooltip.
    """

    at: float
    style: str
    title: str


@dataclass(frozen=True)
class Segment:
    """A part of a bar: width in percent, and its CSS class."""

    width: float
    style: str
    title: str


@dataclass(frozen=True)
class BudgetRow:
    """The stages of one output; ``output`` is empty if there is only one."""

    artifact: str
    target: str
    output: str
    anchor: str
    passed: bool
    cause: str
    marks: tuple[Mark, ...]
    reference: Mark
    segments: tuple[Segment, ...]
    final: str


@dataclass(frozen=True)
class BudgetChart:
    """The error budgets of all results on one axis."""

    axis: Axis
    rows: tuple[BudgetRow, ...]
    stages: tuple[str, ...]


@dataclass(frozen=True)
class DriftRow:
    """One op: its own error, the error accumulated up to it, and its bound."""

    layer: str
    kind: str
    mark: Mark
    accumulated: Mark | None
    ratio: float
    faulty: bool


@dataclass(frozen=True)
class DriftChart:
    """Every checked op in the order in which it runs."""

    axis: Axis
    rows: tuple[DriftRow, ...]


@dataclass(frozen=True)
class SampleLane:
    """The samples of one kind against their bound."""

    kind: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class SampleChart:
    """Every sample's error over its expected noise, and the limit."""

    axis: Axis
    limit: float
    limit_label: str
    lanes: tuple[SampleLane, ...]


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram: position and sizes in percent of the chart."""

    at: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Histogram:
    """Histogram of the elements by the size of their error.

    Attributes:
        axis: Sizes of errors.
        bars: Number of the target's elements of each size.
        outline: The same for the float32 Keras model, as an SVG path in a box of 100 by 100.
    """

    axis: Axis
    bars: tuple[Bar, ...]
    outline: str


def anchor(result: TargetResult) -> str:
    """Return the anchor of a result on the page."""
    text = f"{result.artifact}--{result.target}"
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in text)


def budget_chart(report: CheckRecord) -> BudgetChart | None:
    """Return the chart of the error budgets of all compared outputs; None without any."""
    pairs = [(result, budget) for result in report.results for budget in result.stages]
    if not pairs:
        return None
    axis = decibel_axis(
        value
        for _, budget in pairs
        for value in (budget.reference_db, *(stage.snr_db for stage in budget.stages))
    )
    shown = {part for _, budget in pairs for s in budget.stages for part in s.name.split(" + ")}
    return BudgetChart(
        axis,
        tuple(_budget_row(result, budget, axis) for result, budget in pairs),
        tuple(stage for stage in STAGES if stage in shown),
    )


def _budget_row(result: TargetResult, budget: ErrorBudget, axis: Axis) -> BudgetRow:
    marks = []
    for stage in budget.stages:
        wrong = " wrong" if stage.cause == FAULT else ""
        marks.append(Mark(_place(axis, stage.snr_db), _style(stage) + wrong, _told(stage)))
    positive = sum(max(0.0, stage.share) for stage in budget.stages)
    segments = tuple(
        Segment(100 * stage.share / positive, _style(stage), _told(stage))
        for stage in budget.stages
        if positive and stage.share > 0
    )
    return BudgetRow(
        artifact=result.artifact,
        target=result.target,
        output=budget.output if len(result.stages) > 1 else "",
        anchor=anchor(result),
        passed=result.passed,
        cause=budget.cause,
        marks=tuple(marks),
        reference=Mark(
            _place(axis, budget.reference_db),
            "reference",
            f"float32 Keras model: {decibels(budget.reference_db)}",
        ),
        segments=segments,
        final=decibels(budget.stages[-1].snr_db),
    )


def _place(axis: Axis, snr_db: float) -> float:
    """Return the position of a signal-to-noise ratio: better ones are further left."""
    return axis.at(-snr_db)


def _style(stage: Stage) -> str:
    return stage.name.split(" + ")[-1]


def _told(stage: Stage) -> str:
    return (
        f"{stage.name}: {decibels(stage.snr_db)} after, RMS error {stage.error_rms:.3g}, "
        f"adds {stage.added_rms:.3g} ({100 * stage.share:.3g} % of the error, {stage.cause})"
    )


def drift_chart(points: Sequence[OpPoint]) -> DriftChart | None:
    """Return the chart of every checked operator; None if none was checked."""
    if not points:
        return None
    sizes = [point.relative for point in points]
    sizes.extend(point.accumulated for point in points if point.accumulated is not None)
    axis = log_axis(sizes, least=-18, most=3, under="exact")
    rows = []
    for point in points:
        kind = f"{point.op.kind} {point.op.index}" if point.op else "no op"
        told = f"{point.layer} ({kind}): adds {point.relative:.3g} of its value"
        total = point.accumulated
        rows.append(
            DriftRow(
                layer=point.layer,
                kind=kind,
                mark=Mark(
                    axis.at(exponent(point.relative)),
                    "wrong" if point.faulty else "held",
                    f"{told}, {point.ratio:.3g} of its bound",
                ),
                accumulated=None
                if total is None
                else Mark(axis.at(exponent(total)), "total", f"{total:.3g} up to {point.layer}"),
                ratio=point.ratio,
                faulty=point.faulty,
            )
        )
    return DriftChart(axis, tuple(rows))


def sample_chart(entry: OutputVerdict, golden: GoldenSet) -> SampleChart:
    """Return the chart of every sample of one output against its bound."""
    ratios = entry.ratios
    axis = log_axis([*ratios.tolist(), entry.bound.worst], least=-3, most=8, always=(-1, 1))
    lanes = []
    for kind in dict.fromkeys(str(kind) for kind in golden.kind):
        index = np.flatnonzero(golden.kind == kind)
        marks = [
            Mark(
                axis.at(exponent(float(ratios[i]))),
                "held" if ratios[i] <= entry.bound.worst else "wrong",
                f"sample {i} ({kind}): {ratios[i]:.3g}x the expected noise",
            )
            for i in _spread(index, ratios)
        ]
        lanes.append(SampleLane(f"{kind} ({len(index)})", tuple(marks)))
    return SampleChart(
        axis, axis.at(math.log10(entry.bound.worst)), f"{entry.bound.worst:g}x", tuple(lanes)
    )


def _spread(index: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """Return representative samples: the extremes, and evenly spaced ranks in between."""
    ranked = index[np.argsort(ratios[index])]
    places = np.linspace(0, len(ranked) - 1, min(len(ranked), _MARKS))
    return np.asarray(ranked[places.round().astype(int)])


def error_histogram(
    actual: np.ndarray, reference: np.ndarray, truth: np.ndarray
) -> Histogram | None:
    """Return elements by the size of their error, three bars a decade; None without any."""
    sizes = [_sizes(values, truth) for values in (actual, reference)]
    if not len(sizes[0]):
        return None
    positive = [float(value) for part in sizes for value in part if 0 < value < np.inf]
    # Errors more than twelve decades below the greatest count as exact.
    top = math.ceil(exponent(max(positive, default=1.0)))
    axis = log_axis(positive, least=top - 12, most=top, under="less")
    edges = np.linspace(axis.low, axis.high, max(1, round(3 * (axis.high - axis.low))) + 1)
    counts = [_counts(part, edges) for part in sizes]
    highest = max(1, *(int(part.max()) for part in counts))
    width = (axis.end - axis.start) / (len(edges) - 1)
    bars, outline = [], []
    for place, (got, known) in enumerate(zip(*counts, strict=True)):
        at = axis.start + width * (place - 1) if place else axis.under - width / 2
        span = f"{10 ** edges[place - 1]:.2g} to {10 ** edges[place]:.2g}" if place else "exact"
        title = f"error {span}: {got} elements on the target, {known} in the float32 model"
        if got:
            bars.append(Bar(at, width, 100 * got / highest, title))
        level = 100 - 100 * known / highest
        outline.append(f"{'L' if place > 1 else 'M'}{at:.2f} {level:.1f}H{at + width:.2f}")
    return Histogram(axis, tuple(bars), "".join(outline))


def _sizes(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the absolute errors of the elements that are finite on both sides."""
    y, t = np.asarray(values, np.float64).ravel(), truth.astype(np.float64).ravel()
    both = np.isfinite(y) & np.isfinite(t)
    return np.abs(y[both] - t[both])


def _counts(sizes: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the number of exact elements, and of those in each bar; the end bars are open."""
    exact = int(np.sum(sizes == 0))
    logs = np.clip(np.log10(sizes[sizes > 0]), edges[0], edges[-1])
    return np.concatenate([[exact], np.histogram(logs, edges)[0]])
