"""The options of every command that reads a model: --shape, --import and --unsafe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from .option_groups import grouped
from .safe_console import SafeConsole

if TYPE_CHECKING:
    import keras


class Shape(click.ParamType):
    """`NAME=SIZES`, converted to a pair of the input's name and its sizes."""

    name = "NAME=N,…"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        """Split at the last `=`, since a name may contain one."""
        name, equals, sizes = str(value).rpartition("=")
        parts = sizes.replace("x", ",").split(",")
        if not equals or not name or not all(part.strip().isdigit() for part in parts):
            self.fail(f"expected NAME=SIZE,SIZE,… such as photo=224,224, got {value!r}.")
        return name, tuple(int(part) for part in parts)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which receives `shapes`, `imports` and `unsafe`."""
    model = grouped("Model")
    for option in (
        model(
            "--unsafe",
            is_flag=True,
            help="Run Python code stored in the model file (Lambda layers). Use it only for files "
            "that you trust.",
        ),
        model(
            "--import",
            "imports",
            metavar="MODULE",
            multiple=True,
            help="Import this module, which registers the model's custom layers, before the model "
            "is loaded. The current folder is searched first. Repeatable.",
        ),
        model(
            "--shape",
            "shapes",
            type=Shape(),
            multiple=True,
            help="Sizes of the free axes of an input, such as photo=224,224. Repeatable.",
        ),
    ):
        command = option(command)
    return command


def read_model(path: Path, imports: Sequence[str], unsafe: bool) -> keras.Model:
    """Load the model of a command, with a warning for each option that runs code."""
    from ..toolkit.saving import load_model

    warn = SafeConsole(stderr=True, style="yellow", highlight=False, soft_wrap=True, markup=False)
    for module in imports:
        warn.print(f"--import {module} runs the code of that module")
    if unsafe:
        warn.print(f"--unsafe runs any Python code stored in {path}")
    return load_model(path, imports=imports, unsafe=unsafe)


def print_notes(console: Console, notes: Sequence[str]) -> None:
    """Print the changes that were made to a model before it was folded."""
    for note in notes:
        console.print(
            f"note: {note}", style="yellow", highlight=False, soft_wrap=True, markup=False
        )
