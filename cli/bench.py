"""`renormlite bench`: measure the inference times of exported files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.markup import escape
from rich.table import Table

from ..devices.base import DeviceOptions
from ..errors import printable
from ..runtime_checks.bench import measure_latency
from ..runtime_checks.options import CheckOptions
from .dataclass_options import options_of
from .device_options import device_options, with_processors
from .model_options import import_modules, import_option
from .option_groups import GroupedCommand
from .output_file import json_option, write_json_text
from .safe_console import SafeConsole


@click.command("bench", cls=GroupedCommand)
@click.argument("directory", type=click.Path(path_type=Path))
@options_of(CheckOptions, only=("targets",))
@click.option(
    "--rounds",
    default=50,
    show_default=True,
    type=click.IntRange(min=1),
    help="Number of timed runs of each file.",
)
@click.option(
    "--threads",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Threads that each runtime may use.",
)
@json_option("the times")
@import_option("registers a runtime", click.option)
@device_options
def command(
    directory: Path,
    targets: tuple[str, ...] | None,
    rounds: int,
    threads: int,
    imports: tuple[str, ...],
    cpus: tuple[str, ...],
    json_path: Path | None,
    devices: DeviceOptions,
) -> None:
    """Measure the time of one inference of every file in DIRECTORY on every target.

    On this machine, each round runs every file once, so that a change of load affects all files
    alike. The last column is the ratio to the first row; on a busy machine it is more reliable
    than the times. On a device, the files are measured one after the other. To compare precisions
    or formats, export them into one directory.
    """
    table = Table(
        box=None,
        title=f"{directory}: one inference, {rounds} rounds, {threads} thread(s)",
        caption="ratio: to the first row",
    )
    for heading in ("target", "file"):
        table.add_column(heading, overflow="fold")
    for heading in ("load ms", "median ms", "p90 ms", "ratio"):
        table.add_column(heading, justify="right")
    import_modules(imports)
    rows = measure_latency(
        directory, with_processors(targets, cpus), rounds=rounds, threads=threads, devices=devices
    )
    for row in rows:
        table.add_row(
            row.target,
            escape(row.artifact),
            f"{row.load_ms:.1f}",
            f"{row.median_ms:.3f}",
            "-" if row.p90_ms is None else f"{row.p90_ms:.3f}",
            f"{row.ratio:.2f}x",
        )
    if json_path is not None:
        write_json_text(json_path, json.dumps([asdict(row) for row in rows], indent=1))
        return
    SafeConsole().print(table)
    for target, note in dict.fromkeys((row.target, row.note) for row in rows if row.note):
        click.echo(printable(f"{target}: {note}"))
