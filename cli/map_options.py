"""`--map-input` and `--map-output`: which names of two models belong together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


class NamePair(click.ParamType):
    """`NAME=NAME`, as a pair."""

    name = "NAME=NAME"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Split at the first `=`."""
        first, equals, second = str(value).partition("=")
        if not (first and equals and second):
            self.fail(f"expected a name, = and the file's name, got {value!r}.")
        return first, second


def map_options(first: str, second: str, option: Callable[..., Any]) -> Callable[..., Any]:
    """Return a decorator for both; the command gets ``map_inputs`` and ``map_outputs``.

    Args:
        first: Whose name comes first, such as "A's".
        second: Whose name comes second.
        option: What makes the options.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for kind in ("output", "input"):
            command = option(
                f"--map-{kind}",
                f"map_{kind}s",
                type=NamePair(),
                multiple=True,
                help=f"Use {first} {kind} of the first name for {second} of the second. "
                "Repeatable.",
            )(command)
        return command

    return decorate
