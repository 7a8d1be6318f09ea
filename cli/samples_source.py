"""The parameter type of the options that take samples, such as `--inputs`."""

from __future__ import annotations

from pathlib import Path

import click

_RANDOM = "random"


class SamplesSource(click.types.StringParamType):
    """A file, a folder, a quoted pattern, `module:function`, or `random`."""

    @staticmethod
    def relative_to(folder: Path, text: str) -> str:
        """Return the text; a path is made relative to a folder."""
        path = str(folder / text)
        is_path = text != _RANDOM and (":" not in text or Path(path).exists())
        return path if is_path else text
