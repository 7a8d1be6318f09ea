"""The options `--quiet` and `--verbose` of every command."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from typing import Any, TextIO

import click

from .. import quiet

_STDOUT = "renormlite.stdout"


def with_verbosity(command: click.Command) -> click.Command:
    """Add both options to a command, or to every command of a group, unless it has them."""
    if isinstance(command, click.Group):
        for part in command.commands.values():
            with_verbosity(part)
    elif all(parameter.name != "quiet" for parameter in command.params):
        command.params += [
            _option("quiet", _quiet, "Print only errors."),
            _option(
                "verbose", _verbose, "Also print the output of TensorFlow, converters and runtimes."
            ),
        ]
    return command


def _option(name: str, callback: Callable[..., None], help: str) -> click.Option:
    return click.Option(
        [f"-{name[0]}", f"--{name}"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=callback,
        help=help,
    )


def _quiet(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[_STDOUT] = sys.stdout
        ctx.with_resource(contextlib.redirect_stdout(io.StringIO()))


def _verbose(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.with_resource(quiet.nothing_held_back())


def is_quiet() -> bool:
    """Return whether the running command was given `--quiet`."""
    return _meta().get(_STDOUT) is not None


def standard_output() -> TextIO | None:
    """Return the original standard output where `--quiet` has redirected it, else None."""
    return _meta().get(_STDOUT)


def _meta() -> dict[str, Any]:
    context = click.get_current_context(silent=True)
    return {} if context is None else context.meta
