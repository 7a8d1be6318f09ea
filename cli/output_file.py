"""Files that commands write: their names, and `--json`, which means the same on every command."""

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
    """A file to write, whose name must end as its format demands."""

    def __init__(self, suffix: str) -> None:
        """Take the ending, such as `.keras`."""
        super().__init__(dir_okay=False, path_type=Path)
        self._suffix = suffix

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Check the ending."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path.suffix != self._suffix:
            raise UserError(
                f"Expected a file name that ends in {self._suffix}. Received: '{path}'."
            )
        return path


def json_option(what: str, option: Callable[..., Any] = click.option) -> Callable[..., Any]:
    """Return the option `--json FILE`, which the command gets as ``json_path``.

    Args:
        what: What is written, for `--help`.
        option: What makes the option.
    """
    decorator: Callable[..., Any] = option(
        "--json",
        "json_path",
        type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
        metavar="FILE",
        help=f"Write {what} as JSON to this file; - writes to standard output.",
    )
    return decorator


def write_json(path: Path, record: Any) -> None:
    """Write nested data as JSON to a file, or to standard output."""
    from ..artifacts.plain_json import plain  # it imports NumPy, which `--help` does without

    write_json_text(path, json.dumps(plain(record), indent=2))


def write_json_text(path: Path, text: str) -> None:
    """Write JSON to a file, or to standard output."""
    if path == _STANDARD_OUTPUT:
        click.echo(text.rstrip("\n"), file=standard_output())
    else:
        write_text(path, text.rstrip("\n") + "\n")


def console_beside(json_path: Path | None) -> Console:
    """Return where a command prints for people: standard error where JSON takes standard output."""
    return SafeConsole(stderr=json_path == _STANDARD_OUTPUT, quiet=is_quiet())
