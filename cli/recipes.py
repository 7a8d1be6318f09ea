"""Recipes of int8 files on the command line: read from a file, and the table of a search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ..errors import UserError
from ..export.quantization.recipe import Recipe


def read_recipe(path: Path) -> Recipe:
    """Read what a search wrote, or a bare recipe.

    Raises:
        UserError: The file holds no recipe.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no JSON file: {error}.") from error
    if isinstance(data, dict) and "recipe" in data:
        data = data["recipe"]
    return Recipe.from_json(data)


def print_trials(console: Console, path: Path) -> None:
    """Print the files that a search tried, where there was one; those no other beats are marked."""
    if not path.is_file():
        return
    record = json.loads(path.read_text(encoding="utf-8"))
    trials, chosen = record["trials"], record["recipe"]
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=path.name.removesuffix(".recipe.json"))
    grid.add_column("recipe", overflow="fold")
    for heading in ("bytes", "ms", "SNR (dB)", "decisions", "accuracy"):
        grid.add_column(heading, justify="right")
    for trial in trials:
        beaten = any(
            other["bytes"] <= trial["bytes"] and other["snr_db"] > trial["snr_db"]
            for other in trials
        )
        mark = ("* " if trial["recipe"] == chosen else "") + ("" if beaten else "(Pareto) ")
        grid.add_row(
            mark + _described(trial["recipe"]),
            f"{trial['bytes']:,}",
            f"{trial['milliseconds']:.3f}",
            f"{trial['snr_db']:.1f}",
            _share(trial["decisions"]),
            _share(trial["accuracy"]),
        )
    console.print(grid)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _described(recipe: dict[str, Any]) -> str:
    parts = []
    if recipe["equalize"] is not None:
        parts.append(f"equalized {recipe['equalize']:g}")
    if recipe["ranges"] != "min-max":
        parts.append(f"{recipe['ranges']} ranges")
    if recipe["rounding"] != "nearest":
        parts.append("adaptive rounding")
    if recipe["bias_correction"]:
        parts.append("bias correction")
    for name, key in (("float", "keep_float"), ("16 bits", "keep_int16")):
        if recipe[key]:
            more = f" and {len(recipe[key]) - 3} more" if len(recipe[key]) > 3 else ""
            parts.append(f"{name}: {', '.join(recipe[key][:3])}{more}")
    return "; ".join(parts) or "int8"
