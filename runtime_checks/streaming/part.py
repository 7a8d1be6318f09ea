"""Judges one part of the samples; can be called in any process."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...artifacts.directory import ExportDirectory, read_export
from ...artifacts.golden_set import GoldenSet
from ...artifacts.network import Network
from ...artifacts.ranges import Misfits
from ...artifacts.sample_kinds import REAL, kinds_of
from ...artifacts.samples import SampleSet
from ...runtimes import LOCAL
from ...runtimes.run import run_target
from ...user_code import import_user_module
from ..end_to_end.findings import OutputVerdict, TargetResult
from ..end_to_end.target_check import judge_run
from ..end_to_end.task_agreement import odds_of
from ..end_to_end.ties import with_ties_turned
from ..options import CheckOptions
from ..own_samples import extended, known_network
from ..selection import Selection, select
from .totals import Failure, FileTotals, OutputTotals, TaskTotals

# Checks that are judged on the totals of all parts.
_ON_TOTALS = ("noise", "snr", "slices", "decisions", "accuracy", "clipped", "headroom")


@dataclasses.dataclass(frozen=True)
class Part:
    """Consecutive samples.

    Attributes:
        start: Number of the first one.
        arrays: Input name to (N, …).
        labels: (N,) true classes, -1 if unknown; None if none is known.
    """

    start: int
    arrays: Mapping[str, np.ndarray]
    labels: np.ndarray | None

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(next(iter(self.arrays.values())))


@dataclasses.dataclass(frozen=True)
class Job:
    """The description of a check that is sent to every process.

    Attributes:
        directory: The export.
        options: Options of the check; every target is this machine.
        digest: SHA-256 of the manifest, so that a rewritten export is a new job.
        modules: The user's modules that register runtimes.
    """

    directory: Path
    options: CheckOptions
    digest: str
    modules: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Opened:
    """The contents of an export that every part needs."""

    export: ExportDirectory
    golden: GoldenSet
    network: Network
    selection: Selection


@functools.lru_cache(maxsize=1)
def _open(job: Job) -> _Opened:
    for name in job.modules:
        import_user_module(name)
    export, options = read_export(job.directory), job.options
    network = known_network(export, "Own samples need", "Give them to the export instead.")
    # One sample of the golden set is kept for its outputs; all would be copied for each part.
    golden = export.read_golden().select(np.arange(1))
    selection = select(
        export, options.targets, artifacts=options.artifacts, precisions=options.precisions
    )
    return _Opened(export, golden, network, selection)


def judge_part(job: Job, part: Part) -> tuple[FileTotals, ...]:
    """Run and judge every file of a check on a part of the samples.

    Args:
        job: The check.
        part: The samples.

    Returns:
        The totals of each file on each target, in an order that depends on the options only.
    """
    opened, options = _open(job), job.options
    kind = kinds_of(part.arrays)
    own = SampleSet(dict(part.arrays), "", "", part.labels)
    golden = extended(opened.golden, opened.export, opened.network, own, kind)
    golden = golden.select(np.arange(1, golden.samples))
    threads = options.thread_counts[0]
    totals = []
    for target, files in opened.selection.files.items():
        assert target.device == LOCAL
        for artifact in files:
            path = opened.export.path / artifact.file
            run = run_target(path, artifact, golden.inputs, target, threads=threads)
            result = judge_run(
                opened.export,
                artifact,
                golden,
                target,
                run,
                limits=options.limits,
                with_ties=with_ties_turned,
            )
            totals.append(_totals(result, golden, part))
    return tuple(totals)


def _totals(result: TargetResult, golden: GoldenSet, part: Part) -> FileTotals:
    return FileTotals(
        artifact=result.artifact,
        target=result.target,
        samples=part.count,
        outputs=tuple(_output(entry, result, golden, part) for entry in result.outputs),
        failures=tuple(
            Failure(finding.check, finding.subject, finding.message, part.start)
            for finding in result.findings
            if not finding.passed and finding.check not in _ON_TOTALS
        ),
        misfits=golden.misfits.get(result.artifact, Misfits()),
    )


def _output(
    entry: OutputVerdict, result: TargetResult, golden: GoldenSet, part: Part
) -> OutputTotals:
    metrics, bound = entry.metrics, entry.bound
    quality = next(known for known in result.qualities if known.output == metrics.output)
    real = golden.kind == REAL
    return OutputTotals(
        output=metrics.output,
        samples=part.count,
        elements=metrics.elements,
        real=int(real.sum()),
        # Without a signal-to-noise ratio, as of class numbers, there is no signal to add either.
        signal=float(np.sum(np.square(metrics.rms_truth[real])))
        if quality.snr_db is not None
        else 0.0,
        error=float(np.sum(np.square(metrics.rms_error[real]))),
        ratios=float(np.sum(np.square(entry.ratios[real]))),
        max_abs=metrics.max_abs,
        max_abs_sample=part.start + metrics.max_abs_at[0],
        worst=entry.worst_ratio,
        worst_sample=part.start + entry.worst_sample,
        over=int(np.sum(entry.ratios > bound.worst)),
        worst_limit=bound.worst,
        pooled_limit=bound.pooled,
        reason=bound.reason,
        against=bound.against,
        slices=quality.slices if quality.kind == REAL else None,
        step=quality.step,
        task=_task(metrics.output, result, golden),
    )


def _task(output: str, result: TargetResult, golden: GoldenSet) -> TaskTotals | None:
    task = next((task for task in result.tasks if task.output == output), None)
    if task is None or task.kind != REAL:
        return None
    truth = np.asarray(golden.truth[output], np.float64)
    usable = (golden.kind == REAL) & np.isfinite(truth).all(axis=1)
    labels = np.full(0, -1) if golden.labels is None else golden.labels[usable]
    return TaskTotals.of(task, odds_of(truth[usable]), labels[labels >= 0])
