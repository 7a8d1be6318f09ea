"""Summarizes the failure of one result from its findings, faults and stages.

A failure answers five questions: what, where, how much, how much was allowed, and why.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...artifacts.golden_set import GoldenSet
from ..end_to_end.findings import Finding, OutputVerdict, TargetResult
from ..per_op.culprit import Fault
from .numbers import short

if TYPE_CHECKING:
    from ..check_record import CheckRecord

_CHECKS = {
    "file": "The file was changed after the export",
    "interface": "The file's interface is not the trained model's",
    "training": "The file holds the weights of another training",
    "calibration": "The file was calibrated on other samples",
    "load": "The runtime cannot load or run the file",
    "kernels": "Other kernels ran than requested",
    "outputs": "An output is missing or has another shape",
    "finite": "NaN or infinity where the trained model has numbers",
    "noise": "The outputs differ from the trained model's",
    "integers": "The outputs match no known rounding rule",
    "snr": "The outputs are too far from the trained model's",
    "slices": "A part of an output is constant in this file alone",
    "decisions": "Too many decisions differ from the trained model's",
    "accuracy": "The file is right on fewer samples than the trained model",
    "clipped": "Values exceed the range of the file's integers",
    "headroom": "Values exceed the range of half precision",
    "weights": "The weights differ from the trained model's",
    "ops": "An op does not compute what the trained model computes",
    "rounding": "Integers match no known rounding rule",
    "determinism": "Runs of the same inputs differ",
    "threads": "Another number of threads gives wrong outputs",
}
_FAULTS = {
    "weights": "The weights of layer '{}' differ from the trained model's",
    "activation": "The activation of layer '{}' differs from the trained model's",
    "padding": "The padding of layer '{}' differs from the trained model's",
    "dilation": "The dilation of layer '{}' differs from the trained model's",
    "rounding": "The integers of layer '{}' match no known rounding rule",
}
# The cause before the effect, and the effect before "the file was changed".
_ORDER = (
    "load",
    "interface",
    "training",
    "calibration",
    "outputs",
    "weights",
    "ops",
    "kernels",
    "finite",
    "noise",
)
_RANKS = {check: place for place, check in enumerate(_ORDER)}
# Short sentences, without numbers, for failures with a subject.
_WHY = {
    "weights": "the weights of layer '{}' differ from the trained model's",
    "finite": "output '{}' has NaN or infinity where the trained model has numbers",
    "noise": "output '{}' differs by more than its arithmetic explains",
    "snr": "output '{}' is too far from the trained model's on typical samples",
    "decisions": "too many decisions of output '{}' change",
    "accuracy": "output '{}' is right on fewer samples than the trained model",
}
# Longest message that is shown with its numbers.
_SHORT = 100
_ARITHMETIC = "Layer '{}' does not compute what the trained model computes"


@dataclass(frozen=True)
class Problem:
    """One result that failed.

    Attributes:
        what: The headline.
        where: Layer and op where they are known, else output and sample.
        how_much: The size of the error.
        allowed: How large it may be, and by what reason.
        why: Short sentences on the cause, from the findings and stages; causes before effects.
        numbers: The same findings and stages in full.
    """

    what: str
    where: str
    how_much: str
    allowed: str
    why: tuple[str, ...]
    numbers: tuple[str, ...]


def problem(report: CheckRecord, result: TargetResult) -> Problem | None:
    """Return the summary of a failed result; None if it passed.

    Args:
        report: The report.
        result: One of its results.
    """
    if result.passed:
        return None
    failed = _by_cause(result)
    fault = result.faults[0] if result.faults else None
    wrong = [entry for entry in result.outputs if not entry.sound]
    worst = max(wrong, key=lambda entry: entry.worst_ratio, default=None)
    stages = [s.sentence for s in result.stages if s.cause == "fault"]
    what = report.in_its_terms(_what(failed, fault))
    messages = [*_sentences([finding.message for finding in failed]), *stages]
    whys = [_why(finding, result.faults) for finding in failed] + [*map(_first_clause, stages)]
    short = dict.fromkeys(map(report.in_its_terms, whys))
    new = [sentence for sentence in short if sentence.lower() != what.lower()]
    return Problem(
        what=what,
        where=_where(fault, worst, report.golden),
        how_much=_how_much(fault, worst)
        or next((finding.message for finding in failed if finding.check == "finite"), ""),
        allowed=report.in_its_terms(_allowed(fault, worst)),
        why=tuple(new or short),
        numbers=tuple(message for message in messages if message not in short),
    )


def _by_cause(result: TargetResult) -> list[Finding]:
    """Return the failures, the cause before the effect."""
    failed = [finding for finding in result.findings if not finding.passed]
    return sorted(failed, key=lambda finding: _RANKS.get(finding.check, len(_RANKS)))


def _why(finding: Finding, faults: Sequence[Fault]) -> str:
    """Return a failure as a short sentence."""
    for fault in faults:
        # Found by comparing weights: the message holds numbers only.
        if fault.message == finding.message and fault.culprit is None and fault.kind in _FAULTS:
            return _FAULTS[fault.kind].format(fault.layer)
    if finding.subject and finding.check in _WHY:
        return _WHY[finding.check].format(finding.subject)
    return _first_clause(finding.message)


def _first_clause(message: str) -> str:
    """Return a short message unchanged, and a long one up to its numbers."""
    if len(message) <= _SHORT:
        return message
    return re.split(r": |; ", message, maxsplit=1)[0]


def _what(failed: list[Finding], fault: Fault | None) -> str:
    if fault is not None:
        return _FAULTS.get(fault.kind, _ARITHMETIC).format(fault.layer)
    if not failed:
        return "Nothing was compared"
    first = failed[0]
    if first.check == "weights" and first.subject:
        return _FAULTS["weights"].format(first.subject)
    return _CHECKS.get(first.check, f"The check '{first.check}' failed")


def _sentences(messages: list[str]) -> list[str]:
    """Return distinct messages, without those contained in another one."""
    different = list(dict.fromkeys(messages))
    return [
        message
        for message in different
        if not any(message in other for other in different if other is not message)
    ]


def _where(fault: Fault | None, worst: OutputVerdict | None, golden: GoldenSet) -> str:
    parts = []
    if fault is not None:
        place = f"op {fault.op.index} ({fault.op.kind})" if fault.op else "no op of its own"
        parts.append(f"layer '{fault.layer}', {place}")
    if worst is not None:
        sample = worst.worst_sample
        parts.append(
            f"output '{worst.metrics.output}', most in sample {sample} ({golden.kind[sample]}), "
            f"greatest error at {[int(i) for i in worst.metrics.max_abs_at]}"
        )
    return "; ".join(parts)


def _how_much(fault: Fault | None, worst: OutputVerdict | None) -> str:
    parts = []
    if fault is not None and fault.culprit is not None and fault.culprit.got is not None:
        error = np.abs(fault.culprit.got - fault.culprit.expected)
        over = ~(error <= fault.culprit.allowed)
        finite = np.isfinite(error)
        most = f", by up to {short(float(error[finite].max()))}" if finite.any() else ""
        broken = "" if finite.all() else f", {int((~finite).sum())} of them NaN or infinite"
        parts.append(
            f"{int(over.sum())} of {over.size} values of the layer "
            f"({short(100 * float(over.mean()))} %){most}{broken}"
        )
    if worst is not None:
        metrics = worst.metrics
        if metrics.nonfinite:
            parts.append(f"{metrics.nonfinite} elements of the output are NaN or infinite")
        ratio = worst.worst_ratio
        parts.append(
            f"RMS error {short(ratio * worst.bound.noise[worst.worst_sample])} against "
            f"{worst.bound.against}, {short(ratio)} times the expected noise; greatest error "
            f"against truth {short(metrics.max_abs)}"
        )
    return "; ".join(parts)


def _allowed(fault: Fault | None, worst: OutputVerdict | None) -> str:
    parts = []
    if fault is not None and fault.culprit is not None:
        allowed = float(np.max(fault.culprit.allowed, initial=0.0))
        parts.append(
            f"up to {short(allowed)} in a value of the layer, the greatest effect of rounding in it"
        )
    if worst is not None:
        noise = worst.bound.noise[worst.worst_sample]
        parts.append(
            f"RMS error {short(worst.bound.worst * noise)} in that sample: {worst.bound.worst:g} "
            f"times {short(noise)}, the noise of {worst.bound.reason}"
        )
    return "; ".join(parts)
