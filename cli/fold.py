"""`renormlite fold MODEL -o FOLDED`: fold every norm and write the folded model."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..files import atomic_path
from .command import TensorFlowCommand
from .fold_table import print_report
from .model_options import copy_budget_option, model_options, print_notes, read_model
from .output_file import OutputFile, console_beside, json_option, write_json


@click.command(cls=TensorFlowCommand)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.keras")
@model_options
@click.option(
    "-o",
    "--output",
    type=OutputFile(".keras"),
    required=True,
    help="The .keras file to write.",
)
@copy_budget_option
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Compare the folded with the original model in float64.",
)
@json_option("the report and the proof")
def command(
    model: Path,
    output: Path,
    copy_budget: int,
    verify: bool,
    json_path: Path | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    imports: tuple[str, ...],
    unsafe: bool,
) -> None:
    """Fold every norm of MODEL into neighbouring layers and write the folded model.

    The folded model is compared with the original in float64; if the proof fails, nothing is
    written and the exit code is 1.
    """
    from ..export.fold import fold

    trained = read_model(model, imports, unsafe)
    result = fold(trained, verify=verify, copy_budget=copy_budget, shapes=dict(shapes))
    console = console_beside(json_path)
    print_report(console, result.report)
    print_notes(console, result.notes)
    if result.proof is not None:
        style = "green" if result.proof.passed else "red"
        console.print(result.proof.sentence, style=style, highlight=False, markup=False)
    if json_path is not None:
        proof_json = result.proof.to_json() if result.proof else None
        payload = {**result.report.to_json(), "proof": proof_json, "notes": list(result.notes)}
        write_json(json_path, payload)
    if result.proof is not None and not result.proof.passed:
        sys.exit(1)
    with atomic_path(output) as partial:
        result.model.save(partial)
    console.print(f"wrote {output}", markup=False)
