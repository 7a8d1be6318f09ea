"""A figure of the norms in a training run: loss, clipping, required bounds and gap to inference.

The loss is on top. Below it is one column for each quantity: curves of the whole network, then a
map with one row per norm. The ranges of quantization-aware training are drawn the same way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..files import atomic_path
from .observed import Reading
from .quantize_aware.diagnostics import RangeReading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _GREY, _ACCENT = "#1f2933", "#9aa5b1", "#c2410c"
_MOST_NAMES = 64
_FARTHEST_BOUND = 1.5  # of the height of the curves: a bound above is drawn as far as this


@dataclass(frozen=True)
class _Column:
    """The content of one column.

    Attributes:
        title: Title of the rows below.
        value: Returns the value that the rows show of a reading.
        need: Returns the value that the curves show of a reading.
        bound: Returns the bound drawn with the curves; None without one.
        label: Title of the curves.
        unit: Label of their axis.
        scale: Label of the color bar.
        colors: Name of the color map.
        most: Where the color map ends; None for the largest value.
        least: Lower end of the curves' axis.
    """

    title: str
    value: Callable[[Any], float]
    need: Callable[[Any], float]
    bound: Callable[[Any], float] | None
    label: str
    unit: str
    scale: str
    colors: str
    most: float | None
    least: float = 0.0


@dataclass(frozen=True)
class _Subject:
    """Texts and columns of the figure for one kind of readings.

    Attributes:
        title: Title of the figure.
        noun: Name of the thing that one row shows.
        axis: Label of the horizontal axis.
        at: Returns the position of a reading on that axis.
        columns: The columns.
    """

    title: str
    noun: str
    axis: str
    at: Callable[[Any], int]
    columns: tuple[_Column, ...]


_NORM_COLUMNS = (
    _Column(
        "Channels whose r is clipped",
        lambda reading: reading.r_clipped,
        lambda reading: reading.r_99,
        lambda reading: reading.r_max,
        "Scale correction r",
        "r needed by 99 %",
        "share of the norm's channels",
        "Blues",
        1.0,
        1.0,
    ),
    _Column(
        "Channels whose d is clipped",
        lambda reading: reading.d_clipped,
        lambda reading: reading.d_99,
        lambda reading: reading.d_max,
        "Shift correction d",
        "|d| needed by 99 %",
        "share of the norm's channels",
        "Blues",
        1.0,
    ),
    _Column(
        "Gap of each norm",
        lambda reading: reading.gap,
        lambda reading: reading.gap,
        None,
        "Gap between training and inference",
        "standard deviations",
        "standard deviations",
        "Oranges",
        None,
    ),
)
_RANGE_COLUMNS = (
    _Column(
        "Clipped values of each range",
        lambda reading: reading.clipped,
        lambda reading: reading.clipped,
        None,
        "Clipped values",
        "share of the values",
        "share of the values",
        "Blues",
        None,
    ),
    _Column(
        "Upper end of each range",
        lambda reading: reading.high,
        lambda reading: reading.high - reading.low,
        None,
        "Width of the range",
        "high - low",
        "upper end",
        "Greens",
        None,
    ),
    _Column(
        "Step of each range",
        lambda reading: reading.step,
        lambda reading: reading.step,
        None,
        "Step",
        "distance of two integers",
        "distance of two integers",
        "Oranges",
        None,
    ),
)
_NORMS = _Subject(
    "Batch renormalization in training", "norm", "training step", lambda r: r.step, _NORM_COLUMNS
)
_RANGES = _Subject(
    "Ranges in quantization-aware training", "range", "epoch", lambda r: r.epoch, _RANGE_COLUMNS
)


def plot_diagnostics(
    readings: Sequence[Reading] | Sequence[RangeReading],
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draw the readings of `RenormDiagnostics` or of `QuantizationDiagnostics`.

    The training loss is at the top, if it was reported. The columns below show how many channels
    have r clipped, how many have d clipped, and the gap to inference. The curves show
    each norm (thin) and their median (thick) against the bound in force (dashed); the map shows
    each norm, in the order of the network, over the steps. For `QuantizationDiagnostics` the
    columns show the share of clipped values, the range and the step, over the epochs.

    Args:
        readings: ``callback.readings``.
        path: Where to write the figure; the suffix chooses the format (.png, .svg, .pdf). None
            writes nothing.

    Returns:
        The matplotlib figure.

    Raises:
        UserError: There are no readings, or the suffix is unknown.
    """
    if not readings:
        raise UserError(
            "There is nothing to draw: RenormDiagnostics or QuantizationDiagnostics has no "
            "readings yet. Train with it in the callbacks of fit() first."
        )
    from matplotlib.figure import Figure

    subject = _RANGES if isinstance(readings[0], RangeReading) else _NORMS
    steps = sorted({subject.at(reading) for reading in readings})
    layers = list(dict.fromkeys(reading.layer for reading in readings))
    height = float(np.clip(0.17 * len(layers), 1.4, 11.0))
    losses = {
        reading.step: reading.loss
        for reading in readings
        if isinstance(reading, Reading) and np.isfinite(reading.loss)
    }
    heights = [*([1.2] if losses else []), 1.6, height]
    figure = Figure(figsize=(13.0, 2.6 + sum(heights)), layout="constrained", dpi=130)
    grid = figure.add_gridspec(len(heights), len(subject.columns), height_ratios=heights)
    axes = (
        grid[-2:, :]
        .subgridspec(2, len(subject.columns), height_ratios=heights[-2:])
        .subplots(sharex=True, squeeze=False)
    )
    table = _Table(subject, readings, steps, layers)
    for column, (above, below) in zip(subject.columns, axes.T, strict=True):
        _curves(above, column, table)
        _map(below, column, table)
    if losses:
        _loss(figure.add_subplot(grid[0, :]), losses, steps)
    for below in axes[1, 1:]:
        below.tick_params(left=False, labelleft=False)
    rows = f"{len(layers)} {subject.noun}{'s' if len(layers) > 1 else ''}"
    observed = f"{len(steps)} observed {subject.axis.rpartition(' ')[2]}s"
    figure.suptitle(
        f"{subject.title}: {rows}, {observed}",
        color=_INK, fontsize=13, fontweight="bold", x=0.01, ha="left",
    )  # fmt: skip
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, frameon=False, fontsize=9, ncols=len(labels), loc="upper right",
        borderaxespad=0.2,
    )  # fmt: skip
    if path is not None:
        _write(figure, Path(path))
    return figure


