"""Runs a runtime in a separate Python environment, since some runtimes cannot share one.

The environment is `build/envs/RUNTIME` below the working directory (`make envs` creates it) or the
Python that the variable RENORMLITE_PYTHON_RUNTIME names, in capitals with underscores. It needs no
renormlite: a program with the code is started there and runs `worker`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..locks import temporary_folder
from .application import pack
from .base import ArtifactError, Runner, TensorInfo
from .messages import receive, send


def environment(runtime: str) -> Path | None:
    """Return the Python of a runtime's environment, or None if there is none."""
    named = os.environ.get("RENORMLITE_PYTHON_" + runtime.upper().replace("-", "_"))
    path = Path(named) if named else Path("build") / "envs" / runtime / "bin" / "python"
    return path if path.is_file() else None


def this_python() -> Path | None:
    """Return the Python of this process; None inside a bundle, which cannot be packed again."""
    return Path(sys.executable) if sys.executable and Path(__file__).is_file() else None


def _end(code: int) -> str:
    """Return how a process ended."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class IsolatedRunner(Runner):
    """A runner whose runtime runs in another process and environment.

    Args:
        artifact: The file to load.
        python: The environment's Python.
        kind: The runner that runs there.
        threads: Number of threads the runtime may use.
        variant: One of ``kind``'s variants.
    """

    def __init__(
        self,
        artifact: Path,
        *,
        python: Path,
        kind: type[Runner],
        threads: int = 1,
        variant: str = "",
    ) -> None:
        self.runtime = kind.runtime  # type: ignore[misc]
        self.variants = kind.variants  # type: ignore[misc]
        super().__init__(artifact, threads=threads, variant=variant)
        self._python = python
        self._process: subprocess.Popen[bytes] | None = None
        self._load_seconds = self._seconds_there = 0.0
        self._stack = contextlib.ExitStack()

    def _open(self) -> None:
        program = self._stack.enter_context(temporary_folder()) / "worker.pyz"
        program.write_bytes(pack("runtimes.worker", {}))
        # The environment must not see packages of this one.
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        outer = {key: value for key, value in os.environ.items() if key not in hidden}
        self._process = subprocess.Popen(
            [str(self._python), str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=outer,
        )
        opened, _ = self._ask(
            {
                "verb": "open",
                "runtime": self.runtime,
                "artifact": str(self.artifact.resolve()),
                "threads": self.threads,
                "variant": self.variant,
            }
        )
        self._load_seconds = opened["seconds"]

    def _close(self) -> None:
        if self._process is not None:
            if self._process.stdin:
                with contextlib.suppress(BrokenPipeError):  # it died before it read all
                    self._process.stdin.close()
            if self._process.stdout:
                self._process.stdout.close()
            self._process.wait()
            self._process = None
        self._stack.close()

    def _signature(self) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
        record, _ = self._ask({"verb": "signature"})

        def infos(entries: list[dict[str, Any]]) -> tuple[TensorInfo, ...]:
            return tuple(
                TensorInfo(
                    entry["name"],
                    tuple(entry["shape"]),
                    np.dtype(entry["dtype"]),
                    entry["scale"],
                    entry["zero_point"],
                )
                for entry in entries
            )

        return infos(record["inputs"]), infos(record["outputs"])

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        answer, outputs = self._ask({"verb": "infer"}, inputs)
        self._seconds_there = answer["seconds"]
        return outputs

    @property
    def seconds(self) -> float:
        """Wall time of the last inference in the other process."""
        return self._seconds_there

    def measured(self) -> dict[str, Any]:
        """Return the load time without the start of the process."""
        return {"load_ms": 1e3 * self._load_seconds}

    def describe(self) -> dict[str, object]:
        """Return the description of the runner in the other environment, and the environment."""
        record, _ = self._ask({"verb": "describe"})
        return {**record, "python": str(self._python)}

    def _ask(
        self, request: dict[str, Any], arrays: Mapping[str, np.ndarray] | None = None
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Send a request and return the answer; raise it where it is an error."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError("a runner is used inside its `with` block only")
        try:
            send(process.stdin, request, arrays or {})
            answer, values = receive(process.stdout)
        except (EOFError, BrokenPipeError) as error:
            raise ArtifactError(
                f"{self.runtime} died while it handled {self.artifact.name} "
                f"({_end(process.wait())})"
            ) from error
        if "error" in answer:
            kind = ArtifactError if answer["of_artifact"] else UserError
            raise kind(answer["error"])
        return answer, values
