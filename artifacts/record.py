"""Typed access to untrusted JSON: each value is checked when it is read.

Each method of `Record` returns a value of its type or raises a `ValueError` that names the place of
the value and what was expected.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Optional

from ..errors import is_printable

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Record:
    """A JSON object.

    Args:
        value: The parsed value.
        where: Its place, such as "artifacts[2]"; empty for the whole file.

    Raises:
        ValueError: It is not an object.
    """

    def __init__(self, value: Any, where: str = "") -> None:
        self.where = where
        if not isinstance(value, dict):
            raise ValueError(f"{where or 'the file'} must be a JSON object")
        self._entries = value

    def __contains__(self, key: str) -> bool:
        return self._entries.get(key) is not None

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys.

        Raises:
            ValueError: One holds control characters.
        """
        for key in self._entries:
            if not is_printable(key):
                raise ValueError(f"{self.where or 'the file'} has the key {key!a}")
            yield key

    def text(self, key: str, default: Optional[str] = None) -> str:  # noqa: UP045
        """Return a text without control characters; required where there is no default."""
        value = self._get(key, default)
        if not isinstance(value, str) or not is_printable(value):
            raise self._wrong(key, "a text without control characters", value)
        return value

    def file_name(self, key: str) -> str:
        """Return the name of a file in the same directory, never a path out of it."""
        value = self.text(key)
        if not is_plain_name(value):
            raise self._wrong(key, "the plain name of a file, without a folder", value)
        return value

    def digest(self, key: str) -> str:
        """Return a SHA-256 as 64 hexadecimal digits."""
        value = self.text(key)
        if not _DIGEST.fullmatch(value):
            raise self._wrong(key, "a SHA-256 as 64 hexadecimal digits", value)
        return value

    def integer(self, key: str, *, least: int = 0) -> int:
        """Return an integer."""
        value = self._get(key, None)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self._wrong(key, f"an integer of at least {least}", value)
        return value

    def number(self, key: str) -> Optional[float]:  # noqa: UP045
        """Return a finite number; None if the key is absent."""
        value = self._entries.get(key)
        if value is None:
            return None
        if not is_number(value):
            raise self._wrong(key, "a finite number", value)
        return float(value)

    def record(self, key: str) -> Record:
        """Return an object."""
        return Record(self._get(key, None), self._place(key))

    def mapping(self, key: str) -> Mapping[str, Any]:
        """Return an object whose content the caller checks; empty if it is absent."""
        value = self._entries.get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, "a JSON object", value)
        return value

    def sequence(self, key: str, *, optional: bool = False) -> list[Any]:
        """Return a list."""
        value = self._get(key, [] if optional else None)
        if not isinstance(value, list):
            raise self._wrong(key, "a list", value)
        return value

    def records(self, key: str, *, optional: bool = False) -> list[Record]:
        """Return a list of objects."""
        entries = self.sequence(key, optional=optional)
        return [Record(entry, f"{self._place(key)}[{i}]") for i, entry in enumerate(entries)]

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts; empty if it is absent."""
        values = self.sequence(key, optional=True)
        for value in values:
            if not isinstance(value, str) or not is_printable(value):
                raise self._wrong(key, "a list of texts without control characters", value)
        return tuple(values)

    def shape(self, key: str) -> tuple[Optional[int], ...]:  # noqa: UP045
        """Return sizes, None if free."""
        sizes = self.sequence(key)
        if not all(size is None or (type(size) is int and size >= 0) for size in sizes):
            raise self._wrong(key, "a list of sizes, null where free", sizes)
        return tuple(sizes)

    def wrong(self, key: str, expected: str) -> ValueError:
        """Return the error for a value that its reader cannot accept."""
        return self._wrong(key, expected, self._entries.get(key))

    def _get(self, key: str, default: Any) -> Any:
        value = self._entries.get(key, default)
        if value is None:
            raise ValueError(f"{self._place(key)} is missing")
        return value

    def _place(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def _wrong(self, key: str, expected: str, value: Any) -> ValueError:
        shown = ascii(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return ValueError(f"{self._place(key)} must be {expected}, and is {shown}")


def parse_json(text: str) -> Any:
    """Parse JSON; refuse deep nesting and the constants NaN and Infinity.

    Raises:
        ValueError: It is not JSON.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def is_plain_name(name: str) -> bool:
    """Return whether a text names a file in a directory and cannot lead out of it."""
    unsafe = name in ("", ".", "..") or not is_printable(name)
    return not unsafe and not set(name) & set('/\\:*?"<>|') and len(name) <= 255
