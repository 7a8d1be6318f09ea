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
from ..runtime_checks.parity import ParityReport, check_parity
from ..runtime_checks.per_op.reproducer import write_reproducer
from ..runtime_checks.report.html_report import covered
from ..runtime_checks.report.terminal import print_report
from ..runtime_checks.search.search import RUNS
from .comma_list import CommaList
from .device_options import device_options, with_processors
from .option_groups import GroupedCommand, grouped
from .output_file import console_beside, json_option, write_json
from .preprocessing import Channels, Numbers, preprocessing

_what = grouped("What is checked")
_samples = grouped("Samples")
_how = grouped("How it is checked")
_reports = grouped("Reports")


@click.command("check", cls=GroupedCommand)
@click.argument("directory", type=click.Path(path_type=Path))
@_what(
    "--on",
    "targets",
    type=CommaList("target"),
    help="Where to run: RUNTIME[+VARIANT][@DEVICE], separated by commas.  "
    "[default: the first installed runtime for each format of the files]",
)
@_what(
    "--artifact",
    "artifacts",
    type=CommaList("file"),
    default=(),
    help="Check these files only.",
)
@_what(
    "--precision",
    "precisions",
    type=CommaList("precision"),
    default=(),
    help="Check files of these precisions only.",
)
@_what(
    "--layer",
    "layers",
    type=CommaList("layer"),
    default=(),
    help="Give a verdict on the weights and ops of these Keras layers only.",
)
@_samples(
    "--inputs",
    metavar="DATA",
    help="Samples to check as well: .npz by input name, with `label` for accuracy; .npy; a folder "
    "of images, in which folders named as the classes tell the true ones; or module:function.",
)
@_samples(
    "--samples",
    type=click.IntRange(min=1),
    metavar="N",
    help="At most so many of --inputs, evenly spread.  [default: all of a file, 200 images]",
)
@_samples(
    "--mean",
    type=Channels(),
    help="Pixels of images become (pixel - mean) * scale.  [default: as the export was told]",
)
@_samples("--scale", type=Channels(), help="See --mean.")
@_samples(
    "--search",
    type=click.IntRange(min=1),
    is_flag=False,
    flag_value=RUNS,
    metavar="[N]",
    help="Search for the inputs on which each file differs most from truth, with N runs of it "
    f"({RUNS} where N is left out), and check on those too.",
)
@_how(
    "--threads",
    default="1",
    show_default=True,
    metavar="N[,N…]",
    help="Threads each runtime may use; several numbers, as in 1,4, are compared.",
)
@_how("--per-op", is_flag=True, help="Check every op by itself, also where all is well.")
@_how(
    "--baseline",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="JSON report of an earlier check: tell what changed, and fail where it got worse.",
)
@json_option("the report", _reports)
@_reports(
    "--html",
    "html_path",
    type=click.Path(path_type=Path),
    help="Write the page here instead of DIRECTORY/report.html.",
)
@_reports("--junit", type=click.Path(path_type=Path), help="Write JUnit XML here, for CI.")
@_reports(
    "--reproducer",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write the first op at fault here, as an export of its own.",
)
@_reports(
    "--model-explorer",
    "node_data",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Check every op and write its error as node data for Model Explorer into this folder.",
)
@device_options
def command(
    directory: Path,
    targets: tuple[str, ...] | None,
    artifacts: tuple[str, ...],
    precisions: tuple[str, ...],
    layers: tuple[str, ...],
    inputs: str | None,
    samples: int | None,
    mean: Numbers | None,
    scale: Numbers | None,
    search: int | None,
    threads: str,
    per_op: bool,
    baseline: Path | None,
    json_path: Path | None,
    html_path: Path | None,
    junit: Path | None,
    reproducer: Path | None,
    node_data: Path | None,
    cpus: tuple[str, ...],
    devices: DeviceOptions,
) -> None:
    """Check that the files in DIRECTORY compute what the trained model computes.

    Exits 0 when every target passes, 1 when one fails or, with --baseline, something got worse,
    2 when there is nothing to check.
    """
    doing = "searching and checking" if search else "checking"
    with Console(stderr=True).status(f"{doing} {directory}"):
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
            artifacts=artifacts,
            precisions=precisions,
            layers=layers,
            baseline=baseline,
        )
    console = console_beside(json_path)
    print_report(report, console)
    for searched in report.searched:
        console.print(searched.sentence, highlight=False, soft_wrap=True)
    if reproducer:
        console.print(_reproduce(report, reproducer), highlight=False, soft_wrap=True)
    _write(report, html_path or _page(report, directory), junit, node_data, console)
    if json_path:
        write_json(json_path, report.to_json())
    sys.exit(0 if report.passed else 1)


def _write(
    report: ParityReport, page: Path, junit: Path | None, node_data: Path | None, console: Console
) -> None:
    """Write the forms of the report that are asked for, and the page."""
    if junit:
        write_text(junit, report.to_junit())
    if node_data:
        for name, text in report.to_model_explorer().items():
            write_text(node_data / name, text)
    write_text(page, report.to_html())
    console.print(f"report: {page}", highlight=False, soft_wrap=True)


def _page(report: ParityReport, directory: Path) -> Path:
    """Return where the page goes: a part of what an earlier page covers does not replace it."""
    page = directory / "report.html"
    known = covered(page.read_text(encoding="utf-8")) if page.is_file() else frozenset()
    checked = {(result.artifact, result.target) for result in report.results}
    return directory / "report.part.html" if known - checked else page


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
