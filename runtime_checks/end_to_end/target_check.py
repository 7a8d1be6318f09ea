"""Judges the outputs of one artifact on one target."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Optional

import numpy as np

from ...artifacts.directory import ExportDirectory
from ...artifacts.golden_set import GoldenSet
from ...artifacts.joined_outputs import joined_outputs
from ...artifacts.manifest import Artifact
from ...artifacts.precisions import WORST_SAMPLE_LIMIT
from ...artifacts.sample_kinds import BORDER, EXTREME, NONFINITE, without_undefined
from ...runtimes import RUNTIMES, Target
from ...runtimes.run import TargetRun
from .bounds import NoiseBound, float32_bound, in_floats_bound, noise_of
from .comparison import sample_errors
from .error_budget import ErrorBudget
from .findings import Finding, OutputVerdict, TargetResult, judge_outputs
from .integer_agreement import IntegerAgreement, integer_agreement, must_agree
from .quality import OutputQuality, output_quality
from .quality_gates import QualityLimits, misfit_findings, quality_findings
from .stages import error_budget
from .task_agreement import (
    TaskAgreement,
    deciding_outputs,
    ordering_outputs,
    task_agreement,
)
from .thread_counts import ThreadComparison, compare_bits

Outputs = Mapping[str, np.ndarray]
_Agreement = Optional[IntegerAgreement]  # noqa: UP045 (Python 3.9 evaluates it)
WithTies = Callable[[ExportDirectory, Artifact, GoldenSet, _Agreement, Outputs], GoldenSet]

# Kinds of samples whose values may lie beyond the ranges of a calibration, where no prediction says
# which do.
_BEYOND = (BORDER, EXTREME)


def judge_run(
    export: ExportDirectory,
    artifact: Artifact,
    golden: GoldenSet,
    target: Target,
    run: TargetRun,
    others: Sequence[TargetRun] = (),
    *,
    limits: QualityLimits | None = None,
    with_ties: WithTies | None = None,
) -> TargetResult:
    """Judge the outputs of a target for the golden inputs.

    Args:
        export: The export that the artifact belongs to.
        artifact: The file that was run.
        golden: The samples.
        target: Where it was run.
        run: The result.
        others: The results with other numbers of threads.
        limits: How much quality the file may lose; the defaults where None is given.
        with_ties: Gives the nearest rounding rule the ties of a target (`ties.with_ties_turned`);
            None where operators cannot be computed, as in a bundle.

    Returns:
        The findings and the verdict on each output.
    """
    damage = export.damaged(artifact)

    follows_rules = RUNTIMES[target.runtime].follows_rules

    def as_rounded(outputs: Outputs) -> tuple[GoldenSet, IntegerAgreement | None]:
        """Return the golden set with the ties of a target that rounds by a rule.

        And how its outputs agree with the predictions.
        """
        agreed = integer_agreement(artifact, outputs, golden, follows_rules=follows_rules)
        if with_ties is None or damage or not follows_rules:
            return golden, agreed
        turned = with_ties(export, artifact, golden, agreed, outputs)
        return turned, agreed if turned is golden else integer_agreement(artifact, outputs, turned)

    in_floats = _in_floats(run, artifact, golden, target)
    beyond = _beyond_ranges(artifact, golden, target)
    if in_floats.keys() >= run.outputs.keys():
        beyond = np.zeros(golden.samples, bool)
    outputs = _judged(run, artifact, golden, beyond, in_floats)
    findings = [
        Finding("file", damage is None, damage or f"{artifact.file} is the file that was exported")
    ]
    if beyond.any():
        message = (
            f"{target.runtime} computes {artifact.precision} files in floats, which do not "
            f"saturate: the {beyond.sum()} samples with values beyond the calibrated ranges may "
            f"err {WORST_SAMPLE_LIMIT:g} times as much as the file does on such samples"
        )
        findings.append(Finding("noise", True, message))
    decides = deciding_outputs(
        export.folded_network, golden, export.manifest.metadata.get("labels", ())
    )
    verdicts: list[OutputVerdict] = []
    comparisons: list[ThreadComparison] = []
    tasks: list[TaskAgreement] = []
    qualities: list[OutputQuality] = []
    agreed: IntegerAgreement | None = None
    if run.problem:
        findings.append(Finding("load", False, run.problem))
    else:
        if run.ran.get("fallback"):
            findings.append(Finding("kernels", False, str(run.ran["fallback"])))
        findings.extend(_determinism(run))
        expected, agreed = as_rounded(outputs)
        judged, verdicts = judge_outputs(
            outputs,
            expected,
            artifact,
            decides=decides,
            bound_to_rules=must_agree(
                artifact, golden, run.ran, target.variant, export.manifest.versions
            ),
            follows_rules=follows_rules,
            agreed=agreed,
            bounds=in_floats,
        )
        findings.extend(judged)
        orders = ordering_outputs(export.folded_network)
        predictions = golden.predictions.get(artifact.file)
        steps = {} if predictions is None else predictions.steps
        tasks, qualities = _quality(outputs, verdicts, golden, decides, orders, steps)
        if "reproducer" not in export.manifest.metadata:
            joined = joined_outputs(export.folded_network)
            findings.extend(quality_findings(qualities, tasks, limits or QualityLimits(), joined))
            findings.extend(misfit_findings(artifact, golden, limits or QualityLimits()))
        for other in others:
            failures, compared = _other_threads(
                target, artifact, golden, run, other, beyond, as_rounded
            )
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
        tasks=tuple(tasks),
        qualities=tuple(qualities),
        threads=tuple(comparisons),
        integers=agreed,
        given=outputs,
    )


def _in_floats(
    run: TargetRun, artifact: Artifact, golden: GoldenSet, target: Target
) -> dict[str, NoiseBound]:
    """Return the bounds of the outputs that a target computes in floats, with the file's weights.

    They are the outputs that are within these bounds. The others are compared with the file's own.
    """
    found: dict[str, NoiseBound] = {}
    if artifact.precision not in RUNTIMES[target.runtime].unsaturated:
        return found
    given = _defined(run.outputs, artifact, golden)
    for name, expected in golden.in_floats.get(artifact.file, {}).items():
        bound = in_floats_bound(golden, artifact, name, float32_bound(golden, name))
        if name in given and given[name].shape == expected.shape and bound is not None:
            errors = sample_errors(given[name], bound.expected).rms_error
            if bound.holds(errors, golden.kind, given[name]):
                found[name] = bound
    return found


def _defined(outputs: Outputs, artifact: Artifact, golden: GoldenSet) -> dict[str, np.ndarray]:
    """Return outputs, replaced by the trained model's where nothing is expected."""
    noise = noise_of(golden, artifact)
    return without_undefined(outputs, golden.kind, golden.reference, artifact.precision, noise)


