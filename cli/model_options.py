"""Options that several commands share: --shape, --import, --unsafe, --copy-budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from ..user_code import import_user_module
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


#: The option of commands that fold.
copy_budget_option = click.option(
    "--copy-budget",
    default=0,
    show_default=True,
    help="Number of parameters that copies of shared layers may add.",
)


def import_option(what: str, group: Callable[..., Any]) -> Callable[..., Any]:
    """Return a decorator that adds the option `--import`, as ``imports``.

    Args:
        what: Clause for `--help` on the purpose of the module.
        group: The decorator factory to use, `click.option` or one made by `grouped`.
    """
    option: Callable[..., Any] = group(
        "--import",
        "imports",
        metavar="MODULE",
        multiple=True,
        help=f"Import this module, which {what}, at the start. The current folder is searched "
        "first. Repeatable.",
    )
    return option


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
        import_option("registers the model's custom layers or a runtime", model),
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

    import_modules(imports)
    if unsafe:
        _warn(f"--unsafe runs any Python code stored in {path}")
    return load_model(path, unsafe=unsafe)


def import_modules(names: Sequence[str]) -> None:
    """Import the modules of --import, with a warning that their code runs."""
    for name in names:
        _warn(f"--import {name} runs the code of that module")
        import_user_module(name)


def _warn(line: str) -> None:
    console = SafeConsole(
        stderr=True, style="yellow", highlight=False, soft_wrap=True, markup=False
    )
    console.print(line)


def print_notes(console: Console, notes: Sequence[str]) -> None:
    """Print the changes that were made to a model before it was folded."""
    for note in notes:
        console.print(
            f"note: {note}", style="yellow", highlight=False, soft_wrap=True, markup=False
        )
