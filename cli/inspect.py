"""`renormlite inspect MODEL`: the dry run of fold, what folds where and why not."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..files import write_text
from .command import TensorFlowCommand
from .fold_table import print_report
from .model_options import model_options, read_model, say_notes
from .output_file import OutputFile, console_beside, json_option, write_json


@click.command(cls=TensorFlowCommand)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.keras")
@model_options
@click.option(
    "--copy-budget", default=0, show_default=True, help="Parameters that copies of layers may add."
)
@json_option("the report")
@click.option(
    "--picture",
    type=OutputFile(".svg"),
    metavar="FILE.svg",
    help="Draw the network before and after.",
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
    """Show for every norm of MODEL where it folds, or the one sentence why not."""
    from ..export.fold import inspect

    trained = read_model(model, imports, unsafe)
    inspection = inspect(trained, copy_budget=copy_budget, shapes=dict(shapes))
    if picture is not None:
        write_text(picture, inspection.picture)
    console = console_beside(json_path)
    print_report(console, inspection.report)
    say_notes(console, inspection.notes)
    if json_path is not None:
        payload = {**inspection.report.to_json(), "notes": list(inspection.notes)}
        write_json(json_path, json.dumps(payload, indent=2))
