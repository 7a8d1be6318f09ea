"""`renormlite fold MODEL -o FOLDED`: fold every norm and write the folded model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.console import Console

from ..errors import UserError
from ..files import atomic_path, write_text
from .command import TensorFlowCommand
from .fold_table import print_report
from .model_options import model_options, read_model, say_notes


@click.command(cls=TensorFlowCommand)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.keras")
@model_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="The .keras file to write.",
)
@click.option(
    "--copy-budget", default=0, show_default=True, help="Parameters that copies of layers may add."
)
@click.option(
    "--verify/--no-verify", default=True, show_default=True, help="Prove the result in float64."
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    help="Write report and proof to this file.",
)
def command(
    model: Path,
    output: Path,
    copy_budget: int,
    verify: bool,
    json_file: Path | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    imports: tuple[str, ...],
    unsafe: bool,
) -> None:
    """Fold every norm of MODEL into its neighbours, prove it in float64, write the result."""
    if output.suffix != ".keras":
        raise UserError(f"Expected an output file ending in .keras. Received: {output}")
    from ..export.fold import fold

    trained = read_model(model, imports, unsafe)
    result = fold(trained, verify=verify, copy_budget=copy_budget, shapes=dict(shapes))
    console = Console()
    print_report(console, result.report)
    say_notes(console, result.notes)
    if result.proof is not None:
        style = "green" if result.proof.passed else "red"
        console.print(result.proof.sentence, style=style, highlight=False)
    if json_file is not None:
        proof_json = result.proof.to_json() if result.proof else None
        payload = {**result.report.to_json(), "proof": proof_json, "notes": list(result.notes)}
        write_text(json_file, json.dumps(payload, indent=2) + "\n")
    if result.proof is not None and not result.proof.passed:
        sys.exit(1)
    with atomic_path(output) as partial:
        result.model.save(partial)
    console.print(f"wrote {output}")