@dataclass(frozen=True)
class _Table:
    """Readings as one row per layer and one column per step."""

    subject: _Subject
    readings: Sequence[Any]
    steps: list[int]
    layers: list[str]

    def of(self, value: Callable[[Any], float]) -> NDArray[np.float64]:
        """Return a quantity for each layer and step; NaN without a reading."""
        row, at = ({key: i for i, key in enumerate(keys)} for keys in (self.layers, self.steps))
        table = np.full((len(self.layers), len(self.steps)), np.nan)
        for reading in self.readings:
            table[row[reading.layer], at[self.subject.at(reading)]] = value(reading)
        return table


def _loss(axes: Axes, losses: Mapping[int, float], steps: list[int]) -> None:
    marker = "o" if len(losses) == 1 else ""
    axes.plot(list(losses), list(losses.values()), color=_INK, linewidth=1.8, marker=marker)
    _dress(axes, "Training loss", "mean of the epoch so far")
    axes.set_xlabel("training step", fontsize=9, color=_INK)
    axes.set_xlim(steps[0], max(steps[-1], steps[0] + 1))


def _dress(axes: Axes, title: str, unit: str) -> None:
    """Set the title, label and grid of axes with curves."""
    axes.set_title(title, loc="left", fontsize=10, color=_INK)
    axes.set_ylabel(unit, fontsize=8, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=_INK)
    axes.margins(x=0.0)


def _curves(axes: Axes, column: _Column, readings: _Table) -> None:
    steps, table = readings.steps, readings.of(column.need)
    marker = "o" if len(steps) == 1 else ""
    axes.plot(steps, table.T, color=_GREY, linewidth=0.6, alpha=0.5, marker=marker)
    axes.lines[0].set_label(f"one {readings.subject.noun}")
    axes.plot(
        steps, np.nanmedian(table, 0), color=_INK, linewidth=1.8, label="median", marker=marker
    )
    if column.bound is not None:
        bound = readings.of(column.bound)
        bound = np.where(np.isfinite(bound), bound, np.nan)
        if np.isfinite(bound).any():
            axes.plot(
                steps, np.nanmax(bound, 0), color=_ACCENT, linewidth=1.5, linestyle="--",
                label="bound",
            )  # fmt: skip
            # A bound that is far away, such as one that has opened, would flatten the curves.
            highest = np.nanmax(table, initial=column.least)
            far = column.least + _FARTHEST_BOUND * (highest - column.least)
            if highest > column.least and np.nanmax(bound) > far:
                axes.set_ylim(top=far)
    _dress(axes, column.label, column.unit)
    axes.set_ylim(bottom=column.least)


def _map(axes: Axes, column: _Column, readings: _Table) -> None:
    layers, table = readings.layers, readings.of(column.value)
    edges = _edges(readings.steps)
    image = axes.pcolormesh(
        edges, np.arange(len(layers) + 1) - 0.5, np.ma.masked_invalid(table),
        cmap=column.colors, vmin=0.0, vmax=column.most, rasterized=True,
    )  # fmt: skip
    axes.set_facecolor("#f0f0f0")
    axes.invert_yaxis()
    every = -(-len(layers) // _MOST_NAMES)
    axes.set_yticks(range(0, len(layers), every), layers[::every])
    axes.tick_params(labelsize=8 if len(layers) <= 24 else 6.5, colors=_INK, length=2)
    axes.set_title(column.title, loc="left", fontsize=10, color=_INK)
    axes.set_xlabel(readings.subject.axis, fontsize=9, color=_INK)
    axes.spines[:].set_visible(False)
    bar = axes.figure.colorbar(image, ax=axes, orientation="horizontal", aspect=40, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=_INK, length=2)
    bar.set_label(column.scale, fontsize=9, color=_INK)
    if column.most == 1.0:
        bar.ax.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")


def _edges(steps: list[int]) -> NDArray[np.float64]:
    """Return the boundaries of the cells of the steps: halfway to their neighbours."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middle = (np.array(steps[1:]) + steps[:-1]) / 2.0
    return np.concatenate([[steps[0]], middle, [steps[-1]]])


def _write(figure: Figure, path: Path) -> None:
    known = figure.canvas.get_supported_filetypes()
    ending = path.suffix.lstrip(".").lower()
    if ending not in known:
        raise UserError(
            f"Expected a file name that ends in {', '.join('.' + e for e in sorted(known))}. "
            f"Received: {path}."
        )
    with atomic_path(path) as partial:
        figure.savefig(partial, format=ending)
