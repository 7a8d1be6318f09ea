"""The other end of `isolated`: a process that serves one runner over its standard streams.

A message is a length in eight bytes, little-endian, and an npz archive whose entry `message` is the
JSON; its other entries are arrays. No pickles.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...errors import UserError
from .base import ArtifactError, Runner, TensorInfo

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


def serve() -> None:
    """Serve requests from standard input until it closes."""
    # What the runtime prints must not mix with the answers.
    answers: BinaryIO = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    runner: Runner | None = None
    while True:
        try:
            request, arrays = receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            if request["verb"] == "open":
                runner = _opened(request)
                send(answers, {}, {})
            else:
                assert runner is not None
                send(answers, *_answer(runner, request["verb"], arrays))
        except UserError as error:
            of_artifact = isinstance(error, ArtifactError)
            send(answers, {"error": str(error), "of_artifact": of_artifact}, {})


def _opened(request: Mapping[str, Any]) -> Runner:
    from . import runner_class

    kind = runner_class(request["runtime"])
    runner = kind(Path(request["artifact"]), threads=request["threads"], variant=request["variant"])
    return runner.__enter__()


def _answer(
    runner: Runner, verb: str, arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], Mapping[str, np.ndarray]]:
    if verb == "signature":
        return {
            "inputs": [_record(info) for info in runner.inputs],
            "outputs": [_record(info) for info in runner.outputs],
        }, {}
    if verb == "describe":
        return dict(runner.describe()), {}
    return {}, runner.infer(arrays)


def _record(info: TensorInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "shape": list(info.shape),
        "dtype": info.dtype.name,
        "scale": info.scale,
        "zero_point": info.zero_point,
    }
