"""`renormlite explain DIR`: show the quantization error of integer files, layer by layer."""

from __future__ import annotations

from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..runtime_checks.explanation import Explanation, FileExplanation, explain
from .comma_list import CommaList
from .option_groups import GroupedCommand
from .output_file import console_beside, json_option, write_json
from .progress_bar import progress_bar

_SHOWN_DB = 0.05  # a layer of less gets no sentence; it is rounded to 0.0 in one


@click.command("explain", cls=GroupedCommand)
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--artifact",
    "artifacts",
    type=CommaList("artifact"),
    default=(),
    help="Explain these files only.  [default: all int8 and int16x8 files]",
)
@click.option("--layers", default=10, show_default=True, help="Layers to list for each file.")
@json_option("the explanation, with every layer,")
def command(
    directory: Path, artifacts: tuple[str, ...], layers: int, json_path: Path | None
) -> None:
    """Explain, layer by layer, why the int8 files in DIR are less accurate than the trained model.

    For each layer, the table lists the gain in signal-to-noise ratio (dB) without the rounding of
    its weights, without the rounding of its activations, and without clipping; how many decisions
    each of them changes on its own; and a remedy.
    """
    with progress_bar(f"explaining {directory}"):
        found = explain(directory, artifacts)
    print_explanation(console_beside(json_path), found, layers)
    if json_path is not None:
        write_json(json_path, found.to_json())


def print_explanation(console: Console, found: Explanation, most: int) -> None:
    """Print a table for each file, and a sentence for each of up to three expensive layers."""
    for file in found.files:
        if file.reason:
            console.print(
                f"{file.file}: not explained: {file.reason}", style="yellow", markup=False
            )
            continue
        _print_file(console, file, most)


def _print_file(console: Console, file: FileExplanation, most: int) -> None:
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("layer", overflow="fold")
    for heading in ("cost dB", "weights", "steps", "clipping", "decisions"):
        grid.add_column(heading, justify="right")
    for layer in file.layers[:most]:
        causes = [f"{layer.causes_db[cause]:.2f}" for cause in ("weights", "steps", "clipping")]
        changed = "/".join(str(count) for count in layer.decisions.values())
        grid.add_row(escape(layer.layer), f"{layer.cost_db:.2f}", *causes, changed)
    measured = "" if file.measured_db is None else f"; the file itself {file.measured_db:.1f} dB"
    console.print(
        f"[bold]{escape(file.file)}[/]: all causes together {file.snr_db:.1f} dB on "
        f"{file.samples} {file.kind} samples, {file.decisions} decisions changed{measured}",
        highlight=False,
    )
    console.print(grid)
    console.print(
        "cost: dB gained without it; decisions: changed by weights/steps/clipping alone",
        style="dim",
        highlight=False,
    )
    for layer in [entry for entry in file.layers[: min(most, 3)] if entry.cost_db >= _SHOWN_DB]:
        text = f"{layer.layer} costs {layer.cost_db:.1f} dB: {layer.why}. Remedy: {layer.remedy}."
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    for sentence in file.advice:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    rest = len(file.layers) - most
    if rest > 0:
        console.print(f"{rest} more layers: --layers {len(file.layers)}", style="dim")
