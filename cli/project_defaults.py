"""Defaults of options from `[tool.renormlite]` in the nearest pyproject.toml.

`[tool.renormlite.COMMAND]` holds the defaults of one command, `[tool.renormlite]` those of every
command that has the option. A key is the name of the option without leading dashes. A path is
relative to the file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from ..errors import UserError, did_you_mean
from .comma_list import CommaList

_FILE = "pyproject.toml"


def project_defaults(
    name: str, command: click.Command, commands: Iterable[str], folder: Path | None = None
) -> dict[str, Any]:
    """Return the defaults of a command, by parameter name.

    Args:
        name: Name of the command.
        command: The command.
        commands: Names of all commands.
        folder: Folder in which the search starts, going upward; None for the current one.

    Raises:
        UserError: The file cannot be parsed, or names an unknown command or option.
    """
    file = _nearest((folder or Path.cwd()).resolve())
    if file is None:
        return {}
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{file} is not a TOML file: {error}") from error
    for key in ("tool", "renormlite"):
        table = _table(table, key, file)
    general = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    for key in table.keys() - general.keys() - set(commands):
        raise UserError(
            f"[tool.renormlite.{key}] in {file}: there is no such command."
            f"{did_you_mean(key, commands)}"
        )
    options = {
        flag.lstrip("-"): parameter
        for parameter in command.params
        if isinstance(parameter, click.Option) and parameter.expose_value
        for flag in parameter.opts
    }
    own = _table(table, name, file)
    for key in own.keys() - options.keys():
        raise UserError(
            f"'{key}' under [tool.renormlite.{name}] in {file} is not an option of {name}."
            f"{did_you_mean(key, options)}"
        )
    chosen = {key: value for key, value in (general | own).items() if key in options}
    return {
        str(options[key].name): _value(options[key], value, file.parent)
        for key, value in chosen.items()
    }


def _table(parent: dict[str, Any], key: str, file: Path) -> dict[str, Any]:
    table = parent.get(key, {})
    if not isinstance(table, dict):
        raise UserError(f"Expected a table as '{key}' in {file}. Received: {table!r}.")
    return table


def _nearest(folder: Path) -> Path | None:
    """Return the pyproject.toml of a folder or the nearest one above."""
    return next((file for at in (folder, *folder.parents) if (file := at / _FILE).is_file()), None)


def _value(option: click.Option, value: Any, folder: Path) -> Any:
    """Convert a value from the file to a default for click."""
    if isinstance(option.type, CommaList) and isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(option.type, click.Path) and isinstance(value, str):
        return str(folder / value)
    return value
