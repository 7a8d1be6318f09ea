"""`renormlite check DIR --on TARGET,…`: the verdict as a table, a page and an exit code."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from ..devices.base import DeviceOptions
from ..errors import UserError
from ..files import write_text
from ..runtime_checks.end_to_end.thread_counts import parse_threads
from ..runtime_checks.parity import DEFAULT_TARGETS, ParityReport, check_parity
from ..runtime_checks.per_op.reproducer import write_reproducer
from ..runtime_checks.report.terminal import print_report
from ..runtime_checks.search.search import RUNS
from .comma_list import CommaList
from .device_options import device_options, with_processors
from .preprocessing import Channels, Numbers, preprocessing


@click.command("check")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--on",
    "targets",
    default=",".join(DEFAULT_TARGETS),
    show_default=True,
    type=CommaList("target"),
    help="Where to run: RUNTIME[+VARIANT][@DEVICE], separated by commas.",
)
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    metavar="DATA",
    help="Samples to check as well: .npz by input name, with `label` for accuracy; .npy; or a "
    "folder of images, in which folders named as the classes tell the true ones.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    metavar="N",
    help="At most so many of --inputs, evenly spread.  [default: all of a file, 200 images]",
)
@click.option(
    "--mean",
    type=Channels(),
    help="Pixels of images become (pixel - mean) * scale.  [default: as the export was told]",
)
@click.option("--scale", type=Channels(), help="See --mean.")
@click.option(
    "--search",
    type=click.IntRange(min=1),
    is_flag=False,
    flag_value=RUNS,
    metavar="[N]",
    help="Search for the inputs on which each file differs most from truth, with N runs of it "
    f"({RUNS} where N is left out), and check on those too.",
)
@click.option(
    "--threads",
    default="1",
    show_default=True,
    metavar="N[,N…]",
    help="Threads each runtime may use; several numbers, as in 1,4, are compared.",
)
@click.option("--per-op", is_flag=True, help="Check every op by itself, also where all is well.")
@click.option(
    "--reproducer",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write the first op at fault here, as an export of its own.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the JSON here.")
@click.option(
    "--html",
    "html_path",
    type=click.Path(path_type=Path),
    help="Write the page here instead of DIRECTORY/report.html.",
)
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML here, for CI.")
@click.option(
    "--model-explorer",
    "node_data",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Check every op and write its error as node data for Model Explorer into this folder.",
)
@device_options
def command(
    directory: Path,
    targets: tuple[str, ...],
    inputs: Path | None,
    samples: int | None,
    mean: Numbers | None,
    scale: Numbers | None,
    search: int | None,
    threads: str,
    per_op: bool,
    reproducer: Path | None,
    json_path: Path | None,
    html_path: Path | None,
    junit: Path | None,
    node_data: Path | None,
    cpus: tuple[str, ...],
    devices: DeviceOptions,
) -> None:
    """Check that the files in DIRECTORY compute what the trained model computes.

    Exits 0 when every target passes, 1 when one fails, 2 when there is nothing to check.
    """
    doing = "searching and checking" if search else "checking"
    with Console(stderr=True).status(f"{doing} {directory} on {', '.join(targets)}"):
        report = check_parity(
            directory,
            with_processors(targets, cpus),
            inputs,
            preprocessing=preprocessing(mean, scale),
            limit=samples,
            search=search,
            threads=parse_threads(threads),
            per_op=per_op or node_data is not None,
            devices=devices,
        )
    print_report(report, Console())
    for searched in report.searched:
        click.echo(searched.sentence)
    if json_path:
        write_text(json_path, report.to_json())
    if junit:
        write_text(junit, report.to_junit())
    if node_data:
        for name, text in report.to_model_explorer().items():
            write_text(node_data / name, text)
    if reproducer:
        click.echo(_reproduce(report, reproducer))
    page = html_path or directory / "report.html"
    write_text(page, report.to_html())
    click.echo(f"report: {page}")
    sys.exit(0 if report.passed else 1)


def _reproduce(report: ParityReport, folder: Path) -> str:
    """Write the first fault that can be cut out and say where, or why there is none."""
    reason = "no op is at fault"
    for result in report.results:
        for fault in result.faults:
            try:
                write_reproducer(fault, report.directory / result.artifact, folder)
            except UserError as error:
                reason = str(error)
                continue
            return f"reproducer: renormlite check {folder}"
    return f"no reproducer: {reason}"
