"""`renormlite compare A B`: compare two files, or one on several targets, without Keras."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ..files import write_text
from ..runtime_checks.foreign.compare import compare_files
from ..runtime_checks.options import CheckOptions
from ..runtime_checks.report.terminal import print_report
from .dataclass_options import options_of
from .device_options import device_options, with_processors
from .map_options import map_options
from .model_options import import_modules, import_option
from .option_groups import GroupedCommand, grouped
from .output_file import OutputFile, console_beside, json_option, write_json_text
from .progress_bar import progress_bar
from .samples_source import SamplesSource

_reports = grouped("Reports")


@click.command("compare", cls=GroupedCommand)
@click.argument("a", type=click.Path(path_type=Path), metavar="A")
@click.argument("b", type=click.Path(path_type=Path), metavar="B")
@grouped("Samples")(
    "--inputs",
    type=SamplesSource(),
    metavar="DATA",
    help="Real samples: an .npz file with an array for each input name of A, an .npy file, a "
    "folder of images, or module:function.  [default: random numbers]",
)
@map_options("A's", "B's", grouped("Samples"))
@options_of(CheckOptions, only=("targets", "threads", "per_op"))
@json_option("the report", _reports)
@_reports("--html", "html_path", type=OutputFile(".html"), help="Write an HTML report here.")
@_reports("--junit", type=OutputFile(".xml"), help="Write JUnit XML here, for CI.")
@import_option("registers a runtime", grouped("Selection"))
@device_options
def command(
    a: Path,
    b: Path,
    inputs: str | None,
    map_inputs: tuple[tuple[str, str], ...],
    map_outputs: tuple[tuple[str, str], ...],
    targets: tuple[str, ...] | None,
    json_path: Path | None,
    html_path: Path | None,
    junit: Path | None,
    imports: tuple[str, ...],
    cpus: tuple[str, ...],
    **options: Any,
) -> None:
    """Compare two files, or one file (given twice) on several targets, without a Keras model.

    A is evaluated in float64, and both files are checked against the result.

    The exit code is 0 if the arithmetic of the files explains their difference, 1 if it does not,
    and 2 if the files cannot be compared.

    \b
    renormlite compare last-week.tflite today.tflite --inputs samples.npz
    renormlite compare net.float32.onnx net.int8.tflite
    renormlite compare net.tflite net.tflite --on litert,litert+reference
    """
    import_modules(imports)
    with progress_bar(f"comparing {a} and {b}"):
        report = compare_files(
            a,
            b,
            inputs,
            targets=with_processors(targets, cpus),
            map_inputs=dict(map_inputs),
            map_outputs=dict(map_outputs),
            **options,
        )
    print_report(report, console_beside(json_path))
    if html_path:
        write_text(html_path, report.to_html())
    if junit:
        write_text(junit, report.to_junit())
    if json_path:
        write_json_text(json_path, report.to_json())
    sys.exit(0 if report.passed else 1)
