"""Command-line options made from the dataclasses that define them (`renormlite.options`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import click

from ..options import Flag, flag_of
from .comma_list import CommaList
from .option_groups import grouped


class _NumberOr(click.ParamType):
    """An integer, or the word that stands for None."""

    def __init__(self, none: str, numbers: click.ParamType) -> None:
        self.name = f"N|{none}"
        self._none, self._numbers = none, numbers

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the value."""
        if value in (None, self._none):
            return None
        try:
            return self._numbers.convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(f"{error.message.rstrip('.')}; expected a number or `{self._none}`.")


def options_of(kind: type, leave_out: Iterable[str] = ()) -> Callable[..., Any]:
    """Return a decorator that gives a command the options of a dataclass.

    The command gets each by the name of its field.

    Args:
        kind: A dataclass with fields made by `option`.
        leave_out: Names of fields that the command does not offer.
    """
    fields = [(f, flag) for f in dataclasses.fields(kind) if (flag := flag_of(f)) is not None]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for field, flag in reversed(fields):
            if field.name not in leave_out:
                command = _option(field, flag)(command)
        return command

    return decorate


def _option(field: dataclasses.Field[Any], flag: Flag) -> Callable[..., Any]:
    """Return the decorator for one option; its type follows from default, choices and bounds."""
    make, default = grouped(flag.group), field.default
    common: dict[str, Any] = {"help": flag.help}
    if flag.metavar:
        common["metavar"] = flag.metavar
    if isinstance(default, bool):
        return make(flag.name, field.name, is_flag=True, default=default, **common)
    if isinstance(default, tuple):
        names = CommaList(field.name.removesuffix("s"), flag.choices or None)
        shown = {"default": ",".join(default), "show_default": True} if default else {"default": ()}
        return make(flag.name, field.name, type=names, **shown, **common)
    if default is not None and default != "":
        common |= {"default": default, "show_default": True}
    return make(flag.name, field.name, type=_type(default, flag), **common)


def _type(default: Any, flag: Flag) -> click.ParamType:
    """Return click's type of a single value."""
    if flag.choices:
        return click.Choice(flag.choices)
    if flag.least is None and flag.most is None:
        return click.STRING
    bounds = (flag.least, flag.most)
    if isinstance(default, float) or any(isinstance(bound, float) for bound in bounds):
        return click.FloatRange(*bounds)
    least, most = (None if bound is None else int(bound) for bound in bounds)
    numbers = click.IntRange(least, most)
    return _NumberOr(flag.none, numbers) if flag.none else numbers
