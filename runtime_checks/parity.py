"""Checks every artifact of an export on every target asked for, against float64 truth."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..images import Preprocessing
from .golden import GoldenSet, read_golden
from .host import host
from .inputs import Source, read_samples, with_samples
from .inspection import Anatomy, inspect, readable
from .manifest import Artifact, ExportDirectory, read_export
from .runners import LOCAL, RUNTIMES, Target
from .search import Searched, with_found
from .target_check import check_target, judge_run
from .verdict import Finding, TargetResult

if TYPE_CHECKING:
    from .devices.base import DeviceOptions

DEFAULT_TARGETS = ("litert", "onnxruntime")


@dataclass(frozen=True)
class ParityReport:
    """The verdict on an export directory.

    Attributes:
        name: Name of the exported model.
        directory: Where it lies.
        results: One entry for each artifact on each target.
        samples: Number of samples compared.
        host: Python, system and processor that the checks ran on.
        seconds: What the whole check took.
        manifest: The manifest as parsed.
        golden: The samples that were run.
        left_out: A sentence for each artifact that a target cannot run by its makers' word.
        searched: What each search found.
    """

    name: str
    directory: Path
    results: tuple[TargetResult, ...]
    samples: int
    host: Mapping[str, Any]
    seconds: float
    manifest: Mapping[str, Any]
    golden: GoldenSet
    left_out: tuple[str, ...] = ()
    searched: tuple[Searched, ...] = ()

    @property
    def passed(self) -> bool:
        """True when there was something to check and all of it passed."""
        return bool(self.results) and all(result.passed for result in self.results)

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
    threads: int = 1,
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
            arrays by input name; see `inputs.read_samples`. With `label`, or folders named as the
            classes, accuracy is compared too.
        preprocessing: How pixels of a folder of images become inputs; by default what the export
            was told.
        limit: At most so many of `inputs`; by default all of a file and 200 images of a folder.
        search: Look along gradients for the inputs on which each target differs most from truth,
            with so many runs of each file on this machine, and check on those too.
        threads: Threads that each runtime may use.
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
    export = read_export(directory)
    golden = read_golden(export.golden, [spec.name for spec in export.outputs])
    wanted = [Target.parse(text) for text in targets]
    if inputs is not None:
        own = read_samples(inputs, export, preprocessing=preprocessing, limit=limit)
        golden = with_samples(golden, export, own)
    searched: tuple[Searched, ...] = ()
    if search is not None:
        pairs = [(target, entry) for target in wanted for entry in _fitting(export, target)]
        golden, searched = with_found(golden, export, pairs, runs=search, threads=threads)
    results = []
    inside = _Inside(export, golden, threads, per_op)
    for target in wanted:
        for artifact, result in _on_target(export, golden, target, threads, devices):
            results.append(inside.add(artifact, target, result))
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


def _on_target(
    export: ExportDirectory,
    golden: GoldenSet,
    target: Target,
    threads: int,
    devices: DeviceOptions | None,
) -> Iterator[tuple[Artifact, TargetResult]]:
    """Check every artifact that a target loads, on this machine or on a device."""
    artifacts = _fitting(export, target)
    if target.device == LOCAL:
        for entry in artifacts:
            yield entry, check_target(export, entry, golden, target, threads=threads)
        return
    from .devices import run_on_device

    runs = run_on_device(export, artifacts, golden.inputs, target, threads=threads, options=devices)
    for entry, run in runs:
        yield entry, judge_run(export, entry, golden, target, run)


class _Inside:
    """Adds to each result what the inside of its file says; reads each file once."""

    def __init__(
        self,
        export: ExportDirectory,
        golden: GoldenSet,
        threads: int,
        per_op: bool,
    ) -> None:
        self._export, self._golden = export, golden
        self._threads, self._per_op = threads, per_op
        self._anatomies: dict[str, Anatomy | Finding | None] = {}

    def add(self, artifact: Artifact, target: Target, result: TargetResult) -> TargetResult:
        """Return a result with the verdict on weights and, where called for, on every op."""
        path = self._export.path / artifact.file
        if artifact.file not in self._anatomies:
            self._anatomies[artifact.file] = self._read(path, artifact)
        anatomy = self._anatomies[artifact.file]
        if anatomy is None:
            return result
        if isinstance(anatomy, Finding):
            return replace(result, findings=(*result.findings, anatomy))
        result = replace(result, findings=(*result.findings, *anatomy.findings()))
        wanted = self._per_op or not (result.passed and anatomy.conclusive(artifact))
        if not result.given or not wanted:
            return result
        walked, faults, findings = inspect(
            path,
            artifact,
            self._golden,
            target,
            anatomy,
            result,
            threads=self._threads,
        )
        return replace(
            result,
            findings=(*result.findings, *findings),
            ops=walked.checks if walked else (),
            faults=tuple(faults),
        )

    def _read(self, path: Path, artifact: Artifact) -> Anatomy | Finding | None:
        """Return a file's anatomy, the failure to read it, or None where there is no network."""
        network = self._export.read_network(artifact) if readable(artifact) else None
        if network is None:
            return None
        try:
            return Anatomy.of(path, artifact, network)
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
    able = [entry for entry in fitting if entry.precision not in target.unable]
    if not able:
        raise UserError(". ".join(_left_out(export, target)) + ". Check on another target.")
    return able


def _left_out(export: ExportDirectory, target: Target) -> list[str]:
    """Return a sentence for each artifact that a target cannot run by its makers' word."""
    return [
        f"{artifact.file} was not run on {target}: {target.unable[artifact.precision]}"
        for artifact in export.artifacts
        if artifact.format in target.formats and artifact.precision in target.unable
    ]


def _any_format(export: ExportDirectory, formats: Sequence[str]) -> bool:
    """Return whether an export has a file of one of the formats."""
    return any(artifact.format in formats for artifact in export.artifacts)
