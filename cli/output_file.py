"""The output files of commands: checks of their names, and the option `--json`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ..errors import UserError
from ..files import write_text
from .safe_console import SafeConsole
from .verbosity import is_quiet, standard_output

_STANDARD_OUTPUT = Path("-")


class OutputFile(click.Path):
    """A file to write, whose name must have the suffix of its format."""

    def __init__(self, suffix: str) -> None:
        """Create the type for a suffix such as `.keras`."""
        super().__init__(dir_okay=False, path_type=Path)
        self._suffix = suffix

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Check the suffix."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path.suffix != self._suffix:
            raise UserError(
                f"Expected a file name that ends in {self._suffix}. Received: '{path}'."
            )
        return path


def json_option(what: str, option: Callable[..., Any] = click.option) -> Callable[..., Any]:
    """Return a decorator that adds the option `--json FILE`, as ``json_path``.

    Args:
        what: Description of the content, for `--help`.
        option: The decorator factory to use, `click.option` or one made by `grouped`.
    """
    decorator: Callable[..., Any] = option(
        "--json",
        "json_path",
        type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
        metavar="FILE",
        help=f"Write {what} as JSON to this file, or to standard output if it is `-`.",
    )
    return decorator


def write_json(path: Path, record: Any) -> None:
    """Write nested data as JSON to a file, or to standard output."""
    from ..artifacts.plain_json import plain  # imports NumPy, which `--help` does not need

    write_json_text(path, json.dumps(plain(record), indent=2))


def write_json_text(path: Path, text: str) -> None:
    """Write JSON to a file, or to standard output."""
    if path == _STANDARD_OUTPUT:
        click.echo(text.rstrip("\n"), file=standard_output())
    else:
        write_text(path, text.rstrip("\n") + "\n")


def console_beside(json_path: Path | None) -> Console:
    """Return the console for human-readable text: on standard error if JSON goes to stdout."""
    return SafeConsole(stderr=json_path == _STANDARD_OUTPUT, quiet=is_quiet())
