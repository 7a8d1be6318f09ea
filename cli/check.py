"""`renormlite check DIR|FILE… --on TARGET,…`: run the checks and report the verdict."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from ..errors import UserError
from ..files import write_text
from ..quiet import quiet_import
from ..runtime_checks.end_to_end.quality_gates import QualityLimits
from ..runtime_checks.options import CheckOptions
from ..runtime_checks.parity import ParityReport, check_parity
from ..runtime_checks.per_op.reproducer import write_reproducer
from ..runtime_checks.report.github import annotate
from ..runtime_checks.report.html_report import covered
from ..runtime_checks.report.terminal import print_report
from .dataclass_options import options_of
from .device_options import device_options, with_processors
from .map_options import map_options
from .model_options import import_modules, model_options, read_model
from .option_groups import GroupedCommand, grouped
from .output_file import OutputFile, console_beside, json_option, write_json_text
from .preprocessing import Numbers, preprocessing, preprocessing_options
from .progress_bar import progress_bar
from .samples_source import SamplesSource
from .verbosity import is_quiet

_against = grouped("Against a Keras model")
_samples = grouped("Samples")
_reports = grouped("Reports")


@click.command("check", cls=GroupedCommand)
@click.argument(
    "paths",
    type=click.Path(path_type=Path),
    nargs=-1,
    required=True,
    metavar="DIRECTORY|FILE…",
)
@_samples(
    "--inputs",
    type=SamplesSource(),
    metavar="DATA",
    help="Additional samples, of any number: an .npz file with an array for each input name, "
    "and `label` for accuracy; an .npy file; Parquet or tar files, by a file, folder or quoted "
    "pattern; a folder of images, whose subfolders may be named after the classes; or "
    "module:function, which runs code from the current folder.",
)
@preprocessing_options("Pixels of images become (pixel - mean) * scale.", "as in the export")
@options_of(CheckOptions)
@options_of(QualityLimits, into="limits")
@_against(
    "--model",
    "model_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="MODEL.keras",
    help="Check FILEs, made by any converter, against this model; or check that the export in "
    "DIRECTORY was made from this model.",
)
@map_options("the model's", "the file's", _against)
@_against(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Keep the reference for FILEs in this folder, as an export that can be checked and "
    "bundled.",
)
@model_options
@json_option("the report", _reports)
@_reports(
    "--html",
    "html_path",
    type=OutputFile(".html"),
    help="Write the HTML report here.  [default: DIRECTORY/report.html]",
)
@_reports("--junit", type=OutputFile(".xml"), help="Write JUnit XML here, for CI.")
@_reports(
    "--github",
    is_flag=True,
    envvar="GITHUB_ACTIONS",
    help="Also print failures as GitHub Actions annotations.  [default: if run by GitHub Actions]",
)
@_reports(
    "--reproducer",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write the first faulty operator into this folder, as a separate export.",
)
@_reports(
    "--model-explorer",
    "node_data",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Check every operator and write the errors as node data for Model Explorer into this "
    "folder.",
)
@device_options
def command(
    paths: tuple[Path, ...],
    model_path: Path | None,
    map_inputs: tuple[tuple[str, str], ...],
    map_outputs: tuple[tuple[str, str], ...],
    keep: Path | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    imports: tuple[str, ...],
    unsafe: bool,
    inputs: str | None,
    mean: Numbers | None,
    scale: Numbers | None,
    json_path: Path | None,
    html_path: Path | None,
    junit: Path | None,
    github: bool,
    reproducer: Path | None,
    node_data: Path | None,
    cpus: tuple[str, ...],
    **options: Any,
) -> None:
    """Check that the files in DIRECTORY compute what the trained model computes.

    With --model, check that FILEs, made by any converter, compute what MODEL.keras computes.

    The exit code is 0 if every target passes, 1 if one fails or, with --baseline, got worse, and 2
    if the check cannot be run.
    """
    options |= {
        "targets": with_processors(options["targets"], cpus),
        "per_op": options["per_op"] or node_data is not None,
        "inputs": inputs,
        "preprocessing": preprocessing(mean, scale),
    }
    directory = _directory(paths, model_path)
    if model_path is None:
        _refuse(
            ("shapes", "unsafe"), "concerns the model: add --model MODEL.keras, or leave it out"
        )
    if directory is not None:
        _refuse(
            ("map_inputs", "map_outputs", "keep"), "is for FILEs, not for an export: leave it out"
        )
    doing = "searching and checking" if options["search"] else "checking"
    with progress_bar(f"{doing} {', '.join(map(str, paths))}"):
        if model_path is None:
            assert directory is not None
            import_modules(imports)
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
        write_json_text(json_path, report.to_json())
    if github:
        click.echo(annotate(report), nl=False, err=json_path is not None)
    if not report.passed and is_quiet():
        _print_failures(report)
    sys.exit(0 if report.passed else 1)


def _print_failures(report: ParityReport) -> None:
    """Print one line on standard error for each failure."""
    for where, why in report.failures:
        click.echo(f"FAIL {where}: {why}" if where else f"FAIL {why}", err=True)


def _write(
    report: ParityReport, page: Path, junit: Path | None, node_data: Path | None, console: Console
) -> None:
    """Write the HTML report, and the other forms that were requested."""
    if junit:
        write_text(junit, report.to_junit())
    if node_data:
        for name, text in report.to_model_explorer().items():
            write_text(node_data / name, text)
    write_text(page, report.to_html())
    console.print(f"report: {page}", highlight=False, markup=False, soft_wrap=True)


def _directory(paths: Sequence[Path], model: Path | None) -> Path | None:
    """Return the export to check; None where files are checked against a model."""
    if len(paths) == 1 and not (model is not None and paths[0].is_file()):
        if paths[0].is_file():
            raise UserError(
                f"A single file is checked against a model: renormlite check {paths[0]} --model "
                "MODEL.keras. To compare it with another file, use renormlite compare."
            )
        return paths[0]
    if model is None:
        raise UserError(
            "Several files are checked against a model: add --model MODEL.keras. An export is one "
            f"directory. Received: {', '.join(map(str, paths))}."
        )
    return None


def _refuse(names: Sequence[str], why: str) -> None:
    """Refuse options on the command line that have no effect on this check.

    Args:
        names: The command's arguments.
        why: The rest of the sentence after the option.
    """
    context = click.get_current_context()
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name in names and source is ParameterSource.COMMANDLINE:
            raise UserError(f"{option.opts[0]} {why}.")


def _page(report: ParityReport, directory: Path | None, paths: Sequence[Path]) -> Path:
    """Return the path of the HTML report.

    A check of only a part of what the existing report covers, or of single layers, does not
    overwrite it, unless the other files it covers are gone, as after a new export.
    """
    if directory is None:
        return paths[0].with_name(f"{paths[0].stem}.report.html")
    page = directory / "report.html"
    text = page.read_text("utf-8", errors="replace") if page.is_file() else ""
    known = {pair for pair in covered(text) if (directory / pair[0]).is_file()}
    checked = {(result.artifact, result.target) for result in report.results}
    partial = known - checked or (known and report.layers)
    return directory / "report.part.html" if partial else page


def _reproduce(report: ParityReport, folder: Path) -> str:
    """Write the first faulty operator that can be extracted; return a line about the result."""
    reason = "no faulty operator was found"
    for result in report.results:
        for fault in result.faults:
            try:
                write_reproducer(fault, report.directory / result.artifact, folder)
            except UserError as error:
                reason = str(error)
                continue
            return f"reproducer: renormlite check {folder}"
    return f"no reproducer: {reason}"
