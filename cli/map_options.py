"""`--map-input` and `--map-output`: pairs of names of the same input or output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


class NamePair(click.ParamType):
    """`NAME=NAME`, converted to a pair."""

    name = "NAME=NAME"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Split at the first `=`."""
        first, equals, second = str(value).partition("=")
        if not (first and equals and second):
            self.fail(f"expected NAME=NAME, got {value!r}.")
        return first, second


def map_options(first: str, second: str, option: Callable[..., Any]) -> Callable[..., Any]:
    """Return a decorator that adds both options, as ``map_inputs`` and ``map_outputs``.

    Args:
        first: Owner of the first name in `--help`, such as "A's".
        second: Owner of the second name.
        option: The decorator factory to use, `click.option` or one made by `grouped`.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for kind in ("output", "input"):
            command = option(
                f"--map-{kind}",
                f"map_{kind}s",
                type=NamePair(),
                multiple=True,
                help=f"Match {first} {kind} with the first name to {second} {kind} with the "
                "second. Repeatable.",
            )(command)
        return command

    return decorate
