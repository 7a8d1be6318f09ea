"""The exception for mistakes of the user; the command line prints it as one line (exit code 2)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input that the user can correct.

    The message states the rule that was broken, what was received, and how to correct it, in one
    paragraph without a traceback: ``Expected a .keras file. Received: 'a.h5'. Save with …``.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(without_code(message))


# The C0 and C1 control characters, which can move a terminal's cursor or forge lines of a log.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Return an untrusted text with its control characters escaped, as `\\x1b`."""
    return _CONTROL.sub(lambda match: ascii(match.group())[1:-1], text)


def is_printable(text: str) -> bool:
    """Return whether a text has no control characters."""
    return _CONTROL.search(text) is None


# A Python lambda as Keras writes it into a config, and its code alone: marshalled (type 0xe3, then
# the number of arguments in 4 bytes), in base64.
_LAMBDA = re.compile(r"\{'class_name': '__lambda__', 'config': .*?\)\}\}")
_CODE = re.compile(r"b?(['\"])4[w-z0-9+/][AEIMQUYcgkosw048]AAAA(?:[\w+/=]|\\n)+\1")


def without_code(text: str) -> str:
    """Return a text in which no serialized Python code is printed."""
    return _CODE.sub("(code)", _LAMBDA.sub("a lambda", text))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean '…'?" with the closest known word; empty if there is none."""
    near = difflib.get_close_matches(word.lower(), known, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def describe_os_error(error: OSError) -> str:
    """Return the file and the reason of an OSError as one clause."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason
