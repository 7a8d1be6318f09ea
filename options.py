"""Options that users set: each is defined once, as a field of a frozen dataclass.

The field's default is the default of the Python signature. Its `Flag` names it on the command line,
explains it and says which values it takes; `validate` holds every value to that, wherever it came
from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from .errors import UserError

_KEY = "flag"


@dataclasses.dataclass(frozen=True)
class Flag:
    """How an option appears on the command line, and which values it takes.

    Attributes:
        name: Such as "--batch".
        help: One or two sentences.
        group: Heading under which `--help` lists it.
        choices: All values there are; empty where any will do.
        least: Least number; None where there is no bound.
        most: Greatest number; None where there is no bound.
        none: The word for None on the command line; empty where None is left out.
        metavar: Placeholder of the value in `--help`; empty for one made from the type.
    """

    name: str
    help: str
    group: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    none: str = ""
    metavar: str = ""


def option(default: Any, name: str, help: str, *, group: str, **values: Any) -> Any:
    """Return a dataclass field for an option; see `Flag` for the arguments."""
    return dataclasses.field(default=default, metadata={_KEY: Flag(name, help, group, **values)})


def flag_of(field: dataclasses.Field[Any]) -> Flag | None:
    """Return the flag of a dataclass field; None where it is no option of the command line."""
    return field.metadata.get(_KEY)


def validate(options: Any) -> None:
    """Hold the fields of a dataclass to their flags.

    Args:
        options: The dataclass, with fields made by `option`.

    Raises:
        UserError: A value is none of the choices, or outside its bounds.
    """
    for field in dataclasses.fields(options):
        flag, value = flag_of(field), getattr(options, field.name)
        if flag is None or value is None:
            continue
        if flag.choices:
            _one_of(field.name, value, flag.choices)
        if flag.least is not None or flag.most is not None:
            _within(field.name, value, flag)


def _one_of(name: str, value: str | Sequence[str], choices: Sequence[str]) -> None:
    if isinstance(value, str):
        if value not in choices:
            raise UserError(
                f"Expected {name} to be one of {', '.join(choices)}. Received: {value!r}."
            )
    elif not value or not set(value) <= set(choices) or len(set(value)) < len(value):
        raise UserError(
            f"Expected {name} to be different names among {', '.join(choices)}. "
            f"Received: {', '.join(map(str, value)) or 'none'}."
        )


def _within(name: str, value: Any, flag: Flag) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    least = -float("inf") if flag.least is None else flag.least
    most = float("inf") if flag.most is None else flag.most
    if number and least <= value <= most:  # NaN is in no interval
        return
    wanted = f"at least {least:g}" if flag.most is None else f"between {least:g} and {most:g}"
    raise UserError(f"Expected {name} to be a number of {wanted}. Received: {value!r}.")
