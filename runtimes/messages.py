"""Messages between `isolated` and `worker` over a pipe.

A message is a length in eight bytes, little-endian, and an npz archive whose entry `message` is the
JSON; its other entries are arrays. No pickles.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

_PREFIX = "array:"


def send(stream: Any, message: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write one message."""
    buffer = io.BytesIO()
    entries: dict[str, Any] = {_PREFIX + name: array for name, array in arrays.items()}
    np.savez(buffer, message=np.array(json.dumps(message)), **entries)
    data = buffer.getvalue()
    stream.write(len(data).to_bytes(8, "little") + data)
    stream.flush()


def receive(stream: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read one message.

    Raises:
        EOFError: The other end is gone.
    """
    data = _exactly(stream, int.from_bytes(_exactly(stream, 8), "little"))
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        message = json.loads(str(archive["message"]))
        cut = len(_PREFIX)
        arrays = {key[cut:]: archive[key] for key in archive.files if key.startswith(_PREFIX)}
    return message, arrays


def _exactly(stream: Any, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError("the stream ended inside a message")
    return bytes(data)
