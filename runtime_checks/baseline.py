"""What changed since an earlier check: verdicts, errors, decisions, latency, file by file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..artifacts.record import Record
from .end_to_end.findings import Finding, TargetResult
from .report.json_report import read, read_decibels, reading

CHECK = "baseline"

# Twice the power of the error. Other runtimes and processors sum in another order, which changes
# the ratio by less (docs/checks.md, the spread over runtimes).
_WORSE_DB = 3.0
# Times differ by this much between runs on a busy machine; they are reported, never judged.
_OTHER_TIME = 1.25

_VERDICTS = {True: "passes now and failed", False: "fails now and passed"}


@dataclass(frozen=True)
class Decisions:
    """The decisions of one output in an earlier check."""

    samples: int
    same: int
    labelled: int
    right_after: int


@dataclass(frozen=True)
class Earlier:
    """The result of an earlier check for one file on one target.

    Attributes:
        passed: Its verdict.
        snr_db: Output name to signal-to-noise ratio.
        decisions: Output name to its decisions.
        latency: Median time of one inference, milliseconds; None if none was measured.
    """

    passed: bool
    snr_db: Mapping[str, float]
    decisions: Mapping[str, Decisions]
    latency: float | None


#: File and target to the result.
Baseline = Mapping[tuple[str, str], Earlier]


def read_baseline(path: str | os.PathLike[str]) -> Baseline:
    """Read the JSON report of an earlier check.

    Raises:
        UserError: It is not such a report.
    """
    record = read(path)
    with reading(path):
        return {
            (entry.text("artifact"), entry.text("target")): _earlier(entry)
            for entry in record.records("results")
        }


def _earlier(entry: Record) -> Earlier:
    metrics, tasks = entry.record("metrics"), entry.record("tasks")
    return Earlier(
        passed=entry.text("verdict") == "pass",
        snr_db={name: read_decibels(metrics.record(name)) for name in metrics},
        decisions={name: _decisions(tasks.record(name)) for name in tasks},
        latency=entry.record("latency_ms").number("median") if "latency_ms" in entry else None,
    )


def _decisions(task: Record) -> Decisions:
    return Decisions(*(task.integer(key) for key in ("samples", "same", "labelled", "right_after")))


def changes(before: Baseline, results: Sequence[TargetResult], *, whole: bool) -> list[Finding]:
    """Return what changed since an earlier check; anything that got worse is a failed finding.

    Args:
        before: What `read_baseline` returned.
        results: The results now.
        whole: Whether everything was checked; otherwise a missing result is not a change.
    """
    new = {(result.artifact, result.target): result for result in results}
    found = []
    for pair in dict.fromkeys([*before, *new]):
        name = f"{pair[0]} on {pair[1]}"
        if pair not in new:
            if whole:
                found.append(Finding(CHECK, False, f"{name} was checked before, not now", name))
        elif pair not in before:
            found.append(Finding(CHECK, True, f"{name} was not checked before", name))
        else:
            found += [
                Finding(CHECK, fine, f"{name}: {text}", name)
                for fine, text in _changed(before[pair], new[pair])
            ]
    return found


def _changed(old: Earlier, new: TargetResult) -> Iterator[tuple[bool, str]]:
    """Yield each change of one file on one target, and whether it is acceptable."""
    if old.passed != new.passed:
        yield new.passed, f"it {_VERDICTS[new.passed]} before"
    for entry in new.outputs:
        metrics = entry.metrics
        was = old.snr_db.get(metrics.output)
        if was is None:
            continue
        if abs(metrics.snr_db - was) >= _WORSE_DB:
            yield (
                metrics.snr_db > was,
                f"output '{metrics.output}' has {metrics.snr_db:.1f} dB, before {was:.1f} dB",
            )
    for task in new.tasks:
        known = old.decisions.get(task.output)
        if known is None or known.samples != task.samples:
            continue
        if task.same != known.same:
            yield (
                task.same > known.same,
                f"output '{task.output}' decides {task.same} / {task.samples} as the trained model "
                f"does, before {known.same}",
            )
        if task.labelled == known.labelled and task.right_after != known.right_after:
            yield (
                task.right_after > known.right_after,
                f"output '{task.output}' is right on {task.right_after} / {task.labelled}, before "
                f"{known.right_after}",
            )
    before, now = old.latency, new.measured.get("latency_ms", {}).get("median")
    if before and now and max(before, now) > _OTHER_TIME * min(before, now):
        yield True, f"one inference takes {now:.3g} ms, before {before:.3g} ms"
