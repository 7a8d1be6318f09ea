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
    """`NAME=SIZES`, as a pair of the input's name and its sizes."""

    name = "NAME=N,…"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        """Read name and sizes; names may hold `=`, sizes do not."""
        name, equals, sizes = str(value).rpartition("=")
        parts = sizes.replace("x", ",").split(",")
        if not equals or not name or not all(part.strip().isdigit() for part in parts):
            self.fail(f"expected NAME=SIZE,SIZE,… such as photo=224,224, got {value!r}.")
        return name, tuple(int(part) for part in parts)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command; it gets `shapes`, `imports` and `unsafe`."""
    model = grouped("Model")
    for option in (
        model(
            "--unsafe",
            is_flag=True,
            help="Run Python code that the model file holds (Lambda layers): only for files whose "
            "origin you trust.",
        ),
        model(
            "--import",
            "imports",
            metavar="MODULE",
            multiple=True,
            help="Import this module first, from the current folder too: it registers the model's "
            "own layers. Its code runs. Repeatable.",
        ),
        model(
            "--shape",
            "shapes",
            type=Shape(),
            multiple=True,
            help="Sizes of an input's free axes, such as photo=224,224. Repeatable.",
        ),
    ):
        command = option(command)
    return command


def read_model(path: Path, imports: Sequence[str], unsafe: bool) -> keras.Model:
    """Load the model of a command, and say whose code that runs."""
    from ..toolkit.saving import load_model

    warn = SafeConsole(stderr=True, style="yellow", highlight=False, soft_wrap=True, markup=False)
    for module in imports:
        warn.print(f"--import {module} runs the code of that module")
    if unsafe:
        warn.print(f"--unsafe runs whatever Python code {path} holds")
    return load_model(path, imports=imports, unsafe=unsafe)


def say_notes(console: Console, notes: Sequence[str]) -> None:
    """Print what had to be changed before a model could be folded."""
    for note in notes:
        console.print(
            f"note: {note}", style="yellow", highlight=False, soft_wrap=True, markup=False
        )
