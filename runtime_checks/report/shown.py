"""States what a passed check has shown."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...artifacts.precisions import PRECISIONS, Arithmetic
from ..end_to_end.error_budget import decibels

if TYPE_CHECKING:
    from ..check_record import CheckRecord


def what_was_shown(report: CheckRecord) -> str:
    """Return one sentence on the files that passed.

    Files of float32 compute what the trained model computes, up to rounding. For files of lower
    precision it gives the loss: the least signal-to-noise ratio, and the changed decisions. Of
    single layers nothing is said about the outputs, which were not judged.
    """
    if report.layers:
        names = ", ".join(f"'{name}'" for name in report.layers)
        return report.in_its_terms(
            f"the weights and ops of {names} compute what the trained model computes; the outputs "
            "and other layers were not judged"
        )
    passed = [result for result in report.results if result.passed]
    exact = [r for r in passed if PRECISIONS[r.precision].arithmetic is Arithmetic.FLOAT32]
    parts = []
    if exact:
        parts.append("float32 files compute what the trained model computes, up to rounding")
    coarse = [result for result in passed if result not in exact]
    if coarse:
        names = ", ".join(dict.fromkeys(result.precision for result in coarse))
        found = [q.snr_db for r in coarse for q in r.qualities if q.snr_db is not None]
        least = min(found, default=math.inf)
        text = (
            f"{names} files are at least {decibels(least)} from the trained model "
            f"(required {report.limits.min_snr:g} dB)"
        )
        tasks = [task for result in coarse for task in result.tasks]
        if tasks:
            same, total = sum(t.same for t in tasks), sum(t.samples for t in tasks)
            text = f"{text} and decide {same} of {total} samples as it does"
        parts.append(text)
    return report.in_its_terms("; ".join(parts))


def accuracy_in_words(report: CheckRecord) -> str:
    """Return the accuracy of the trained model and of the files; empty without labels."""
    tasks = [task for result in report.results for task in result.tasks if task.labelled]
    outputs = list(dict.fromkeys(task.output for task in tasks))
    parts = []
    for output in outputs:
        those = [task for task in tasks if task.output == output]
        before = f"{100 * those[0].right_before / those[0].labelled:.2f}"
        after = sorted(
            {f"{100 * task.right_after / task.labelled:.2f}" for task in those}, key=float
        )
        span = after[0] if len(after) == 1 else f"{after[0]} to {after[-1]}"
        name = f" of '{output}'" if len(outputs) > 1 else ""
        parts.append(
            f"accuracy{name} on {those[0].labelled} labelled samples: {before} % trained model, "
            f"{span} % on the targets (allowed drop: {report.limits.max_accuracy_drop:.2f})"
        )
    return "; ".join(parts)


def limits_in_words(report: CheckRecord) -> str:
    """Return the limits of the numbers in the table."""
    limits = report.limits
    bounds = {(e.bound.pooled, e.bound.worst) for r in report.results for e in r.outputs}
    if not bounds:
        return "no output was compared"
    pooled, worst = max(bounds)
    return (
        f"noise: error over the expected noise, all samples (limit {pooled:g}x); worst: "
        f"one sample (limit {worst:g}x); SNR: on typical samples (at "
        f"least {limits.min_snr:g} dB; usual are 105 to 140 for float32, 20 to 50 for int8)"
    )
