"""The sentence for a model that Keras itself cannot run."""

from __future__ import annotations

import re
from collections.abc import Callable

from ..errors import UserError

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LAYER = re.compile(r"Exception encountered when calling (\w+)")
# Lines of Keras' and TensorFlow's messages that tell where code stands.
_NO_REASON = re.compile(r"in user code:|File |raise |return |Arguments received|\w+\(|[•~^]|$")


def not_running(error: Exception, readable: Callable[[str], str] = str) -> UserError:
    """Return the error to raise for what Keras raised when it ran a model.

    Args:
        error: What Keras raised.
        readable: From a name in a message to one that the user knows.
    """
    text = _COLOUR.sub("", str(error))
    layer = _LAYER.search(text)
    behind = text[layer.end() :].partition("\n")[2] if layer else text
    lines = [line.strip() for line in behind.splitlines()]
    reason = next((line for line in lines if not _NO_REASON.match(line)), type(error).__name__)
    reason = re.sub(r"^\w*(Error|Exception): ", "", reason).rstrip(".")
    where = f" in a layer of type {layer[1]}" if layer else ""
    return UserError(
        f"Keras cannot run the model{where}: {readable(reason)}. Make model.predict() work on "
        "inputs of the model's own shapes first."
    )
