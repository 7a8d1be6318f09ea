"""The parameter type of options that take several values separated by commas."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ..errors import did_you_mean


class CommaList(click.ParamType):
    """Values separated by commas, converted to a tuple of strings in the given order.

    Spaces around a value are dropped. An empty or repeated value is a usage error.
    """

    def __init__(self, what: str, known: Sequence[str] | None = None) -> None:
        """Create the type.

        Args:
            what: Name of one value, for `--help` and messages: `target` is shown as `TARGET,…`.
            known: The allowed values; None allows any.
        """
        self.name = f"{what.upper()},…"
        self._what = what
        self._known = known

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return the placeholder of the value in `--help`."""
        return self.name

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Split the text at commas; a default that is already a tuple is returned unchanged."""
        if isinstance(value, tuple):
            return value
        parts = tuple(part.strip() for part in str(value).split(","))
        for part in parts:
            if not part:
                self.fail(f"expected one {self._what} or several with commas, got {value!r}.")
            if self._known is not None and part not in self._known:
                known = ", ".join(self._known)
                near = did_you_mean(part, self._known)
                self.fail(f"there is no {self._what} {part!r}; there are {known}.{near}")
            if parts.count(part) > 1:
                self.fail(f"{part!r} is given twice.")
        return parts
