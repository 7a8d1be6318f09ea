"""Options that users set: each is defined once, as a field of a frozen dataclass.

The field's default is the default of the Python signature. Its `Flag` gives the name on the command
line, the help text and the allowed values; `validate` checks values from either source.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from .errors import UserError, did_you_mean

_KEY = "flag"


@dataclasses.dataclass(frozen=True)
class Flag:
    """The command-line form of an option, and its allowed values.

    Attributes:
        name: Such as "--batch"; empty if it is not available on the command line.
        help: One or two sentences.
        group: Heading under which `--help` lists it.
        choices: The allowed values; empty if every value is allowed.
        least: Least number; None if there is no bound.
        above: Number that a value must exceed; None if there is no such bound.
        most: Greatest number; None if there is no bound.
        none: The word for None on the command line; empty if omitting the option means None.
        metavar: Placeholder of the value in `--help`; empty for one derived from the type.
        kind: Type of a value whose default is None: int, str, Path, or tuple for several names.
        implied: Value if the option is given without one; None if a value is required.
        parse: Converts the text of the command line; None if the type determines the conversion.
    """

    name: str
    help: str
    group: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    none: str = ""
    metavar: str = ""
    kind: type = str
    implied: Any = None
    parse: Callable[[str], Any] | None = None

    @property
    def bounded(self) -> bool:
        """Whether the value is a number with bounds."""
        return (self.least, self.above, self.most) != (None, None, None)

    def allows(self, number: float) -> bool:
        """Return whether a number is within the bounds; NaN never is."""
        least = -math.inf if self.least is None else self.least
        most = math.inf if self.most is None else self.most
        return least <= number <= most and (self.above is None or number > self.above)


def option(default: Any, name: str, help: str, *, group: str, **values: Any) -> Any:
    """Return a dataclass field for an option; see `Flag` for the arguments."""
    return dataclasses.field(default=default, metadata={_KEY: Flag(name, help, group, **values)})


def flag_of(field: dataclasses.Field[Any]) -> Flag | None:
    """Return the flag of a dataclass field; None if it is not an option."""
    return field.metadata.get(_KEY)


def validate(options: Any) -> None:
    """Check the fields of a dataclass against their flags.

    Args:
        options: The dataclass, with fields made by `option`.

    Raises:
        UserError: A value is not among the choices, or outside its bounds.
    """
    for field in dataclasses.fields(options):
        flag, value = flag_of(field), getattr(options, field.name)
        if flag is None or value is None:
            continue
        if flag.choices:
            _one_of(field.name, value, flag.choices)
        if flag.bounded:
            _within(field.name, value, flag)
        elif isinstance(value, float) and math.isnan(value):
            raise UserError(f"Expected {field.name} to be a number. Received: nan.")


def _one_of(name: str, value: str | Sequence[str], choices: Sequence[str]) -> None:
    if isinstance(value, str):
        if value not in choices:
            raise UserError(
                f"Expected {name} to be one of {', '.join(choices)}. Received: {value!r}."
                f"{did_you_mean(value, choices)}"
            )
    elif not value or not set(value) <= set(choices) or len(set(value)) < len(value):
        raise UserError(
            f"Expected {name} to be different names among {', '.join(choices)}. "
            f"Received: {', '.join(map(str, value)) or 'none'}."
        )


def _within(name: str, value: Any, flag: Flag) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and flag.allows(value):
        return
    if flag.above is not None:
        wanted = f"above {flag.above:g}"
    elif flag.most is None:
        wanted = f"of at least {flag.least:g}"
    else:
        wanted = f"between {flag.least:g} and {flag.most:g}"
    raise UserError(f"Expected {name} to be a number {wanted}. Received: {value!r}.")
