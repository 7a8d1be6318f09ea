"""Options in groups: `--help` of a command with many options lists them under headings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

_OTHERS = "Options"


class GroupedOption(click.Option):
    """An option with the heading under which `--help` lists it."""

    def __init__(self, *args: Any, group: str, **attributes: Any) -> None:
        """Create the option; `group` is the heading, the rest are the arguments of click."""
        super().__init__(*args, **attributes)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose `--help` lists its options by group, in order of first occurrence."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each group; `--help` itself comes last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                group = getattr(parameter, "group", _OTHERS)
                groups.setdefault(group, []).append(record)
        others = groups.pop(_OTHERS, [])
        for name, records in [*groups.items(), (_OTHERS, others)]:
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


def grouped(group: str) -> Callable[..., Any]:
    """Return a variant of `click.option` for options that `--help` lists under a heading."""
    return functools.partial(click.option, cls=GroupedOption, group=group)
