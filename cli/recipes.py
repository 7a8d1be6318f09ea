"""Reads the recipe of an int8 file, and prints the table of a recipe search."""

from __future__ import annotations

import json
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from ..errors import UserError
from ..export.quantization.recipe import Recipe
from ..files import regular


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from the JSON file of a search, or from a file with the recipe alone.

    Raises:
        UserError: The file does not hold a recipe.
    """
    try:
        data = json.loads(regular(path).read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a JSON file: {error}.") from error
    if isinstance(data, dict) and "recipe" in data:
        data = data["recipe"]
    return Recipe.from_json(data)


def print_trials(console: Console, path: Path) -> None:
    """Print the trials of a search, if there was one, and mark the Pareto-optimal ones."""
    if not path.is_file():
        return
    from ..export.quantization.pareto import pareto
    from ..export.quantization.search import Trial

    record = json.loads(path.read_text(encoding="utf-8"))
    trials = tuple(Trial.from_json(entry) for entry in record["trials"])
    chosen, front = Recipe.from_json(record["recipe"]), pareto(trials)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=path.name.removesuffix(".recipe.json"))
    grid.add_column("recipe", overflow="fold")
    for heading in ("bytes", "ms", "SNR (dB)", "decisions", "accuracy"):
        grid.add_column(heading, justify="right")
    for trial in trials:
        mark = ("* " if trial.recipe == chosen else "") + ("(Pareto) " if trial in front else "")
        grid.add_row(
            mark + _described(trial.recipe),
            f"{trial.bytes:,}",
            f"{trial.milliseconds:.3f}",
            f"{trial.snr_db:.1f}",
            _share(trial.decisions),
            _share(trial.accuracy),
        )
    console.print(grid)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _described(recipe: Recipe) -> str:
    parts = []
    if recipe.equalize is not None:
        parts.append(f"equalized {recipe.equalize:g}")
    if recipe.ranges != "min-max":
        parts.append(f"{recipe.ranges} ranges")
    if recipe.rounding != "nearest":
        parts.append("adaptive rounding")
    if recipe.statistics:
        parts.append("statistics")
    if recipe.bias_correction:
        parts.append("bias correction")
    if not recipe.fold:
        parts.append("not folded")
    for name, layers in (("float", recipe.keep_float), ("16 bits", recipe.keep_int16)):
        if layers:
            more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
            parts.append(f"{name}: {', '.join(layers[:3])}{more}")
    return "; ".join(parts) or "int8"
