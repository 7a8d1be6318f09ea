"""The report on a terminal: one table, a verdict for each artifact on each target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..verdict import OutputVerdict, TargetResult

if TYPE_CHECKING:
    from ..parity import ParityReport


def print_report(report: ParityReport, console: Console) -> None:
    """Print the table, then one paragraph for each failure."""
    console.print(f"[bold]{escape(report.name)}[/]: {report.samples} samples against float64")
    for artifact in dict.fromkeys(result.artifact for result in report.results):
        console.print(_table(report, artifact))
    console.print(
        "noise: error over the error that the arithmetic explains, all samples; worst: of one "
        "sample.",
        style="dim",
    )
    for sentence in report.left_out:
        console.print(f"[yellow]left out[/] {escape(sentence)}")
    for result in report.results:
        for finding in result.findings:
            if not finding.passed:
                where = escape(f"{result.artifact} on {result.target}")
                console.print(f"[bold red]FAIL[/] {where}: {escape(finding.message)}")
    word = "[bold green]PASS[/]" if report.passed else "[bold red]FAIL[/]"
    console.print(f"{word} {escape(report.name)} ({report.seconds:.1f} s)")


def _table(report: ParityReport, artifact: str) -> Table:
    """Return the table of one artifact: a row for each target and output."""
    # The widths are fixed, so that the tables of several artifacts line up.
    table = Table(title=escape(artifact), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True, min_width=4)
    table.add_column("target", overflow="fold", min_width=18)
    for heading, width in (
        ("error", 7),
        ("SNR dB", 6),
        ("noise", 5),
        ("worst", 5),
        ("top-1", 7),
        ("ms", 6),
    ):
        table.add_column(heading, justify="right", no_wrap=True, min_width=width)
    for result in report.results:
        if result.artifact == artifact:
            for cells in _rows(result):
                table.add_row(*cells)
    return table


def _rows(result: TargetResult) -> list[list[str]]:
    """Return the table rows of one result: one an output, or one that says there is none."""
    word = "[green]pass[/]" if result.passed else "[red]FAIL[/]"
    target = escape(result.target)
    if not result.outputs:
        return [[word, target, *["-"] * 6]]
    latency = result.measured.get("latency_ms", {}).get("median")
    shown = "-" if latency is None else f"{latency:.3g}"
    several = len(result.outputs) > 1
    return [
        [
            word,
            f"{target} {escape(entry.metrics.output)}" if several else target,
            *_cells(entry),
            shown,
        ]
        for entry in result.outputs
    ]


def _cells(entry: OutputVerdict) -> list[str]:
    """Return the cells that describe one output."""
    metrics, agreement = entry.metrics, entry.metrics.agreement
    if agreement is None:
        kept = "-"
    else:
        total = agreement.same + agreement.ties + agreement.flips
        kept = f"{agreement.same + agreement.ties}/{total}"
    return [
        f"{metrics.max_abs:.2g}",
        f"{metrics.snr_db:.1f}",
        f"{entry.pooled_ratio:.2f}",
        f"{entry.worst_ratio:.2f}",
        kept,
    ]
