"""The error message for a model that Keras cannot run."""

from __future__ import annotations

import re
from collections.abc import Callable

from ..errors import UserError

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LAYER = re.compile(r"Exception encountered when calling (\w+)")
# The exception at the end of a traceback through the code of a layer.
_RAISED = re.compile(r"^ *\w+(Error|Exception): ", re.MULTILINE)
# Lines in messages of Keras and TensorFlow that give a source location instead of a reason.
_NO_REASON = re.compile(r"in user code:|File |raise |return |Arguments received|\w+\(|[•~^]|$")


def not_running(error: Exception, readable: Callable[[str], str] = str) -> UserError:
    """Convert an exception that Keras raised while running a model.

    Args:
        error: The exception.
        readable: Replaces names in a message by names that the user knows.

    Returns:
        The error to raise instead.
    """
    text = _COLOUR.sub("", str(error))
    layer = _LAYER.search(text)
    behind = text[layer.end() :].partition("\n")[2] if layer else text
    raised = list(_RAISED.finditer(behind))
    if "in user code:" in behind and raised:
        behind = behind[raised[-1].start() :]
    lines = [line.strip() for line in behind.splitlines()]
    reason = next((line for line in lines if not _NO_REASON.match(line)), type(error).__name__)
    reason = re.sub(r"^\w*(Error|Exception): ", "", reason).rstrip(".")
    where = f" in a layer of type {layer[1]}" if layer else ""
    return UserError(
        f"Keras cannot run the model{where}: {readable(reason)}. First make model.predict() work "
        "on inputs of the model's shapes."
    )