def _beyond_ranges(artifact: Artifact, golden: GoldenSet, target: Target) -> np.ndarray:
    """Return (N,) whether a target may compute a sample beyond the calibrated ranges of a file."""
    if artifact.precision not in RUNTIMES[target.runtime].unsaturated:
        return np.zeros(golden.samples, bool)
    predictions = golden.predictions.get(artifact.file)
    beyond = np.asarray(golden.kind == NONFINITE)
    if predictions is None or predictions.none:
        beyond = beyond | np.isin(golden.kind, _BEYOND)
    if predictions is not None and predictions.saturated is not None:
        beyond = beyond | predictions.saturated
    return beyond


def _judged(
    run: TargetRun,
    artifact: Artifact,
    golden: GoldenSet,
    beyond: np.ndarray,
    in_floats: Container[str] = (),
) -> dict[str, np.ndarray]:
    """Return a run's outputs, replaced by the known ones where nothing is expected.

    Args:
        run: The run.
        artifact: The file that was run.
        golden: The samples.
        beyond: (N,) samples to replace by the file's outputs on the exporting host, unless they
            are much further from the truth.
        in_floats: Outputs of which no sample is replaced.
    """
    outputs, exported = (
        _defined(arrays, artifact, golden)
        for arrays in (run.outputs, golden.artifacts.get(artifact.file, {}))
    )
    for name, known in exported.items() if beyond.any() else ():
        if name in in_floats:
            continue
        if name in outputs and outputs[name].shape == known.shape:
            truth = golden.truth[name]
            got, own = (sample_errors(a, truth).rms_error for a in (outputs[name], known))
            # A single sample may lose little by chance.
            cut = own[beyond & (golden.kind != NONFINITE)]
            usual = max(np.median(own), np.median(cut) if cut.size else 0.0)
            near = got <= WORST_SAMPLE_LIMIT * np.maximum(own, usual)
            finite, known_finite = (
                np.isfinite(array).reshape(len(near), -1).all(axis=1)
                for array in (outputs[name], golden.reference[name])
            )
            finite |= ~known_finite  # numbers beyond float32, in any arithmetic
            mask = (beyond & near & finite).reshape(-1, *[1] * (known.ndim - 1))
            outputs[name] = np.where(mask, known, outputs[name])
    return outputs


