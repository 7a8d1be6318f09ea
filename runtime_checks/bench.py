"""How long one inference takes, artifact beside artifact, so that the ratios can be trusted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from .manifest import read_export
from .runners import Target, make_runner
from .session import Session

WARM_UP = 3


@dataclass(frozen=True)
class Latency:
    """Inference times of one artifact on one target, one sample at a time.

    Attributes:
        target: Where it ran.
        artifact: File name.
        load_ms: Time to load the file.
        median_ms: Median over the rounds.
        p90_ms: 90th percentile over the rounds.
        ratio: Median over the rounds of this time over the first row's of the same round; other
            work on the machine slows both alike and drops out.
    """

    target: str
    artifact: str
    load_ms: float
    median_ms: float
    p90_ms: float
    ratio: float


def measure_latency(
    directory: Path, targets: Sequence[str], *, rounds: int = 50, threads: int = 1
) -> list[Latency]:
    """Time every artifact of an export on every target, in turn, for a number of rounds.

    Args:
        directory: An export directory.
        targets: Targets on this machine, such as `litert` or `onnxruntime`.
        rounds: How often each is timed, after a warm-up of three.
        threads: Threads each runtime may use.

    Returns:
        A row for each artifact on each target, in the order asked for.

    Raises:
        UserError: No export there, a target that is elsewhere or has nothing to load.
    """
    export = read_export(directory)
    parsed = [Target.parse(text) for text in targets]
    away = [str(target) for target in parsed if target.device != "local"]
    if away:
        raise UserError(
            f"bench compares targets on this machine. Received: {', '.join(away)}. "
            f"`renormlite check {directory} --on {','.join(away)}` measures there."
        )
    pairs = [
        (target, artifact)
        for target in parsed
        for artifact in export.artifacts
        if artifact.format in target.formats
    ]
    if not pairs:
        raise UserError(f"{directory} has no file that {', '.join(targets)} can load.")
    golden = export.read_golden()
    inputs = {name: array[:1] for name, array in golden.inputs.items()}
    with contextlib.ExitStack() as stack:
        sessions, load = [], []
        for target, artifact in pairs:
            begin = time.perf_counter()
            runner = make_runner(target, export.path / artifact.file, threads=threads)
            sessions.append(Session(stack.enter_context(runner), artifact))
            load.append(time.perf_counter() - begin)
        for _ in range(WARM_UP + rounds):
            for session in sessions:
                session.run(inputs)
    # Rows are artifacts on targets, columns rounds, in milliseconds.
    times = 1e3 * np.array([session.seconds[WARM_UP:] for session in sessions])
    return [
        Latency(
            target=str(target),
            artifact=artifact.file,
            load_ms=1e3 * load[row],
            median_ms=float(np.median(times[row])),
            p90_ms=float(np.percentile(times[row], 90)),
            ratio=float(np.median(times[row] / times[0])),
        )
        for row, (target, artifact) in enumerate(pairs)
    ]
