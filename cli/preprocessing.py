"""`--mean` and `--scale`: the conversion of pixels to the inputs of a network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click

from ..artifacts.images import Preprocessing
from .option_groups import grouped

Numbers = float | tuple[float, ...]


class Channels(click.ParamType):
    """One number, or one for each channel, separated by commas."""

    name = "X[,X,X]"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Numbers:
        """Convert the text to one number or a tuple."""
        try:
            values = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"expected numbers separated by commas, got {value!r}.")
        if not all(map(math.isfinite, values)):
            self.fail(f"expected finite numbers, got {value!r}.")
        return values[0] if len(values) == 1 else values


def preprocessing(mean: Numbers | None, scale: Numbers | None) -> Preprocessing | None:
    """Return the preprocessing given by the two options; None if neither is given."""
    if mean is None and scale is None:
        return None
    return Preprocessing(mean=0.0 if mean is None else mean, scale=1.0 if scale is None else scale)


def preprocessing_options(help: str, default: str = "") -> Callable[..., Any]:
    """Return a decorator that adds both options, as ``mean`` and ``scale``.

    Args:
        help: Help text of `--mean`.
        default: Description of the default, for `--help`.
    """
    note = f"  [default: {default}]" if default else ""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        option = grouped("Samples")
        command = option("--scale", type=Channels(), help="See --mean.")(command)
        decorated: Callable[..., Any] = option("--mean", type=Channels(), help=help + note)(command)
        return decorated

    return decorate
