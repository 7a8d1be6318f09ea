"""One file on one runtime: outputs, what ran, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts.manifest import Artifact
from . import Target, make_runner, runner_class
from .base import ArtifactError, Runner
from .session import Session

# Targets that need no child process: the export has run its own files on the first two, and the
# third one is written in Python.
_UNFENCED = ("litert", "onnxruntime", "onnx-reference")


@dataclass(frozen=True)
class TargetRun:
    """The outputs of a runtime, and a description of what ran.

    Attributes:
        outputs: Keras output name to (N, …); empty when the file could not be run.
        ran: The runner's description.
        measured: Load time and latency in milliseconds.
        problem: Why the file could not be loaded or run; empty when it could.
    """

    outputs: Mapping[str, np.ndarray]
    ran: Mapping[str, Any]
    measured: Mapping[str, Any]
    problem: str = ""

    @property
    def threads(self) -> int:
        """Number of threads that the runtime used."""
        return int(self.ran.get("threads", 1))


def load(runtime: str, path: Path) -> None:
    """Load a file on a runtime of this machine.

    Raises:
        ArtifactError: The runtime refuses the file.
    """
    with make_runner(Target(runtime), path):
        pass


def run_target(
    path: Path,
    artifact: Artifact,
    inputs: Mapping[str, np.ndarray],
    target: Target,
    *,
    threads: int = 1,
) -> TargetRun:
    """Run one file on one runtime of this machine.

    Args:
        path: The file.
        artifact: The manifest's entry of the file.
        inputs: Keras input name to (N, …) floats.
        target: The runtime and variant; its device must be `local`.
        threads: Threads that the runtime may use.

    Returns:
        Outputs and what ran.

    Raises:
        UserError: The runtime is not installed or does not know the variant.
    """
    # Other kernels may crash on a file, such as TFLite's reference softmax of 1024 8-bit scores.
    fenced = artifact.foreign or str(target) not in _UNFENCED
    return drive(make_runner(target, path, threads=threads, fenced=fenced), artifact, inputs)


def drive(runner: Runner, artifact: Artifact, inputs: Mapping[str, np.ndarray]) -> TargetRun:
    """Open a runner, run all samples on it, and close it.

    Args:
        runner: Of this machine or of a device that this machine drives.
        artifact: The manifest's entry of the runner's file.
        inputs: Keras input name to (N, …) floats.
    """
    begin = time.perf_counter()
    try:
        with runner:
            load = time.perf_counter() - begin
            session = Session(runner, artifact)
            ran = {"threads": runner.threads, **runner.describe()}
            outputs = session.run(inputs)
            differing = session.differing_rerun(inputs)
            known = runner.measured()
    except ArtifactError as error:
        ran = {"runtime": runner.runtime, "threads": runner.threads}
        return TargetRun({}, ran, {}, str(error))
    seconds = np.array(session.seconds)
    latency = {"median": np.median(seconds), "p90": np.percentile(seconds, 90)}
    measured = {
        "load_ms": 1e3 * load,
        "latency_ms": {name: 1e3 * float(value) for name, value in latency.items()},
        "differing_rerun": differing,
        **known,
    }
    return TargetRun(outputs, ran, measured)


def run_file(
    runtime: str, path: Path, artifact: Artifact, inputs: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], float]:
    """Run all samples through a file; a plain function that a child process can call.

    Args:
        runtime: One of this machine.
        path: The file.
        artifact: The manifest's entry of the file.
        inputs: Keras input name to (N, …) floats.

    Returns:
        Keras output name to (N, …), and the median time of a run in seconds.
    """
    with runner_class(runtime)(path) as runner:
        session = Session(runner, artifact)
        outputs = session.run(inputs)
        return outputs, float(np.median(session.seconds))
