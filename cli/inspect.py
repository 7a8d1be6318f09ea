"""`renormlite inspect MODEL`: the dry run of fold, what folds where and why not."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from .command import TensorFlowCommand
from .fold_table import print_report


@click.command(cls=TensorFlowCommand)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.keras")
@click.option(
    "--copy-budget", default=0, show_default=True, help="Parameters that copies of layers may add."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(model: Path, copy_budget: int, as_json: bool) -> None:
    """Show for every norm of MODEL where it folds, or the one sentence why not."""
    from ..export.fold import inspect
    from ..toolkit.saving import load_model

    report = inspect(load_model(model), copy_budget=copy_budget)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
        return
    print_report(Console(), report)
