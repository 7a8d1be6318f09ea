"""`renormlite bench`: inference times, artifact beside artifact."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from ..runtime_checks.bench import measure_latency
from ..runtime_checks.parity import DEFAULT_TARGETS
from .comma_list import CommaList


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--on",
    "targets",
    default=",".join(DEFAULT_TARGETS),
    show_default=True,
    type=CommaList("target"),
    help="Runtimes on this machine, RUNTIME[+VARIANT], separated by commas.",
)
@click.option("--rounds", default=50, show_default=True, type=click.IntRange(min=1))
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1))
def command(directory: Path, targets: tuple[str, ...], rounds: int, threads: int) -> None:
    """Time one inference of every file in DIRECTORY on every target, in turn.

    The last column compares with the first row, round by round: unlike the times, it holds on a
    busy machine. To compare two exports, bench a directory that holds both precisions or formats.
    """
    table = Table(
        box=None, title=f"{directory}: one inference, {rounds} rounds, {threads} thread(s)"
    )
    for heading in ("target", "file"):
        table.add_column(heading, overflow="fold")
    for heading in ("load ms", "median ms", "p90 ms", "of the first"):
        table.add_column(heading, justify="right")
    for row in measure_latency(directory, targets, rounds=rounds, threads=threads):
        table.add_row(
            row.target,
            row.artifact,
            f"{row.load_ms:.1f}",
            f"{row.median_ms:.3f}",
            f"{row.p90_ms:.3f}",
            f"{row.ratio:.2f}x",
        )
    Console().print(table)
