"""Command-line options generated from the dataclasses that define them (`renormlite.options`)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import click

from ..options import Flag, flag_of
from .choice import Choice
from .comma_list import CommaList
from .option_groups import grouped


class _NumberOr(click.ParamType):
    """An integer, or a word that means None."""

    def __init__(self, none: str, numbers: click.ParamType) -> None:
        self.name = f"N|{none}"
        self._none, self._numbers = none, numbers

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert the text to an integer or None."""
        if value in (None, self._none):
            return None
        try:
            return self._numbers.convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(f"{error.message.rstrip('.')}; expected a number or `{self._none}`.")


class _Parsed(click.ParamType):
    """A value parsed by a function, which raises `UserError` for invalid text."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text; a default that is not text is returned unchanged."""
        return self._parse(value) if isinstance(value, str) else value


def options_of(
    kind: type, *, only: Iterable[str] | None = None, into: str = ""
) -> Callable[..., Any]:
    """Return a decorator that adds the options of a dataclass to a command.

    Args:
        kind: A dataclass with fields made by `option`.
        only: Names of the fields to add; all by default.
        into: Argument of the command that receives an instance of the dataclass. If empty, the
            command receives each option as an argument named after its field.
    """
    fields = [
        (field, flag)
        for field in dataclasses.fields(kind)
        if (flag := flag_of(field)) is not None and flag.name
        if only is None or field.name in only
    ]
    names = [field.name for field, _ in fields]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def collect(*args: Any, **given: Any) -> Any:
            if into:
                given[into] = kind(**{name: given.pop(name) for name in names})
            return command(*args, **given)

        for field, flag in reversed(fields):
            collect = _option(field, flag)(collect)
        return collect

    return decorate


def _option(field: dataclasses.Field[Any], flag: Flag) -> Callable[..., Any]:
    """Return the decorator for one option; default, choices and bounds determine its type."""
    make, default = grouped(flag.group), cast(Any, field.default)
    common: dict[str, Any] = {"help": flag.help}
    if flag.metavar:
        common["metavar"] = flag.metavar
    if flag.implied is not None:
        common |= {"is_flag": False, "flag_value": flag.implied}
    if isinstance(default, bool):
        return make(flag.name, field.name, is_flag=True, default=default, **common)
    if isinstance(default, tuple) or flag.kind is tuple:
        names = CommaList(field.name.removesuffix("s"), flag.choices or None)
        common |= {"default": ",".join(default), "show_default": True} if default else {}
        return make(flag.name, field.name, type=names, **({"default": default} | common))
    if default is not None and default != "":
        common |= {"default": default, "show_default": True}
    return make(flag.name, field.name, type=_type(default, flag), **common)


def _type(default: Any, flag: Flag) -> click.ParamType:
    """Return the click type of a single value."""
    if flag.parse is not None:
        return _Parsed("value", flag.parse)
    if flag.choices:
        return Choice(flag.choices)
    kind = flag.kind if default is None else type(default)
    if kind is Path:
        return click.Path(path_type=Path, dir_okay=False)
    if kind is float and not flag.bounded:
        return click.FLOAT
    if kind is float:
        least = flag.least if flag.above is None else flag.above
        return click.FloatRange(least, flag.most, min_open=flag.above is not None)
    if kind is int:
        least, most = (None if n is None else int(n) for n in (flag.least, flag.most))
        numbers = click.IntRange(least, most)
        return _NumberOr(flag.none, numbers) if flag.none else numbers
    return click.STRING
