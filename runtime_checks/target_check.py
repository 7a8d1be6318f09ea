"""One artifact in one runtime of this machine, from file to verdict; on a device just the same."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .export_directory import ExportDirectory
from .formats.golden import GoldenSet
from .formats.records import Artifact
from .runners import Target, make_runner
from .runners.base import ArtifactError, Runner
from .runners.session import Session
from .truth.kinds import settled
from .verdict.agreement import TaskAgreement, deciding_outputs, task_agreement
from .verdict.findings import Finding, OutputVerdict, TargetResult, judge_outputs
from .verdict.ladder import Ladder
from .verdict.stages import error_budget
from .verdict.thread_counts import ThreadComparison, compare_bits


@dataclass(frozen=True)
class TargetRun:
    """What a runtime gave and what really ran.

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
        """How many threads the runtime was given."""
        return int(self.ran.get("threads", 1))


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
        artifact: What the manifest says of it.
        inputs: Keras input name to (N, …) floats.
        target: The runtime and variant; its device must be `local`.
        threads: Threads that the runtime may use.

    Returns:
        Outputs and what ran.

    Raises:
        UserError: The runtime is not installed or does not know the variant.
    """
    return drive(make_runner(target, path, threads=threads), artifact, inputs)


def drive(runner: Runner, artifact: Artifact, inputs: Mapping[str, np.ndarray]) -> TargetRun:
    """Open a runner, run all samples on it, and close it.

    Args:
        runner: Of this machine or of a device that this machine drives.
        artifact: What the manifest says of the runner's file.
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


def judge_run(
    export: ExportDirectory,
    artifact: Artifact,
    golden: GoldenSet,
    target: Target,
    run: TargetRun,
    others: Sequence[TargetRun] = (),
) -> TargetResult:
    """Judge what a target gave for the golden inputs.

    Args:
        export: The export that the artifact belongs to.
        artifact: What was run.
        golden: What it was run on.
        target: Where it was run.
        run: What came out.
        others: What came out with other numbers of threads.

    Returns:
        The findings and the verdict on each output.
    """
    damage = export.damaged(artifact)
    outputs = settled(run.outputs, golden.kind, golden.reference, artifact.precision)
    findings = [
        Finding("file", damage is None, damage or f"{artifact.file} is the file that was exported")
    ]
    decides = deciding_outputs(
        export.folded_network, golden, export.manifest.metadata.get("labels", ())
    )
    verdicts: list[OutputVerdict] = []
    comparisons: list[ThreadComparison] = []
    if run.problem:
        findings.append(Finding("load", False, run.problem))
    else:
        if run.ran.get("fallback"):
            findings.append(Finding("kernels", False, str(run.ran["fallback"])))
        findings.extend(_determinism(run))
        judged, verdicts = judge_outputs(outputs, golden, artifact, decides=decides)
        findings.extend(judged)
        for other in others:
            failures, compared = _other_threads(artifact, golden, run, other)
            comparisons.extend(compared)
            findings.extend(failures)
            findings.extend(
                Finding("threads", True, f"{entry.sentence}, within the bound", entry.output)
                for entry in compared
                if not failures
            )
    return TargetResult(
        target=str(target),
        artifact=artifact.file,
        precision=artifact.precision,
        findings=tuple(findings),
        outputs=tuple(verdicts),
        ran=run.ran,
        measured=run.measured,
        stages=tuple(_budgets(export, artifact, golden, outputs, verdicts)),
        tasks=tuple(
            task
            for entry in verdicts
            if entry.metrics.output in decides
            and (task := _task(entry, outputs[entry.metrics.output], golden)) is not None
        ),
        threads=tuple(comparisons),
        given=outputs,
    )


def _other_threads(
    artifact: Artifact, golden: GoldenSet, run: TargetRun, other: TargetRun
) -> tuple[list[Finding], list[ThreadComparison]]:
    """Judge a run with another number of threads.

    Returns:
        What failed, and how its bits differ from those of the run that was judged.
    """
    if other.problem:
        return [Finding("threads", False, f"with {other.threads} threads: {other.problem}")], []
    outputs = settled(other.outputs, golden.kind, golden.reference, artifact.precision)
    judged, _ = judge_outputs(outputs, golden, artifact)
    failures = [
        Finding("threads", False, f"with {other.threads} threads {entry.message}", entry.subject)
        for entry in [*_determinism(other), *judged]
        if not entry.passed
    ]
    compared = [
        compare_bits(name, run.outputs[name], array, run.threads, other.threads)
        for name, array in other.outputs.items()
        if name in run.outputs and run.outputs[name].shape == array.shape
    ]
    return failures, compared


def _budgets(
    export: ExportDirectory,
    artifact: Artifact,
    golden: GoldenSet,
    outputs: Mapping[str, np.ndarray],
    verdicts: Sequence[OutputVerdict],
) -> Iterator[Ladder]:
    """Yield the error budget of every output that can be compared with its truth."""
    judged = {entry.metrics.output: entry for entry in verdicts}
    for spec in artifact.outputs:
        name = spec.keras_name
        if name not in outputs or outputs[name].shape != golden.truth[name].shape:
            continue
        # An output without a finite element has no verdict: each of its samples is as bad.
        entry = judged.get(name)
        yield error_budget(
            name,
            outputs[name],
            golden,
            artifact,
            export.artifacts,
            sound=entry is not None and entry.sound,
            worst_sample=entry.worst_sample if entry else 0,
        )


def _task(entry: OutputVerdict, actual: np.ndarray, golden: GoldenSet) -> TaskAgreement | None:
    """Return what became of an output's decisions."""
    allowed = entry.bound.worst * entry.bound.noise
    return task_agreement(entry.metrics.output, actual, golden, allowed)


def _determinism(run: TargetRun) -> list[Finding]:
    """Return whether the same input gave the same bits twice; nothing where nobody tried."""
    differing = run.measured.get("differing_rerun")
    if differing is None:
        return []
    if differing:
        names = ", ".join(f"'{name}'" for name in differing)
        message = f"two runs on the same input gave other bits in output {names}"
        return [Finding("determinism", False, message)]
    return [Finding("determinism", True, "two runs on the same input gave the same bits")]
