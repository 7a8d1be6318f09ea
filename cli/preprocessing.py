"""`--mean` and `--scale`: how the pixels of images become a network's inputs."""

from __future__ import annotations

import click

from ..images import Preprocessing


def preprocessing(mean: str | None, scale: str | None) -> Preprocessing | None:
    """Return what the two options say, one number each or one a channel; None without either.

    Raises:
        BadParameter: They are no numbers.
    """
    if mean is None and scale is None:
        return None
    return Preprocessing(
        mean=0.0 if mean is None else _numbers(mean),
        scale=1.0 if scale is None else _numbers(scale),
    )


def _numbers(text: str) -> float | tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"expected numbers with commas between, got {text!r}.") from None
    return values[0] if len(values) == 1 else values
