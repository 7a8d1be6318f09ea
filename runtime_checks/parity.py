"""Checks every artifact of an export on every requested target, against float64 truth."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..advance import advanced, within
from ..artifacts.directory import ExportDirectory, open_export
from ..artifacts.golden_set import GoldenSet
from ..artifacts.images import Preprocessing
from ..artifacts.manifest import Artifact
from ..artifacts.samples import Source
from ..devices.base import DeviceOptions
from ..errors import UserError
from ..runtimes import LOCAL, Target
from ..runtimes.machine import host
from ..runtimes.run import TargetRun, run_target
from .baseline import changes, read_baseline
from .check_record import CheckRecord
from .end_to_end.findings import Finding, TargetResult
from .end_to_end.quality_gates import QualityLimits
from .end_to_end.target_check import judge_run
from .end_to_end.thread_counts import Threads
from .end_to_end.ties import with_ties_turned
from .file_inspection import FileInspection
from .options import CheckOptions
from .own_samples import open_own, with_samples
from .sample_suspects import sample_suspects
from .search.search import Searched, with_found
from .selection import select
from .streaming.check import OwnParts, Streamed, streamed_check, streamed_findings


class ParityReport(CheckRecord):
    """The verdict on an export directory, with its report formats."""

    def to_json(self) -> str:
        """Return the report as JSON of the schema that docs/reports.md describes."""
        from .report.json_report import render

        return render(self)

    def to_html(self) -> str:
        """Return the report as one HTML page that needs no other file."""
        from .report.html_report import render

        return render(self)

    def to_junit(self) -> str:
        """Return the report as JUnit XML: a suite for each target, a case for each finding."""
        from .report.junit import render

        return render(self)

    def to_model_explorer(self) -> dict[str, str]:
        """Return node data for Model Explorer by file name; empty unless operators were checked."""
        from .report.model_explorer import render

        return render(self)


def check_parity(
    directory: str | os.PathLike[str],
    targets: Sequence[str] | None = CheckOptions.targets,
    inputs: Source | None = None,
    *,
    preprocessing: Preprocessing | None = None,
    limit: int | None = CheckOptions.limit,
    workers: int = CheckOptions.workers,
    ray: str | None = CheckOptions.ray,
    search: int | None = CheckOptions.search,
    threads: Threads = CheckOptions.threads,
    per_op: bool = CheckOptions.per_op,
    limits: QualityLimits = CheckOptions.limits,
    devices: DeviceOptions = CheckOptions.devices,
    artifacts: Sequence[str] = CheckOptions.artifacts,
    precisions: Sequence[str] = CheckOptions.precisions,
    layers: Sequence[str] = CheckOptions.layers,
    baseline: str | os.PathLike[str] | None = CheckOptions.baseline,
) -> ParityReport:
    """Check that exported files compute what the trained model computes.

    Each artifact that a target can load is run on the golden inputs and compared with the trained
    model in float64. A check that fails is a finding in the report, not an exception.

    Args:
        directory: Directory that `renormlite export` wrote.
        targets: Where to run: `RUNTIME[+VARIANT][@DEVICE]`, for instance `litert+reference`; by
            default on the first installed runtime of each format.
        inputs: Samples to check besides the golden set: a file, a folder of images, an array, or
            arrays by input name; see `artifacts.samples`. With `label`, or folders named as the
            classes, accuracy is compared as well.
        preprocessing: How pixels of a folder of images become inputs; by default as recorded in
            the export.
        limit: Use at most this many of `inputs`; by default all of a file and 200 images of a
            folder.
        workers: Processes to judge samples in, where they do not fit into memory together; the
            report is the same with any number.
        ray: Address of a Ray cluster to judge them on; "local" starts one on this machine.
        search: Search along gradients for the inputs on which each target's error is largest, with
            this many runs of each file on this machine, and check on those as well.
        threads: Threads that each runtime may use. Of several numbers, the first is judged in
            full; the outputs with the others are compared with it and must stay within its bounds.
        per_op: Check every operator even if all outputs are right; otherwise operators are checked
            only to find the one at fault.
        limits: How much quality a file may lose against the trained model.
        devices: Options for devices other than this machine, such as time limits.
        artifacts: Check these files only.
        precisions: Check files of these precisions only.
        layers: Check the weights and operators of these Keras layers only: names or patterns
            (`head*`).
        baseline: JSON report of an earlier check; anything that got worse is a failure.

    Returns:
        The report; `passed` is the verdict.

    Raises:
        UserError: The directory cannot be read, an option is invalid, a target is unknown or not
            installed, its device is out of reach, or no artifact fits it.
    """
    options = CheckOptions(
        targets=None if targets is None else tuple(targets),
        artifacts=tuple(artifacts),
        precisions=tuple(precisions),
        layers=tuple(layers),
        limit=limit,
        workers=workers,
        ray=ray,
        search=search,
        threads=threads,
        per_op=per_op,
        baseline=None if baseline is None else Path(baseline),
        limits=limits,
        devices=devices,
    )
    return run_check(directory, options, inputs, preprocessing)


def run_check(
    directory: str | os.PathLike[str],
    options: CheckOptions,
    inputs: Source | None = None,
    preprocessing: Preprocessing | None = None,
) -> ParityReport:
    """Check an export under validated options; see `check_parity`."""
    start = time.perf_counter()
    counts = options.thread_counts
    before = None if options.baseline is None else read_baseline(options.baseline)
    export = open_export(directory)
    selection = select(
        export, options.targets, artifacts=options.artifacts, precisions=options.precisions
    )
    inside = FileInspection(export, counts[0], options.per_op, options.layers, options.devices)
    with _verified(export, [entry for _, entry in selection.pairs]) as run:
        golden = export.read_golden()
        for artifact in run:
            inside.read(artifact)
    findings: list[Finding] = inside.not_evaluated()
    streamed: Streamed | None = None
    if inputs is not None:
        stream = open_own(inputs, export, preprocessing=preprocessing, limit=options.limit)
        findings += [Finding("samples", True, note) for note in stream.notes]
        own = OwnParts.of(stream, export)
        known, joint = golden, with_samples(golden, export, own.held)
        findings += sample_suspects(own.held, known, joint, export, preprocessing)
        if own.streamed:
            streamed = streamed_check(own, export, selection, options)
        else:
            golden = joint
    searched: tuple[Searched, ...] = ()
    if options.search is not None:
        golden, searched = with_found(
            golden, export, selection.pairs, runs=options.search, threads=counts[0]
        )
    results: list[TargetResult] = []
    left_out = list(selection.left_out)
    for target, files in selection.files.items():
        advanced(f"{files[0].file} on {target}", len(results), len(selection.pairs))
        place = len(results), len(selection.pairs)
        for artifact, runs in _on_target(
            export, files, golden, target, counts, options.devices, place
        ):
            if lacking := target.no_kernel(runs[0].problem):
                left_out.append(f"{artifact.file} was not run on {target}: {lacking}")
                continue
            result = judge_run(
                export,
                artifact,
                golden,
                target,
                runs[0],
                runs[1:],
                limits=options.limits,
                with_ties=with_ties_turned,
            )
            if streamed is not None:
                totals = streamed.of(result)
                added = streamed_findings(totals, golden, export, options.limits)
                result = replace(result, findings=(*result.findings, *added))
            results.append(inside.add(artifact, golden, target, result))
            advanced(f"{artifact.file} on {target}", len(results), len(selection.pairs))
    if not results:
        raise UserError(f"{'. '.join(left_out)}. Check on another target.")
    if before is not None:
        findings += changes(before, results, whole=not (options.artifacts or options.precisions))
    return ParityReport(
        name=export.name,
        directory=export.path,
        results=tuple(results),
        samples=golden.samples,
        host=host(),
        seconds=time.perf_counter() - start,
        manifest=export.record,
        golden=golden,
        searched=searched,
        left_out=tuple(left_out),
        findings=tuple(findings),
        limits=options.limits,
        streamed=streamed,
        layers=options.layers,
    )


@contextlib.contextmanager
def _verified(
    export: ExportDirectory, artifacts: Sequence[Artifact]
) -> Iterator[Sequence[Artifact]]:
    """Hash an export's files while the block reads them, and report damaged ones at the end.

    Hashing is finished when the block ends, so it does not disturb the timing of runtimes.
    """
    for artifact in artifacts:
        if (export.path / artifact.file).is_file():
            export.content(artifact)
    try:
        yield artifacts
    finally:
        # That a file is damaged is more useful than the error that reading it raises.
        export.verify()
        for artifact in artifacts:
            export.damaged(artifact)


def _on_target(
    export: ExportDirectory,
    artifacts: Sequence[Artifact],
    golden: GoldenSet,
    target: Target,
    counts: Sequence[int],
    devices: DeviceOptions,
    place: tuple[int, int],
) -> Iterator[tuple[Artifact, list[TargetRun]]]:
    """Run artifacts on a target, on this machine or on a device, with each number of threads.

    `place` is how many files of all targets were run before, and how many there are.
    """
    before, total = place
    if target.device == LOCAL:
        for artifact in artifacts:
            path, runs = export.path / artifact.file, list[TargetRun]()
            with within(f"{artifact.file} on {target}", before, total):
                for n in counts:
                    with within("", len(runs), len(counts)):
                        run = run_target(path, artifact, golden.inputs, target, threads=n)
                    runs.append(run)
            yield artifact, runs
            before += 1
        return
    from ..devices import run_on_device

    present = [artifact for artifact in artifacts if (export.path / artifact.file).is_file()]
    for artifact in artifacts:
        if artifact not in present:
            yield artifact, [_not_run(export, artifact, target, n) for n in counts]
    if not present:
        return
    # One connection after the other: a device may allow only one.
    passes: list[list[tuple[Artifact, TargetRun]]] = []
    with within(f"{present[0].file} on {target}", before, total, len(present)):
        for n in counts:
            with within("", len(passes), len(counts)):
                found = run_on_device(
                    export, present, golden.inputs, target, threads=n, options=devices
                )
                passes.append(list(found))
    for same in zip(*passes):
        yield same[0][0], [run for _, run in same]


def _not_run(
    export: ExportDirectory, artifact: Artifact, target: Target, threads: int
) -> TargetRun:
    """Return the run of a file that is missing."""
    ran = {"runtime": target.runtime, "threads": threads}
    return TargetRun({}, ran, {}, export.damaged(artifact) or "")
