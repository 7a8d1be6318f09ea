"""`renormlite check DIR|FILE… --on TARGET,…`: the verdict as a table, a page and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ..devices.base import DeviceOptions
from ..errors import UserError
from ..files import write_text
from ..quiet import quiet_import
from ..runtime_checks.end_to_end.quality_gates import QualityLimits
from ..runtime_checks.end_to_end.thread_counts import parse_threads
from ..runtime_checks.parity import ParityReport, check_parity
from ..runtime_checks.per_op.reproducer import write_reproducer
from ..runtime_checks.report.html_report import covered
from ..runtime_checks.report.terminal import print_report
from ..runtime_checks.search.search import RUNS
from .comma_list import CommaList
from .device_options import device_options, with_processors
from .model_options import model_options, read_model
from .name_pair import NamePair
from .option_groups import GroupedCommand, grouped
from .output_file import console_beside, json_option, write_json
from .preprocessing import Channels, Numbers, preprocessing
from .quality_options import quality_options

_what = grouped("What is checked")
_against = grouped("Against a Keras model")
_samples = grouped("Samples")
_how = grouped("How it is checked")
_reports = grouped("Reports")


@click.command("check", cls=GroupedCommand)
@click.argument(
    "paths",
    type=click.Path(path_type=Path),
    nargs=-1,
    required=True,
    metavar="DIRECTORY|FILE…",
)
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
@_against(
    "--model",
    "model_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="MODEL.keras",
    help="Check FILEs that any converter made against this model; or whether the export in "
    "DIRECTORY is still of this model.",
)
@_against(
    "--map-input",
    "map_inputs",
    type=NamePair(),
    multiple=True,
    help="Name of the model's input and of the file's that is to be taken for it. Repeatable.",
)
@_against(
    "--map-output",
    "map_outputs",
    type=NamePair(),
    multiple=True,
    help="The same for an output. Repeatable.",
)
@_against(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Leave what FILEs are compared with here, as an export: to check or bundle them again.",
)
@model_options
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
    help="Use at most N samples of --inputs, evenly spread.  [default: all of a file, 200 images]",
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
@_how("--per-op", is_flag=True, help="Check every operator, also where all outputs are right.")
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
@quality_options
@device_options
def command(
    paths: tuple[Path, ...],
    targets: tuple[str, ...] | None,
    artifacts: tuple[str, ...],
    precisions: tuple[str, ...],
    layers: tuple[str, ...],
    model_path: Path | None,
    map_inputs: tuple[tuple[str, str], ...],
    map_outputs: tuple[tuple[str, str], ...],
    keep: Path | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    imports: tuple[str, ...],
    unsafe: bool,
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
    limits: QualityLimits,
    cpus: tuple[str, ...],
    devices: DeviceOptions,
) -> None:
    """Check that the files in DIRECTORY compute what the trained model computes.

    Or that FILEs, whoever made them, compute what MODEL.keras computes.

    Exits 0 when every target passes, 1 when one fails or, with --baseline, something got worse,
    2 when there is nothing to check.
    """
    options: dict[str, Any] = {
        "targets": with_processors(targets, cpus),
        "inputs": inputs,
        "preprocessing": preprocessing(mean, scale),
        "limit": samples,
        "search": search,
        "threads": parse_threads(threads),
        "per_op": per_op or node_data is not None,
        "limits": limits,
        "devices": devices,
        "artifacts": artifacts,
        "precisions": precisions,
        "layers": layers,
        "baseline": baseline,
    }
    directory = _directory(paths, model_path)
    doing = "searching and checking" if search else "checking"
    with Console(stderr=True).status(f"{doing} {', '.join(map(str, paths))}"):
        if model_path is None:
            assert directory is not None
            report = check_parity(directory, **options)
        else:
            quiet_import("tensorflow")
            model = read_model(model_path, imports, unsafe)
            options |= {"source": model_path, "shapes": dict(shapes)}
            if directory is not None:
                from ..against_model.export import check_export

                report = check_export(model, directory, **options)
            else:
                from ..against_model.files import check_files

                options |= {"map_inputs": dict(map_inputs), "map_outputs": dict(map_outputs)}
                report = check_files(model, paths, keep=keep, **options)
    console = console_beside(json_path)
    print_report(report, console)
    for searched in report.searched:
        console.print(searched.sentence, highlight=False, soft_wrap=True)
    if reproducer:
        console.print(_reproduce(report, reproducer), highlight=False, soft_wrap=True)
    page = html_path or _page(report, directory, paths)
    _write(report, page, junit, node_data, console)
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


def _directory(paths: Sequence[Path], model: Path | None) -> Path | None:
    """Return the export to check; None where files are checked against a model."""
    if len(paths) == 1 and not (model is not None and paths[0].is_file()):
        if paths[0].is_file():
            raise UserError(
                f"A file is checked against a model: renormlite check {paths[0]} --model "
                "MODEL.keras; or against another file: renormlite compare."
            )
        return paths[0]
    if model is None:
        raise UserError(
            "Several files are checked against a model: add --model MODEL.keras. An export is one "
            f"directory. Received: {', '.join(map(str, paths))}."
        )
    return None


def _page(report: ParityReport, directory: Path | None, paths: Sequence[Path]) -> Path:
    """Return where the page goes: a part of what an earlier page covers does not replace it."""
    if directory is None:
        return paths[0].with_name(f"{paths[0].stem}.report.html")
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
