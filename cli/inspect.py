"""`renormlite inspect MODEL`: the dry run of fold, what folds where and why not."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from ..files import write_text
from .command import TensorFlowCommand
from .fold_table import print_report
from .model_options import model_options, read_model, say_notes


@click.command(cls=TensorFlowCommand)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.keras")
@model_options
@click.option(
    "--copy-budget", default=0, show_default=True, help="Parameters that copies of layers may add."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.svg",
    help="Draw the network before and after.",
)
def command(
    model: Path,
    copy_budget: int,
    as_json: bool,
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
    if as_json:
        payload = {**inspection.report.to_json(), "notes": list(inspection.notes)}
        click.echo(json.dumps(payload, indent=2))
    else:
        print_report(Console(), inspection.report)
        say_notes(Console(), inspection.notes)
