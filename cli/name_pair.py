"""The parameter type of options that say which name stands for which."""

from __future__ import annotations

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
