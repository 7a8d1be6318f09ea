"""The table that `inspect` and `fold` print: one row a norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ..export.fold import FoldReport, NormRecord

_COLOURS = {"folded": "green", "partly folded": "yellow", "kept": "red"}


def print_report(console: Console, report: FoldReport) -> None:
    """Print one row a norm and a line that sums up."""
    if not report.records:
        console.print("The network has no norms.")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("norm", "type", "outcome", "into"):
        table.add_column(title, overflow="fold")
    table.add_column("left", overflow="fold")
    table.add_column("range", justify="right")
    table.add_column("why not", overflow="fold", ratio=1)
    for record in report.records:
        table.add_row(*_cells(record))
    console.print(table)
    console.print(
        f"{report.folded} of {len(report.records)} norms fold completely, "
        f"{report.remaining_ops} operations are left of the others."
    )


def _cells(record: NormRecord) -> tuple[str, ...]:
    into = ", ".join(record.into[:3]) + (
        f" and {len(record.into) - 3} more" if len(record.into) > 3 else ""
    )
    return (
        escape(record.name),
        record.layer_type,
        f"[{_COLOURS[record.outcome]}]{record.outcome}[/]",
        escape(into),
        " ".join(record.remaining_ops),
        "" if record.range_growth == 1 else f"x{record.range_growth:.3g}",
        escape(record.reason),
    )