def _other_threads(
    target: Target,
    artifact: Artifact,
    golden: GoldenSet,
    run: TargetRun,
    other: TargetRun,
    beyond: np.ndarray,
    as_rounded: Callable[[Outputs], tuple[GoldenSet, IntegerAgreement | None]],
) -> tuple[list[Finding], list[ThreadComparison]]:
    """Judge a run with another number of threads.

    Returns:
        The failures, and how its bits differ from those of the judged run.
    """
    if other.problem:
        return [Finding("threads", False, f"with {other.threads} threads: {other.problem}")], []
    in_floats = _in_floats(other, artifact, golden, target)
    outputs = _judged(other, artifact, golden, beyond, in_floats)
    expected, agreed = as_rounded(outputs)
    judged, _ = judge_outputs(
        outputs,
        expected,
        artifact,
        follows_rules=RUNTIMES[target.runtime].follows_rules,
        agreed=agreed,
        bounds=in_floats,
    )
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
) -> Iterator[ErrorBudget]:
    """Yield the error budget of every output that can be compared with its truth."""
    judged = {entry.metrics.output: entry for entry in verdicts}
    for spec in artifact.outputs:
        name = spec.keras_name
        if name not in outputs or outputs[name].shape != golden.truth[name].shape:
            continue
        # An output without a finite element has no verdict: all samples are equally bad.
        entry = judged.get(name)
        if entry is not None and np.isinf(entry.bound.noise).all():
            continue  # which of the stages lost how much is not known
        rounding = entry.rounding if entry else float32_bound(golden, name)
        yield error_budget(
            name,
            outputs[name],
            golden,
            artifact,
            export.artifacts,
            limit=entry.bound if entry else rounding,
            rounding=rounding,
            sound=entry is not None and entry.sound,
            worst_sample=entry.worst_sample if entry else 0,
        )


def _quality(
    outputs: Mapping[str, np.ndarray],
    verdicts: Sequence[OutputVerdict],
    golden: GoldenSet,
    decides: Container[str],
    orders: Container[str],
    steps: Mapping[str, float],
) -> tuple[list[TaskAgreement], list[OutputQuality]]:
    """Return the agreement of the decisions, and the quality of each output."""
    tasks, qualities = [], []
    for entry in verdicts:
        name = entry.metrics.output
        ordered = name in orders
        qualities.append(
            output_quality(name, outputs[name], golden, orders=ordered, step=steps.get(name))
        )
        if name in decides or ordered:
            allowed = entry.rounding.greatest
            task = task_agreement(name, outputs[name], golden, allowed, orders=ordered)
            tasks.extend([] if task is None else [task])
    return tasks, qualities


def _determinism(run: TargetRun) -> list[Finding]:
    """Return whether the same input gave the same bits twice; nothing if it was not tried."""
    differing = run.measured.get("differing_rerun")
    if differing is None:
        return []
    if differing:
        names = ", ".join(f"'{name}'" for name in differing)
        message = f"two runs on the same input gave different bits in output {names}"
        return [Finding("determinism", False, message)]
    return [Finding("determinism", True, "two runs on the same input gave the same bits")]
