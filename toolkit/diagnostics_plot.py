"""A figure of the norms in a training run: clipping, required bounds and gap to inference.

One column for each quantity: curves of the whole network on top, one row per norm below.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..files import atomic_path
from .observed import Reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _GREY, _ACCENT = "#1f2933", "#9aa5b1", "#c2410c"
_MOST_NAMES = 64


@dataclass(frozen=True)
class _Column:
    """The content of one column.

    Attributes:
        title: Title of the rows below.
        value: Returns the value that the rows show of a reading.
        need: Returns the value that the curves show of a reading.
        bound: Returns the bound drawn with the curves; None without one.
        label: Label of the curves.
        colors: Name of the color map.
        most: Where the color map ends; None for the largest value.
    """

    title: str
    value: Callable[[Reading], float]
    need: Callable[[Reading], float]
    bound: Callable[[Reading], float] | None
    label: str
    colors: str
    most: float | None


_COLUMNS = (
    _Column(
        "channels with r clipped",
        lambda reading: reading.r_clipped,
        lambda reading: reading.r_99,
        lambda reading: reading.r_max,
        "r of 99 % of channels within",
        "Blues",
        1.0,
    ),
    _Column(
        "channels with d clipped",
        lambda reading: reading.d_clipped,
        lambda reading: reading.d_99,
        lambda reading: reading.d_max,
        "|d| of 99 % of channels within",
        "Blues",
        1.0,
    ),
    _Column(
        "gap between training and inference",
        lambda reading: reading.gap,
        lambda reading: reading.gap,
        None,
        "gap, in standard deviations",
        "Oranges",
        None,
    ),
)


def plot_diagnostics(
    readings: Sequence[Reading], path: str | os.PathLike[str] | None = None
) -> Figure:
    """Draw the readings of `RenormDiagnostics`.

    The columns show how many channels have r clipped, how many have d clipped, and the gap between
    training and inference. The curves above show each norm (thin) and their median (thick)
    against the bound in force (dashed); the map below shows each norm, in the order of the network,
    over the steps.

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
            "There is nothing to draw: RenormDiagnostics has no readings yet. Train with it in the "
            "callbacks of fit() first."
        )
    from matplotlib.figure import Figure

    steps = sorted({reading.step for reading in readings})
    layers = list(dict.fromkeys(reading.layer for reading in readings))
    height = float(np.clip(0.17 * len(layers), 1.4, 11.0))
    figure = Figure(figsize=(13.0, 2.2 + 1.5 + height), layout="constrained", dpi=130)
    axes = figure.subplots(
        2, len(_COLUMNS), sharex=True, squeeze=False, height_ratios=[1.6, height]
    )
    for column, (above, below) in zip(_COLUMNS, axes.T, strict=True):
        _curves(above, column, readings, steps, layers)
        _map(below, column, readings, steps, layers)
    for below in axes[1, 1:]:
        below.tick_params(left=False, labelleft=False)
    norms = "1 norm" if len(layers) == 1 else f"{len(layers)} norms"
    figure.suptitle(
        f"Batch renormalization in training: {norms}, {len(steps)} observed steps",
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


def _table(
    value: Callable[[Reading], float],
    readings: Sequence[Reading],
    steps: list[int],
    layers: list[str],
) -> NDArray[np.float64]:
    """Return one row per layer and one column per step, NaN where there is no reading."""
    row, at = ({key: i for i, key in enumerate(keys)} for keys in (layers, steps))
    table = np.full((len(layers), len(steps)), np.nan)
    for reading in readings:
        table[row[reading.layer], at[reading.step]] = value(reading)
    return table


def _curves(
    axes: Axes, column: _Column, readings: Sequence[Reading], steps: list[int], layers: list[str]
) -> None:
    table = _table(column.need, readings, steps, layers)
    marker = "o" if len(steps) == 1 else ""
    axes.plot(steps, table.T, color=_GREY, linewidth=0.6, alpha=0.5, marker=marker)
    axes.lines[0].set_label("one norm")
    axes.plot(
        steps, np.nanmedian(table, 0), color=_INK, linewidth=1.8, label="median", marker=marker
    )
    if column.bound is not None:
        bound = _table(column.bound, readings, steps, layers)
        bound = np.where(np.isfinite(bound), bound, np.nan)
        if np.isfinite(bound).any():
            axes.plot(
                steps, np.nanmax(bound, 0), color=_ACCENT, linewidth=1.5, linestyle="--",
                label="bound",
            )  # fmt: skip
    axes.set_title(column.label, loc="left", fontsize=10, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=_INK)
    axes.margins(x=0.0)
    axes.set_ylim(bottom=1.0 if column.label.startswith("r ") else 0.0)


def _map(
    axes: Axes, column: _Column, readings: Sequence[Reading], steps: list[int], layers: list[str]
) -> None:
    table = _table(column.value, readings, steps, layers)
    edges = _edges(steps)
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
    axes.set_xlabel("training step", fontsize=9, color=_INK)
    axes.spines[:].set_visible(False)
    bar = axes.figure.colorbar(image, ax=axes, orientation="horizontal", aspect=40, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=_INK, length=2)
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
