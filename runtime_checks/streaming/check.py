"""Checks an export on any number of the user's own samples.

Samples that fit into memory are added to the golden set and get every check. A larger set is read
and judged in parts, of which only totals are kept. The limits on single samples and on all samples
together are the same. The report does not depend on the number of processes that judge the parts.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

from ...artifacts.directory import ExportDirectory
from ...artifacts.golden_set import GoldenSet
from ...artifacts.joined_outputs import joined_outputs
from ...artifacts.manifest import FILE
from ...artifacts.sample_stream import Part as StreamPart
from ...artifacts.sample_stream import SampleStream, part_size
from ...artifacts.samples import SampleSet, gathered
from ...errors import UserError
from ...files import sha256
from ...runtimes import LOCAL, RUNTIMES
from ..end_to_end.findings import Finding, TargetResult
from ..end_to_end.quality_gates import QualityLimits, misfit_findings, quality_findings
from ..options import CheckOptions
from ..selection import Selection
from .part import Job, Part, judge_part
from .totals import FileTotals, OutputTotals, added
from .workers import in_processes

# Limits on the samples that are held in memory at once.
HELD_SAMPLES, HELD_BYTES = 2048, 1 << 27


@dataclasses.dataclass(frozen=True)
class Streamed:
    """The totals of samples that were judged part by part.

    Attributes:
        source: Where the samples come from.
        samples: Their number.
        part_size: Samples in a part.
        files: The totals of each file on each target.
    """

    source: str
    samples: int
    part_size: int
    files: tuple[FileTotals, ...]

    def of(self, result: TargetResult) -> FileTotals:
        """Return the totals of a result's file on its target."""
        return next(
            entry
            for entry in self.files
            if (entry.artifact, entry.target) == (result.artifact, result.target)
        )

    @property
    def sentence(self) -> str:
        """Describe the samples."""
        return (
            f"{self.samples} samples of {self.source}, streamed in parts of {self.part_size}, are "
            "judged besides these"
        )

    def to_json(self) -> dict[str, Any]:
        """Return nested dictionaries for JSON."""
        return {
            "source": self.source,
            "samples": self.samples,
            "part_size": self.part_size,
            "files": [
                {
                    "artifact": entry.artifact,
                    "target": entry.target,
                    "outputs": {output.output: output.to_json() for output in entry.outputs},
                    "misfits": entry.misfits.to_json(),
                }
                for entry in self.files
            ],
        }


@dataclasses.dataclass(frozen=True)
class OwnParts:
    """The user's own samples, as parts that are read once.

    Attributes:
        stream: Where they come from.
        size: Samples in a part.
        first: The parts that were read to decide whether all samples fit into memory.
        rest: The remaining parts; None if there are none.
    """

    stream: SampleStream
    size: int
    first: tuple[StreamPart, ...]
    rest: Iterator[StreamPart] | None

    @classmethod
    def of(cls, stream: SampleStream, export: ExportDirectory) -> OwnParts:
        """Read as many parts as fit into memory together."""
        size = part_size([tensor.shape for tensor in export.inputs])
        parts = stream.batches(size)
        first: list[StreamPart] = []
        samples = held = 0
        for part in parts:
            first.append(part)
            samples += len(next(iter(part[0].values())))
            held += sum(array.nbytes for array in part[0].values())
            if samples > HELD_SAMPLES or held > HELD_BYTES:
                return cls(stream, size, tuple(first), parts)
        return cls(stream, size, tuple(first), None)

    @property
    def streamed(self) -> bool:
        """Whether there are more samples than fit into memory together."""
        return self.rest is not None

    @property
    def held(self) -> SampleSet:
        """All samples; if they are streamed, those of the first part."""
        return gathered(self.first[:1] if self.streamed else self.first, self.stream)

    def parts(self) -> Iterator[Part]:
        """Yield all parts."""
        start = 0
        for arrays, labels in itertools.chain(self.first, self.rest or ()):
            yield Part(start, arrays, labels)
            start += len(next(iter(arrays.values())))


def streamed_check(
    own: OwnParts, export: ExportDirectory, selection: Selection, options: CheckOptions
) -> Streamed:
    """Judge every file on every target on all samples.

    Raises:
        UserError: A target is a device; parts are not sent to devices.
    """
    devices = [str(target) for target in selection.files if target.device != LOCAL]
    if devices:
        raise UserError(
            f"More than {HELD_SAMPLES} samples, or {HELD_BYTES >> 20} MiB of them, are checked on "
            f"this machine only. Received the target {devices[0]}: use --samples {HELD_SAMPLES}, "
            "or omit the device."
        )
    # The targets are fixed here, since the default targets differ between machines.
    fixed = dataclasses.replace(
        options, targets=tuple(map(str, selection.files)), baseline=None, search=None
    )
    runners = [RUNTIMES[target.runtime].runner for target in selection.files]
    modules = tuple(runner.__module__ for runner in runners if isinstance(runner, type))
    job = Job(export.path.resolve(), fixed, sha256(export.path / FILE), modules)
    if options.ray is not None:
        from .on_ray import on_ray

        results = on_ray(job, own.parts(), options.ray)
    else:
        work = functools.partial(judge_part, job)
        results = in_processes(work, own.parts(), options.workers)
    files = added(results)
    return Streamed(own.stream.source, files[0].samples, own.size, files)


def streamed_findings(
    totals: FileTotals, golden: GoldenSet, export: ExportDirectory, limits: QualityLimits
) -> list[Finding]:
    """Judge the totals of one file on one target."""
    artifact = next(entry for entry in export.artifacts if entry.file == totals.artifact)
    known = {spec.keras_name for spec in artifact.outputs}
    findings = [_noise(entry) for entry in totals.outputs]
    for name in sorted(known - {entry.output for entry in totals.outputs}):
        findings.append(Finding("noise", False, f"output '{name}' was compared in no part", name))
    for failure in totals.failures:
        findings.append(
            Finding(
                failure.check,
                False,
                f"{failure.message}; in {failure.parts} parts, the first of which starts at "
                f"sample {failure.start}",
                failure.subject,
            )
        )
    qualities = [entry.quality for entry in totals.outputs if entry.real]
    tasks = [
        entry.task.agreement(entry.output) for entry in totals.outputs if entry.task is not None
    ]
    if "reproducer" not in export.manifest.metadata:
        findings += quality_findings(
            qualities, tasks, limits, joined_outputs(export.folded_network)
        )
        if totals.misfits:
            misfits = dataclasses.replace(golden, misfits={totals.artifact: totals.misfits})
            findings += misfit_findings(artifact, misfits, limits)
    return [
        dataclasses.replace(entry, message=f"of {totals.samples} streamed samples: {entry.message}")
        for entry in findings
    ]


def _noise(entry: OutputTotals) -> Finding:
    """Judge the errors of an output against the expected noise."""
    what = (
        f"output '{entry.output}' differs from {entry.against} by {entry.pooled:.2f}x the noise of "
        f"{entry.reason} (allowed {entry.pooled_limit:g}x); worst sample {entry.worst_sample} "
        f"{entry.worst:.2f}x (allowed {entry.worst_limit:g}x)"
    )
    if not entry.within:
        over = "1 sample exceeds" if entry.over == 1 else f"{entry.over} samples exceed"
        what = (
            f"{what}; {over} the limit; the greatest absolute error against "
            f"float64 truth is {entry.max_abs:.3g}, in sample {entry.max_abs_sample}"
        )
    return Finding("noise", entry.within, what, entry.output)
