"""Prints a fold report: a table with one row for each norm, and the reasons of those kept."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ..export.fold import FoldReport, NormRecord

_COLUMNS = ("norm", "outcome", "into", "ops remaining", "int8 range growth")
_COLOURS = {"folded": "green", "partly folded": "yellow", "kept": "red"}


def print_report(console: Console, report: FoldReport) -> None:
    """Print one row for each norm, the reason for each norm that is kept, and a summary."""
    if not report.records:
        console.print(report.summary)
        return
    # Reasons are sentences: they go below the table, whose columns stay readable at 80 characters.
    table = Table(box=None, header_style="bold", pad_edge=False)
    rows = [_cells(record) for record in report.records]
    shown = [any(cells) for cells in zip(*rows, strict=True)]  # others only narrow the names
    for title in itertools.compress(_COLUMNS, shown):
        if title == _COLUMNS[-1]:
            table.add_column(title, justify="right", no_wrap=True)
        else:
            table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*itertools.compress(row, shown))
    console.print(table)
    for record in report.records:
        if record.reason:
            name = f"{escape(record.name)} ({record.layer_type})"
            console.print(f"[bold]{name}[/] {escape(record.reason)}")
    console.print(report.summary)


def _cells(record: NormRecord) -> tuple[str, ...]:
    into = ", ".join(record.into[:3]) + (
        f" and {len(record.into) - 3} more" if len(record.into) > 3 else ""
    )
    return (
        escape(record.name),
        f"[{_COLOURS[record.outcome]}]{record.outcome}[/]",
        escape(into),
        " ".join(record.remaining_ops),
        "" if record.range_growth == 1 else f"x{record.range_growth:.3g}",
    )
