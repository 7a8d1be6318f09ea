"""Judges whether a file still performs the task of the trained model.

The noise limits of `bounds` test whether a runtime computes the file correctly. A file can be
computed to the bit and still be useless: calibrated on another range, or with scores too small for
the steps of their tensor. So every file is also judged against the trained model, on typical
samples. docs/checks.md derives the default limits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...artifacts.golden_set import GoldenSet
from ...artifacts.joined_outputs import Part
from ...artifacts.manifest import Artifact
from ...artifacts.precisions import LEAST_SNR, Arithmetic, precision_named
from ...artifacts.ranges import Clipped, Misfits
from ...artifacts.sample_kinds import REAL
from ...options import option, validate
from .chance import CHANCE, at_least
from .findings import Finding
from .quality import OutputQuality
from .task_agreement import TaskAgreement

_GROUP = "Quality"


@dataclass(frozen=True)
class QualityLimits:
    """How much quality a file may lose against the trained model; the flags explain each limit."""

    max_accuracy_drop: float = option(
        1.0,
        "--max-accuracy-drop",
        "Percentage points of accuracy that a file may lose. A greater loss fails only if it is "
        "also significant (McNemar's exact test, 5 %).",
        group=_GROUP,
        least=0,
        most=100,
        metavar="POINTS",
    )
    min_snr: float = option(
        LEAST_SNR,
        "--min-snr",
        "Least signal-to-noise ratio of an output against float64 truth.",
        group=_GROUP,
        metavar="DB",
    )
    max_flipped: float = option(
        15.0,
        "--max-flipped",
        "Percentage of the decisions on real samples that may change. More fail only if the excess "
        "is significant (exact binomial test, 5 %).",
        group=_GROUP,
        least=0,
        most=100,
        metavar="PERCENT",
    )
    max_clipped: float = option(
        5.0,
        "--max-clipped",
        "Percentage of the values of real inputs, or of a layer's activations on them, that may "
        "exceed the range of a file's integers. More fail only if the excess is significant (exact "
        "binomial test, 5 %).",
        group=_GROUP,
        least=0,
        most=100,
        metavar="PERCENT",
    )

    def __post_init__(self) -> None:
        validate(self)


def quality_findings(
    qualities: Sequence[OutputQuality],
    tasks: Sequence[TaskAgreement],
    limits: QualityLimits,
    joined: Mapping[str, Sequence[Part]] | None = None,
) -> list[Finding]:
    """Judge the quality of all outputs of a file.

    Args:
        qualities: One for each output.
        tasks: One for each output that decides between classes.
        limits: How much quality the file may lose.
        joined: Output name to the parts that it joins, for those that an export can split.
    """
    findings: list[Finding | None] = []
    for quality in qualities:
        findings.append(_snr(quality, limits))
        findings.append(_slices(quality, (joined or {}).get(quality.output, ())))
    for task in tasks:
        # Decisions on random numbers say nothing about a classifier's task.
        if task.kind == REAL:
            findings.append(_decisions(task, limits))
        if task.labelled:
            findings.append(_accuracy(task, limits))
    return [finding for finding in findings if finding is not None]


def misfit_findings(
    artifact: Artifact, golden: GoldenSet, limits: QualityLimits
) -> Iterator[Finding]:
    """Judge the values that a file cannot represent, at export and in samples added since.

    Args:
        artifact: The manifest's entry of the file.
        golden: The samples.
        limits: How much quality the file may lose.
    """
    later = golden.misfits.get(artifact.file, Misfits())
    clipped = (*later.clipped, *artifact.misfits.clipped)
    if precision_named(artifact.precision).arithmetic is Arithmetic.INTEGER:
        yield from _clipped(clipped, limits, trained=bool(golden.trained_integers))
    found = {entry.layer: entry for entry in (*artifact.misfits.overflows, *later.overflows)}
    if precision_named(artifact.precision).arithmetic is Arithmetic.FLOAT16:
        for overflow in found.values():
            yield Finding("headroom", False, overflow.sentence, overflow.layer)
        if not found:
            yield Finding("headroom", True, "no value or sum of a layer exceeds half precision")


def _clipped(entries: Sequence[Clipped], limits: QualityLimits, *, trained: bool) -> list[Finding]:
    """Judge clipped values; `trained` marks a quantization-aware model, which clips in Keras too.

    The ranges of such a model's layers were chosen in training. Those of its inputs still say
    which samples it is for.
    """
    if not entries:
        return [Finding("clipped", True, "no value of typical samples is clipped")]
    findings = []
    demand = f"at most {limits.max_clipped:g} % allowed beyond chance (--max-clipped)"
    layers = [entry for entry in entries if trained and entry.place.startswith("layer ")]
    if layers:
        worst = max(layers, key=lambda entry: entry.share)
        text = f"{worst.sentence}; the model was trained with this range and clips them as well"
        findings.append(Finding("clipped", True, text, worst.place))
    judged = [entry for entry in entries if entry not in layers]
    if judged:
        excess = [entry for entry in judged if _too_often(entry, limits.max_clipped)]
        worst = max(excess or judged, key=lambda entry: entry.share)
        findings.append(Finding("clipped", not excess, f"{worst.sentence}; {demand}", worst.place))
    return findings


def _too_often(entry: Clipped, percent: float) -> bool:
    """Return whether more values are clipped than a percentage, beyond chance."""
    if entry.share <= percent or not entry.values:
        return entry.share > percent
    hits = round(entry.share / 100 * entry.values)
    return at_least(hits, entry.values, percent / 100) < CHANCE


def _snr(quality: OutputQuality, limits: QualityLimits) -> Finding | None:
    if quality.snr_db is None:
        return None
    passed = quality.snr_db >= limits.min_snr
    told = "exact" if quality.snr_db == math.inf else f"{quality.snr_db:.1f} dB from truth"
    demand = f"{limits.min_snr:g} dB required (--min-snr)"
    text = f"output '{quality.output}' is {told} on {quality.samples} {quality.kind} samples"
    if not passed:
        share = 100 * 10 ** (-quality.snr_db / 20)
        text = f"{text}, the error {share:.3g} % of the signal"
    return Finding("snr", passed, f"{text}; {demand}", quality.output)


def _slices(quality: OutputQuality, parts: Sequence[Part]) -> Finding | None:
    """Judge whether slices of an output are smaller than its quantization steps.

    Args:
        quality: The quality of the output.
        parts: The parts that it joins; empty if it joins none.
    """
    if quality.slices is None:
        return None
    name, unresolved = quality.output, quality.unresolved
    if not quality.dead:
        text = f"no slice of the last axis of output '{name}' is constant in the file alone"
        if unresolved:
            text = (
                f"slices {_ranges(unresolved)} of the last axis of output '{name}' are constant in "
                f"the file, which {quality.samples} samples do not show to be a fault: in the "
                f"trained model they vary by up to {quality.span_of(unresolved):.3g}, and the "
                f"values of the output are {quality.step:.3g} apart. Check more samples (--inputs)"
            )
        return Finding("slices", True, text, name)
    if len(quality.dead) == len(quality.slices.spans):
        text = (
            f"output '{name}' is constant in the file; in the trained model its slices of the last "
            f"axis vary by up to {quality.dead_span:.3g}"
        )
        return Finding("slices", False, text, name)
    return Finding(
        "slices",
        False,
        f"slices {_ranges(quality.dead)} of the last axis of output '{name}' are "
        f"constant in the file; in the trained model they vary by up to {quality.dead_span:.3g}. "
        f"The values of the output are {quality.step:.3g} apart: {_apart(quality, parts)}, or "
        "scale all slices to one range",
        name,
    )


def _apart(quality: OutputQuality, parts: Sequence[Part]) -> str:
    """Return how the slices that are constant get steps of their own.

    The export can separate the parts of an output, which helps where these slices are then in a
    part with smaller values.
    """
    assert quality.slices is not None
    sizes = np.maximum(np.abs(quality.slices.least), np.abs(quality.slices.most))
    ends = np.cumsum([0, *(part.size for part in parts)])
    if ends[-1] == len(sizes) and quality.step > 0:
        largest = {
            place: sizes[start:end].max()
            for start, end in zip(ends[:-1], ends[1:])
            for place in range(start, end)
        }
        spans, whole = quality.slices.spans, sizes.max()
        if any(quality.step * largest[n] <= spans[n] * whole for n in quality.dead):
            split = f"export --split-outputs {quality.output}"
            return f"make these slices an output of their own ({split})"
    return "return these slices from a layer of their own, as another output of the model"


def _ranges(numbers: Sequence[int]) -> str:
    """Return `0, 4 to 13`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _decisions(task: TaskAgreement, limits: QualityLimits) -> Finding:
    share = 100 * task.flips / task.samples
    chance = at_least(task.flips, task.samples, limits.max_flipped / 100)
    passed = share <= limits.max_flipped or chance >= CHANCE
    text = (
        f"output '{task.output}' decides {task.flips} of {task.samples} {task.kind} samples "
        f"otherwise than the trained model ({share:.3g} %; allowed {limits.max_flipped:g} % "
        "beyond chance, --max-flipped)"
    )
    if not passed and task.unjudged:
        return Finding("decisions", True, f"{text}; not judged: {task.unjudged}", task.output)
    if not passed:
        pairs = ", ".join(f"{a} became {b} {count} times" for a, b, count in task.confusion[:3])
        text = f"{text}: class {pairs}"
    return Finding("decisions", passed, text, task.output)


def _accuracy(task: TaskAgreement, limits: QualityLimits) -> Finding:
    before, after = task.right_before / task.labelled, task.right_after / task.labelled
    drop = 100 * (before - after)
    chance = 1.0 if task.chance is None else task.chance
    passed = drop <= limits.max_accuracy_drop or chance >= CHANCE
    counted = f"of {task.labelled} samples ({task.lost} lost, {task.gained} gained"
    if drop:
        change = (
            f"{'falls' if drop > 0 else 'rises'} by {abs(drop):.3g} percentage points, from "
            f"{100 * before:.2f} % to {100 * after:.2f} % {counted}; p = {chance:.2g} by McNemar's "
            "test)"
        )
    else:
        change = f"is unchanged: {100 * after:.2f} % {counted})"
    return Finding(
        "accuracy",
        passed,
        f"accuracy of output '{task.output}' {change}; a fall of {limits.max_accuracy_drop:g} is "
        "allowed, more only within chance (--max-accuracy-drop)",
        task.output,
    )
