"""Defaults of options from `[tool.renormlite]` in the nearest pyproject.toml.

`[tool.renormlite.COMMAND]` holds the defaults of one command, `[tool.renormlite]` those of every
command that has the option. A key is the name of the option without leading dashes. A path is
relative to the file. A value is subject to the rules of the option on the command line; a list
stands for values separated by commas, or for an option given several times.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..errors import UserError, describe_os_error, did_you_mean
from .samples_source import SamplesSource

_FILE = "pyproject.toml"
_LARGEST = 2**63  # of a TOML integer


@dataclass(frozen=True)
class _Table:
    """A table of the file, and its name with those of the tables around it."""

    file: Path
    name: str
    entries: dict[str, Any]

    def inner(self, key: str) -> _Table:
        """Return a table in this one; without entries if there is none."""
        entries = self.entries.get(key, {})
        name = f"{self.name}.{key}".lstrip(".")
        if not isinstance(entries, dict):
            raise UserError(f"Expected a table as [{name}] in {self.file}. Received: a value.")
        return _Table(self.file, name, entries)

    def place(self, key: str) -> str:
        """Return the place of an entry for messages."""
        return f"'{key}' under [{self.name}] in {self.file}"


def project_defaults(group: click.Group, name: str, folder: Path | None = None) -> dict[str, Any]:
    """Return the defaults of one command, as the `default_map` of its group.

    Args:
        group: The group of all commands.
        name: Name of the command.
        folder: Folder in which the search starts, going upward; None for the current one.

    Raises:
        UserError: The file cannot be read, names an unknown command or option, or has a value
            that an option of the command refuses.
    """
    file = _nearest((folder or Path.cwd()).resolve())
    if file is None:
        return {}
    table = _Table(file, "", _parsed(file)).inner("tool").inner("renormlite")
    if not table.entries:
        return {}
    _check_names(table, group)
    return {name: _defaults([table, table.inner(name)], _parts(group)[name])}


def _nearest(folder: Path) -> Path | None:
    """Return the pyproject.toml of a folder or the nearest one above."""
    return next((file for at in (folder, *folder.parents) if (file := at / _FILE).is_file()), None)


def _parsed(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{describe_os_error(error)}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not a TOML file: {error}") from error


def _parts(command: click.Command) -> dict[str, click.Command]:
    """Return the commands of a group."""
    if not isinstance(command, click.Group):
        return {}
    ctx = click.Context(command)
    found = {name: command.get_command(ctx, name) for name in command.list_commands(ctx)}
    return {name: part for name, part in found.items() if part is not None}


def _options(command: click.Command) -> dict[str, click.Option]:
    """Return the options of a command, or of all commands of a group, by name without dashes."""
    parts = _parts(command)
    if parts:
        return {key: option for part in parts.values() for key, option in _options(part).items()}
    return {
        flag.removeprefix("--"): parameter
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for flag in parameter.opts
        if flag.startswith("--")
    }


def _check_names(table: _Table, command: click.Command) -> None:
    """Raise `UserError` for a name that is neither an option nor a command."""
    parts, options = _parts(command), _options(command)
    for key, value in table.entries.items():
        if key in parts:
            _check_names(table.inner(key), parts[key])
        elif isinstance(value, dict) and parts:
            raise UserError(
                f"[{table.name}.{key}] in {table.file}: there is no such command."
                f"{did_you_mean(key, parts)}"
            )
        elif key not in options:
            owner = "any command" if parts else command.name
            raise UserError(
                f"{table.place(key)} is not an option of {owner}."
                f"{did_you_mean(key, [*options, *parts])}"
            )


def _defaults(tables: Sequence[_Table], command: click.Command) -> dict[str, Any]:
    """Return the `default_map` of a command; a later table overrides an earlier one."""
    parts = _parts(command)
    if parts:
        return {n: _defaults([*tables, tables[-1].inner(n)], part) for n, part in parts.items()}
    options = _options(command)
    return {
        str(options[key].name): _value(options[key], value, table.place(key), table.file.parent)
        for table in tables
        for key, value in table.entries.items()
        if key in options
    }


def _value(option: click.Option, value: Any, place: str, folder: Path) -> Any:
    """Return a value of the file in the form of the command line."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise UserError(f"Expected true or false as {place}.")
        return value
    is_text = isinstance(option.type, (click.Path, click.types.StringParamType))
    if isinstance(value, list) and is_text and not option.multiple:
        raise UserError(f"Expected one text as {place}. Received: a list.")
    values = value if isinstance(value, list) else [value]
    texts = [_relative(option, _text(entry, is_text, place), folder) for entry in values]
    if not option.multiple:
        texts = [",".join(texts)]
    for text in texts:
        try:
            option.type.convert(text, option, None)
        except (click.UsageError, UserError) as error:
            reason = error.message if isinstance(error, click.UsageError) else str(error)
            raise UserError(f"{place}: {reason}") from error
    return texts if option.multiple else texts[0]


def _text(value: Any, only_text: bool, place: str) -> str:
    """Return a text or a number as text."""
    if isinstance(value, str) and value.isprintable():
        return value
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and not only_text and not (isinstance(value, int) and abs(value) >= _LARGEST):
        return str(value)
    raise UserError(f"Expected {'text' if only_text else 'text or a number'} as {place}.")


def _relative(option: click.Option, text: str, folder: Path) -> str:
    """Return a text; a path in it is made relative to the folder of the file."""
    if isinstance(option.type, SamplesSource):
        return option.type.relative_to(folder, text)
    is_path = isinstance(option.type, click.Path) and not (option.type.allow_dash and text == "-")
    return str(folder / text) if is_path else text
