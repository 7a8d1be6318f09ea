"""`renormlite report A.json B.json …`: several checks side by side, in a table and on a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from rich.text import Text

from ..files import write_text
from ..runtime_checks.report.numbers import short
from ..runtime_checks.report.overview import (
    Row,
    Summary,
    read_reports,
    render,
    rows_as_json,
    side_by_side,
)
from ..runtime_checks.report.terminal import fixed_grid
from .output_file import OutputFile, console_beside, json_option, write_json

# Headings and widths; with two spaces between them they fill 80 columns.
_COLUMNS = (
    ("check", 20),
    ("", 4),
    ("SNR dB", 6),
    ("noise", 7),
    ("decisions", 9),
    ("right%", 6),
    ("least", 6),
    ("ms", 8),
)


@click.command("report")
@click.argument(
    "reports", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="REPORT.json…"
)
@click.option(
    "--html",
    "html_path",
    type=OutputFile(".html"),
    default=Path("reports.html"),
    show_default=True,
    help="Write the page here.",
)
@json_option("all rows")
def command(reports: tuple[Path, ...], html_path: Path, json_path: Path | None) -> None:
    """Put the JSON reports of several checks side by side: other exports, devices or days.

    \b
    renormlite check build/small --json small.json
    renormlite check build/large --json large.json
    renormlite report small.json large.json

    The page shows all targets and reports of a file together. The exit code is 0 whatever the
    verdicts are.
    """
    summaries = read_reports(reports)
    console = console_beside(json_path)
    console.print(fixed_grid(_COLUMNS, [[Text(heading, "dim") for heading, _ in _COLUMNS]]))
    for what, rows in side_by_side(summaries).items():
        console.print(Text(what, "bold"))
        console.print(fixed_grid(_COLUMNS, [_cells(row) for row in rows]))
    console.print(f"limits: {_limits(summaries)}", style="dim", highlight=False)
    write_text(html_path, render(summaries))
    console.print(f"page: {html_path}", highlight=False, markup=False, soft_wrap=True)
    if json_path is not None:
        write_json(json_path, rows_as_json(summaries))


def _cells(row: Row) -> list[Text | str]:
    """Return the cells of a row."""
    return [
        Text(row.report),
        Text("pass", "green") if row.passed else Text("FAIL", "bold red"),
        "-" if row.snr_db is None else f"{row.snr_db:.1f}",
        "-" if row.noise is None else f"{short(row.noise)}x",
        "-" if row.same is None else f"{row.same}/{row.samples}",
        "-" if row.accuracy is None else f"{100 * row.accuracy:.2f}",
        "-" if row.accuracy_least is None else f"{100 * row.accuracy_least:.2f}",
        "-" if row.latency_ms is None else short(row.latency_ms),
    ]


def _limits(summaries: Sequence[Summary]) -> str:
    """Return the limits that all files have in common, each once."""
    rows = [row for summary in summaries for row in summary.rows]
    snr = sorted({row.snr_least for row in rows})
    noise = sorted({row.noise_most for row in rows if row.noise_most is not None})
    return (
        f"SNR at least {' or '.join(f'{value:g}' for value in snr)} dB, "
        f"noise at most {' or '.join(f'{value:g}' for value in noise) or '-'}x, "
        "right % at least the value in the next column"
    )
