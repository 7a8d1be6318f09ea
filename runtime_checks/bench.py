"""Measures inference times of artifacts in turn, so that their ratios hold on a busy machine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..artifacts.directory import ExportDirectory, read_export
from ..artifacts.manifest import Artifact
from ..errors import UserError
from ..runtimes import LOCAL, Target, make_runner
from ..runtimes.session import Session
from .selection import select

if TYPE_CHECKING:
    from ..devices.base import DeviceOptions

WARM_UP = 3

Pairs = Sequence[tuple[Target, Artifact]]


@dataclass(frozen=True)
class Latency:
    """Inference times of one artifact on one target, one sample at a time.

    Attributes:
        target: Where it ran.
        artifact: File name.
        load_ms: Time to load the file.
        median_ms: Median over the rounds; the mean where the device reports only that.
        p90_ms: 90th percentile over the rounds; None if the device reports only a mean.
        ratio: This time over the first row's. Where both ran in turn, the median over the rounds of
            their ratio: other work on the machine slows both alike and cancels.
        note: A remark on the times, such as that the device is emulated.
    """

    target: str
    artifact: str
    load_ms: float
    median_ms: float
    p90_ms: float | None
    ratio: float
    note: str


@dataclass(frozen=True)
class _Timing:
    """The measurements of one artifact; `turns` are its rounds, if it was measured in turn."""

    load_ms: float
    median_ms: float
    p90_ms: float | None
    note: str = ""
    turns: np.ndarray | None = None

    def over(self, other: _Timing) -> float:
        """Return the ratio of this time to another."""
        if self.turns is None or other.turns is None:
            return self.median_ms / other.median_ms
        return float(np.median(self.turns / other.turns))


def measure_latency(
    directory: Path,
    targets: Sequence[str] | None = None,
    *,
    rounds: int = 50,
    threads: int = 1,
    devices: DeviceOptions | None = None,
) -> list[Latency]:
    """Time every artifact of an export on every target.

    On this machine all files run in turn in each round; a device runs one file after the other.

    Args:
        directory: An export directory.
        targets: Targets such as `litert` or `litert@ssh:pi@raspberrypi.local`; by default the first
            installed runtime of each format.
        rounds: Number of timed runs of each, on this machine after three warm-up runs.
        threads: Threads each runtime may use.
        devices: Options for devices other than this machine.

    Returns:
        A row for each artifact on each target, in the order asked for.

    Raises:
        UserError: There is no export, a target has nothing to load, a device is out of reach, or
            a runtime cannot run a file.
    """
    export = read_export(directory)
    pairs = select(export, targets).pairs
    golden = export.read_golden()
    inputs = {name: array[:1] for name, array in golden.inputs.items()}
    here = [pair for pair in pairs if pair[0].device == LOCAL]
    found = dict(zip(map(_key, here), _take_turns(export, here, inputs, rounds, threads)))
    for target in dict.fromkeys(target for target, _ in pairs if target.device != LOCAL):
        files = [artifact for where, artifact in pairs if where == target]
        timings = _time_on_device(export, target, files, inputs, rounds, threads, devices)
        found.update({_key((target, artifact)): timing for artifact, timing in timings})
    first = found[_key(pairs[0])]
    return [
        Latency(
            target=str(target),
            artifact=artifact.file,
            load_ms=timing.load_ms,
            median_ms=timing.median_ms,
            p90_ms=timing.p90_ms,
            ratio=timing.over(first),
            note=timing.note,
        )
        for target, artifact in pairs
        for timing in [found[_key((target, artifact))]]
    ]


def _key(pair: tuple[Target, Artifact]) -> tuple[str, str]:
    return str(pair[0]), pair[1].file


def _take_turns(
    export: ExportDirectory,
    pairs: Pairs,
    inputs: Mapping[str, np.ndarray],
    rounds: int,
    threads: int,
) -> list[_Timing]:
    """Time artifacts on this machine, each once per round."""
    with contextlib.ExitStack() as stack:
        sessions, load = [], []
        for target, artifact in pairs:
            begin = time.perf_counter()
            runner = make_runner(target, export.path / artifact.file, threads=threads)
            sessions.append(Session(stack.enter_context(runner), artifact))
            spent = 1e3 * (time.perf_counter() - begin)
            load.append(runner.measured().get("load_ms", spent))
        for _ in range(WARM_UP + rounds):
            for session in sessions:
                session.run(inputs)
    times = [1e3 * np.array(session.seconds[WARM_UP:]) for session in sessions]
    return [
        _Timing(loaded, float(np.median(row)), float(np.percentile(row, 90)), turns=row)
        for loaded, row in zip(load, times)
    ]


def _time_on_device(
    export: ExportDirectory,
    target: Target,
    artifacts: Sequence[Artifact],
    inputs: Mapping[str, np.ndarray],
    rounds: int,
    threads: int,
    devices: DeviceOptions | None,
) -> Iterator[tuple[Artifact, _Timing]]:
    """Time artifacts on a device, which measures each inference of a run over many samples."""
    from ..devices import run_on_device

    count = rounds * max(artifact.inputs[0].shape[0] or 1 for artifact in artifacts)
    repeated = {name: np.repeat(one, count, axis=0) for name, one in inputs.items()}
    for artifact, run in run_on_device(
        export, artifacts, repeated, target, threads=threads, options=devices
    ):
        if run.problem:
            raise UserError(run.problem)
        latency = run.measured["latency_ms"]
        yield (
            artifact,
            _Timing(
                run.measured["load_ms"],
                latency.get("median", latency.get("mean")),
                latency.get("p90"),
                run.measured.get("note", ""),
            ),
        )
