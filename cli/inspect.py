"""`renormlite inspect MODEL|FILE`: show where norms fold, or the contents of an exported file."""

from __future__ import annotations

from pathlib import Path

import click

from ..artifacts.graphs import READERS
from ..files import write_text
from ..quiet import quiet_import
from ..runtime_checks.file_table import file_table
from .file_table import print_table
from .fold_table import print_report
from .model_options import copy_budget_option, model_options, print_notes, read_model
from .option_groups import GroupedCommand
from .output_file import OutputFile, console_beside, json_option, write_json


@click.command("inspect", cls=GroupedCommand)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.keras|FILE")
@model_options
@copy_budget_option
@json_option("the report")
@click.option(
    "--picture",
    type=OutputFile(".svg"),
    metavar="FILE.svg",
    help="Draw the network before and after folding.",
)
def command(
    model: Path,
    copy_budget: int,
    json_path: Path | None,
    picture: Path | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    imports: tuple[str, ...],
    unsafe: bool,
) -> None:
    """Show where each norm of MODEL folds, or why it does not.

    For a .tflite or .onnx FILE, show every op with its output shape, parameters, multiplications
    and precision; the peak activation memory; float ops in an integer file; and unfolded norms.
    """
    if model.suffix.lstrip(".") in READERS:
        _show_file(model, json_path)
        return
    quiet_import("tensorflow")
    from ..export.fold import inspect

    trained = read_model(model, imports, unsafe)
    inspection = inspect(trained, copy_budget=copy_budget, shapes=dict(shapes))
    if picture is not None:
        write_text(picture, inspection.picture)
    console = console_beside(json_path)
    print_report(console, inspection.report)
    print_notes(console, inspection.notes)
    if picture is not None:
        console.print(f"wrote {picture}", highlight=False, markup=False, soft_wrap=True)
    if json_path is not None:
        payload = {**inspection.report.to_json(), "notes": list(inspection.notes)}
        write_json(json_path, payload)


def _show_file(path: Path, json_path: Path | None) -> None:
    """Print the contents of an exported file."""
    table = file_table(path)
    print_table(console_beside(json_path), table)
    if json_path is not None:
        write_json(json_path, table.to_json())
