"""`renormlite compare A B`: two files, or one on several targets, without Keras."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from ..devices.base import DeviceOptions
from ..files import write_text
from ..runtime_checks.end_to_end.thread_counts import parse_threads
from ..runtime_checks.foreign.compare import compare_files
from ..runtime_checks.report.terminal import print_report
from .comma_list import CommaList
from .device_options import device_options, with_processors
from .name_pair import NamePair
from .option_groups import GroupedCommand, grouped
from .output_file import console_beside, json_option, write_json

_what = grouped("What is compared")
_how = grouped("How it is compared")
_reports = grouped("Reports")


@click.command("compare", cls=GroupedCommand)
@click.argument("a", type=click.Path(path_type=Path), metavar="A")
@click.argument("b", type=click.Path(path_type=Path), metavar="B")
@_what(
    "--on",
    "targets",
    type=CommaList("target"),
    help="Where to run: RUNTIME[+VARIANT][@DEVICE], separated by commas.  "
    "[default: the first installed runtime for each format of the files]",
)
@_what(
    "--inputs",
    metavar="DATA",
    help="Real samples: .npz by the input names of A, .npy, a folder of images, or "
    "module:function.  [default: random numbers]",
)
@_what(
    "--map-input",
    "map_inputs",
    type=NamePair(),
    multiple=True,
    help="Name of A's input and of B's that is to be taken for it. Repeatable.",
)
@_what(
    "--map-output",
    "map_outputs",
    type=NamePair(),
    multiple=True,
    help="The same for an output. Repeatable.",
)
@_how("--threads", default="1", show_default=True, metavar="N[,N…]", help="Threads each may use.")
@_how("--per-op", is_flag=True, help="Look at every op, also where all is well.")
@json_option("the report", _reports)
@_reports("--html", "html_path", type=click.Path(path_type=Path), help="Write the page here.")
@_reports("--junit", type=click.Path(path_type=Path), help="Write JUnit XML here, for CI.")
@device_options
def command(
    a: Path,
    b: Path,
    targets: tuple[str, ...] | None,
    inputs: str | None,
    map_inputs: tuple[tuple[str, str], ...],
    map_outputs: tuple[tuple[str, str], ...],
    threads: str,
    per_op: bool,
    json_path: Path | None,
    html_path: Path | None,
    junit: Path | None,
    cpus: tuple[str, ...],
    devices: DeviceOptions,
) -> None:
    """Compare two files, or one file (given twice) on several targets, without a Keras model.

    What A means is evaluated in float64, and both are held to it.

    Exits 0 when their arithmetic explains how they differ, 1 when it does not, 2 when they cannot
    be compared.

    \b
    renormlite compare last-week.tflite today.tflite --inputs samples.npz
    renormlite compare net.float32.onnx net.int8.tflite
    renormlite compare net.tflite net.tflite --on litert,litert+reference
    """
    with Console(stderr=True).status(f"comparing {a} and {b}"):
        report = compare_files(
            a,
            b,
            inputs,
            targets=with_processors(targets, cpus),
            map_inputs=dict(map_inputs),
            map_outputs=dict(map_outputs),
            threads=parse_threads(threads),
            per_op=per_op,
            devices=devices,
        )
    print_report(report, console_beside(json_path))
    if html_path:
        write_text(html_path, report.to_html())
    if junit:
        write_text(junit, report.to_junit())
    if json_path:
        write_json(json_path, report.to_json())
    sys.exit(0 if report.passed else 1)
