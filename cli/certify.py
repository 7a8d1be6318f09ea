"""`renormlite certify FILE`: find the runtimes on which an integer file gives equal outputs."""

from __future__ import annotations

from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..runtime_checks.certification import FileCertificate, certify
from .option_groups import GroupedCommand
from .output_file import console_beside, json_option, write_json
from .progress_bar import progress_bar


@click.command("certify", cls=GroupedCommand)
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@json_option("the certificate, operator by operator,")
def command(file: Path, json_path: Path | None) -> None:
    """Determine which runtimes compute the same integers from FILE, for every input.

    FILE is an int8 file: .tflite, or .onnx with QuantizeLinear and DequantizeLinear.

    The rounding rules of the runtimes are compared by their thresholds in every channel, and
    exhaustively where an operator is a function of one or two integers. No runtime is run.
    """
    with progress_bar(f"certifying {file}"):
        found = certify(file)
    _print(console_beside(json_path), found)
    if json_path is not None:
        write_json(json_path, found.to_json())


def _print(console: Console, found: FileCertificate) -> None:
    ops = found.certificate.ops
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("rule", overflow="fold")
    for heading in ("operators that differ", "channels", "cases", "share"):
        grid.add_column(heading, justify="right")
    channels = sum(op.channels for op in ops)
    for rule in found.certificate.rules[1:]:
        entries = [entry for op in ops for entry in op.differences if entry.kernels == rule]
        cases, of = sum(e.cases for e in entries), sum(e.of for e in entries)
        grid.add_row(
            escape(rule),
            str(len(entries)),
            f"{sum(e.channels for e in entries)} of {channels}",
            f"{cases:,}",
            f"{100 * cases / of:.2g} %" if of else "0 %",
        )
    console.print(f"[bold]{escape(found.file)}[/]: against {found.certificate.rules[0]}")
    console.print(grid)
    console.print(
        "cases: accumulator or input values whose result differs; share: of all possible values in "
        "the operators that differ",
        style="dim",
        highlight=False,
    )
    alike: dict[tuple[str, str], list[str]] = {}
    for op in found.certificate.undecided:
        alike.setdefault((op.kind, op.why), []).append(str(op.index))
    for (kind, why), indices in alike.items():
        noun, verb = ("op", "is") if len(indices) == 1 else ("ops", "are")
        console.print(
            f"{noun} {', '.join(indices)} ({kind}) {verb} undecided: {why}",
            highlight=False,
            markup=False,
        )
    console.print(found.sentence, highlight=False, markup=False)
