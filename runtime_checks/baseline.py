"""What changed since an earlier check: verdicts, errors, decisions, latency, file by file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .end_to_end.findings import Finding, TargetResult
from .report.json_report import SCHEMA

CHECK = "baseline"

# Twice the power of the error. Other runtimes and processors sum in another order, which changes
# the ratio by less (docs/checks.md, the spread over runtimes).
_WORSE_DB = 3.0
# Times differ by this much between runs on a busy machine; they are reported, never judged.
_OTHER_TIME = 1.25

_VERDICTS = {True: "passes now and failed", False: "fails now and passed"}


def read_baseline(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Read the JSON report of an earlier check.

    Raises:
        UserError: It is no such report.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a JSON report of `renormlite check` ({error}).") from error
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise UserError(
            f"The baseline must be a report written by `renormlite check --json`, of the schema "
            f"'{SCHEMA}'. Received: {path} of {schema!r}."
        )
    return dict(record)


def changes(
    before: Mapping[str, Any], results: Sequence[TargetResult], *, whole: bool
) -> list[Finding]:
    """Return what changed since an earlier check; anything that got worse is a failed finding.

    Args:
        before: What `read_baseline` returned.
        results: The results now.
        whole: Whether everything was checked; otherwise a missing result is not a change.
    """
    old = {(entry["artifact"], entry["target"]): entry for entry in before["results"]}
    new = {(result.artifact, result.target): result for result in results}
    found = []
    for pair in dict.fromkeys([*old, *new]):
        name = f"{pair[0]} on {pair[1]}"
        if pair not in new:
            if whole:
                found.append(Finding(CHECK, False, f"{name} was checked before, not now", name))
        elif pair not in old:
            found.append(Finding(CHECK, True, f"{name} was not checked before", name))
        else:
            found += [
                Finding(CHECK, fine, f"{name}: {text}", name)
                for fine, text in _changed(old[pair], new[pair])
            ]
    return found


def _changed(old: Mapping[str, Any], new: TargetResult) -> Iterator[tuple[bool, str]]:
    """Yield each change of one file on one target, and whether it is acceptable."""
    passed = old["verdict"] == "pass"
    if passed != new.passed:
        yield new.passed, f"it {_VERDICTS[new.passed]} before"
    for entry in new.outputs:
        metrics = entry.metrics
        known = old["metrics"].get(metrics.output)
        if known is None:
            continue
        was = float(known["snr_db"])
        if abs(metrics.snr_db - was) >= _WORSE_DB:
            yield (
                metrics.snr_db > was,
                f"output '{metrics.output}' has {metrics.snr_db:.1f} dB, before {was:.1f} dB",
            )
    for task in new.tasks:
        known = old["tasks"].get(task.output)
        if known is None or known["samples"] != task.samples:
            continue
        if task.same != known["same"]:
            yield (
                task.same > known["same"],
                f"output '{task.output}' decides {task.same} / {task.samples} as the trained model "
                f"does, before {known['same']}",
            )
        if task.labelled == known["labelled"] and task.right_after != known["right_after"]:
            yield (
                task.right_after > known["right_after"],
                f"output '{task.output}' is right on {task.right_after} / {task.labelled}, before "
                f"{known['right_after']}",
            )
    times = [record.get("latency_ms", {}).get("median") for record in (old, new.measured)]
    if None not in times and max(times) > _OTHER_TIME * min(times) > 0:
        yield True, f"one inference takes {times[1]:.3g} ms, before {times[0]:.3g} ms"
