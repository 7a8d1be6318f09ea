"""Checks every artifact of an export on every target asked for, against float64 truth."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..artifacts.directory import ExportDirectory, open_export
from ..artifacts.golden_set import GoldenSet
from ..artifacts.images import Preprocessing
from ..artifacts.manifest import Artifact
from ..artifacts.samples import Source
from ..errors import UserError
from ..runtimes import LOCAL, RUNTIMES, Target
from ..runtimes.machine import host
from ..runtimes.run import TargetRun, run_target
from .check_record import CheckRecord
from .end_to_end.findings import Finding, TargetResult
from .end_to_end.target_check import judge_run
from .end_to_end.thread_counts import Threads, thread_counts
from .own_samples import read_samples, with_samples
from .per_op.inspection import Anatomy, inspect, readable
from .search.search import Searched, with_found

if TYPE_CHECKING:
    from ..devices.base import DeviceOptions

DEFAULT_TARGETS = ("litert", "onnxruntime")


class ParityReport(CheckRecord):
    """The verdict on an export directory, with its forms."""

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
        """Return node data for Model Explorer by file name; empty unless ops were checked."""
        from .report.model_explorer import render

        return render(self)


def check_parity(
    directory: str | os.PathLike[str],
    targets: Sequence[str] = DEFAULT_TARGETS,
    inputs: Source | None = None,
    *,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
    search: int | None = None,
    threads: Threads = 1,
    per_op: bool = False,
    devices: DeviceOptions | None = None,
) -> ParityReport:
    """Check that exported files compute what the trained model computes.

    Each artifact that a target can load is run on the golden inputs and compared with the trained
    model in float64. A check that fails is a finding in the report, not an exception.

    Args:
        directory: What `renormlite export` wrote.
        targets: Where to run: `RUNTIME[+VARIANT][@DEVICE]`, for instance `litert+reference`.
        inputs: Samples to check besides the golden set: a file, a folder of images, an array, or
            arrays by input name; see `artifacts.samples`. With `label`, or folders named as the
            classes, accuracy is compared too.
        preprocessing: How pixels of a folder of images become inputs; by default what the export
            was told.
        limit: At most so many of `inputs`; by default all of a file and 200 images of a folder.
        search: Look along gradients for the inputs on which each target differs most from truth,
            with so many runs of each file on this machine, and check on those too.
        threads: Threads that each runtime may use; of several numbers the first is judged as a
            whole, and the outputs with the others are compared with it and held to its bounds.
        per_op: Check every op by itself even where all is well; without it, ops are looked at only
            to name what is at fault.
        devices: Choices about devices other than this machine, such as time limits.

    Returns:
        The report; `passed` is the verdict.

    Raises:
        UserError: The directory cannot be read, a target is unknown or not installed, its device
            is out of reach, or no artifact fits it.
    """
    start = time.perf_counter()
    counts = thread_counts(threads)
    wanted = [Target.parse(text) for text in targets]
    export = open_export(directory)
    fitting = {target: _fitting(export, target) for target in wanted}
    inside = _Inside(export, counts[0], per_op)
    with _verified(export, [entry for entries in fitting.values() for entry in entries]) as run:
        golden = export.read_golden()
        for artifact in run:
            inside.read(artifact)
    if inputs is not None:
        own = read_samples(inputs, export, preprocessing=preprocessing, limit=limit)
        golden = with_samples(golden, export, own)
    searched: tuple[Searched, ...] = ()
    if search is not None:
        pairs = [(target, entry) for target, entries in fitting.items() for entry in entries]
        golden, searched = with_found(golden, export, pairs, runs=search, threads=counts[0])
    results = []
    for target, artifacts in fitting.items():
        for artifact, runs in _on_target(export, artifacts, golden, target, counts, devices):
            result = judge_run(export, artifact, golden, target, runs[0], runs[1:])
            results.append(inside.add(artifact, golden, target, result))
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
        left_out=tuple(sentence for target in wanted for sentence in _left_out(export, target)),
    )


@contextlib.contextmanager
def _verified(
    export: ExportDirectory, artifacts: Sequence[Artifact]
) -> Iterator[Sequence[Artifact]]:
    """Hash an export's files while the block reads them, and say in the end if one is damaged.

    Nothing is hashed any more when the block is left, so that no runtime is timed beside it.
    """
    for artifact in artifacts:
        if (export.path / artifact.file).is_file():
            export.content(artifact)
    try:
        yield artifacts
    finally:
        # What the block raises of a damaged file is worth less than that it is damaged.
        export.verify()
        for artifact in artifacts:
            export.damaged(artifact)


def _on_target(
    export: ExportDirectory,
    artifacts: Sequence[Artifact],
    golden: GoldenSet,
    target: Target,
    counts: Sequence[int],
    devices: DeviceOptions | None,
) -> Iterator[tuple[Artifact, list[TargetRun]]]:
    """Run artifacts on a target, on this machine or on a device, with each number of threads."""
    if target.device == LOCAL:
        for artifact in artifacts:
            path = export.path / artifact.file
            yield (
                artifact,
                [run_target(path, artifact, golden.inputs, target, threads=n) for n in counts],
            )
        return
    from ..devices import run_on_device

    present = [artifact for artifact in artifacts if (export.path / artifact.file).is_file()]
    for artifact in artifacts:
        if artifact not in present:
            yield artifact, [_not_run(export, artifact, target, n) for n in counts]
    if not present:
        return
    # One connection after the other: a device may have room for one only.
    passes = [
        list(run_on_device(export, present, golden.inputs, target, threads=n, options=devices))
        for n in counts
    ]
    for runs in zip(*passes):
        yield runs[0][0], [run for _, run in runs]


def _not_run(
    export: ExportDirectory, artifact: Artifact, target: Target, threads: int
) -> TargetRun:
    """Return the run of a file that is missing."""
    ran = {"runtime": target.runtime, "threads": threads}
    return TargetRun({}, ran, {}, export.damaged(artifact) or "")


class _Inside:
    """Adds to each result what the inside of its file says; reads each file once."""

    def __init__(self, export: ExportDirectory, threads: int, per_op: bool) -> None:
        self._export, self._threads, self._per_op = export, threads, per_op
        self._anatomies: dict[str, Anatomy | Finding | None] = {}

    def read(self, artifact: Artifact) -> Anatomy | Finding | None:
        """Return a file's anatomy, the failure to read it, or None where there is no network."""
        if artifact.file not in self._anatomies:
            self._anatomies[artifact.file] = self._read(artifact)
        return self._anatomies[artifact.file]

    def add(
        self, artifact: Artifact, golden: GoldenSet, target: Target, result: TargetResult
    ) -> TargetResult:
        """Return a result with the verdict on weights and, where called for, on every op."""
        anatomy = self.read(artifact)
        if anatomy is None:
            return result
        if isinstance(anatomy, Finding):
            return replace(result, findings=(*result.findings, anatomy))
        result = replace(result, findings=(*result.findings, *anatomy.findings()))
        wanted = self._per_op or not (result.passed and anatomy.conclusive(artifact))
        if not result.given or not wanted:
            return result
        try:
            walked, faults, findings = inspect(
                self._export.path / artifact.file,
                artifact,
                golden,
                target,
                anatomy,
                result,
                threads=self._threads,
            )
        except Exception as error:
            # Of a file that nobody exported nothing can be assumed; of any other this is our fault.
            if self._export.damaged(artifact) is None:
                raise
            finding = Finding("ops", False, f"the ops of {artifact.file} cannot be read: {error}")
            return replace(result, findings=(*result.findings, finding))
        return replace(
            result,
            findings=(*result.findings, *findings),
            ops=walked.checks if walked else (),
            faults=tuple(faults),
        )

    def _read(self, artifact: Artifact) -> Anatomy | Finding | None:
        if not readable(artifact):
            return None
        try:
            network = self._export.read_network(artifact)
            if network is None:
                return None
            path, data = self._export.path / artifact.file, self._export.content(artifact)
            return Anatomy.of(path, artifact, network, data)
        except UserError as error:
            return Finding("weights", False, str(error))


def _fitting(export: ExportDirectory, target: Target) -> list[Artifact]:
    """Return the artifacts that a target loads."""
    fitting = [entry for entry in export.artifacts if entry.format in target.formats]
    if not fitting:
        formats = " or ".join(f".{name}" for name in target.formats)
        others = [name for name, entry in RUNTIMES.items() if _any_format(export, entry.formats)]
        raise UserError(
            f"The target '{target}' loads {formats} files and {export.path} has none. "
            f"Its files run on: {', '.join(others)}."
        )
    able = [entry for entry in fitting if not target.cannot_run(entry.precision)]
    if not able:
        raise UserError(". ".join(_left_out(export, target)) + ". Check on another target.")
    return able


def _left_out(export: ExportDirectory, target: Target) -> list[str]:
    """Return a sentence for each artifact that a target cannot run by its makers' word."""
    return [
        f"{artifact.file} was not run on {target}: {target.cannot_run(artifact.precision)}"
        for artifact in export.artifacts
        if artifact.format in target.formats and target.cannot_run(artifact.precision)
    ]


def _any_format(export: ExportDirectory, formats: Sequence[str]) -> bool:
    """Return whether an export has a file of one of the formats."""
    return any(artifact.format in formats for artifact in export.artifacts)
