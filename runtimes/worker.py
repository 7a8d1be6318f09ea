"""The other end of `isolated`: a process that serves one runner over its standard streams."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import UserError
from . import runner_class
from .base import ArtifactError, Runner, TensorInfo
from .messages import receive, send


def main(program: str) -> int:
    """Serve requests from standard input until it closes.

    Args:
        program: Path of the archive of the program.
    """
    # The runtime's own output must not mix with the answers.
    answers: BinaryIO = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    runner: Runner | None = None
    while True:
        try:
            request, arrays = receive(sys.stdin.buffer)
        except EOFError:
            return 0
        try:
            if request["verb"] == "open":
                begin = time.perf_counter()
                runner = _opened(request)
                send(answers, {"seconds": time.perf_counter() - begin}, {})
            else:
                assert runner is not None
                send(answers, *_answer(runner, request["verb"], arrays))
        except UserError as error:
            of_artifact = isinstance(error, ArtifactError)
            send(answers, {"error": str(error), "of_artifact": of_artifact}, {})


def _opened(request: Mapping[str, Any]) -> Runner:
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
    outputs = runner.infer(arrays)
    return {"seconds": runner.seconds}, outputs


def _record(info: TensorInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "shape": list(info.shape),
        "dtype": info.dtype.name,
        "scale": info.scale,
        "zero_point": info.zero_point,
    }
