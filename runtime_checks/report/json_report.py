"""The report as JSON.

`parity.schema.json` beside this file is the schema; docs/reports.md describes it field by field.
A bundle writes the record of one result on a device as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...artifacts.plain_json import plain
from ...artifacts.record import Record, parse_json
from ...errors import UserError
from ...files import regular
from ..end_to_end.findings import OutputVerdict, TargetResult

if TYPE_CHECKING:
    from ...artifacts.graphs.base import GraphOp
    from ..check_record import CheckRecord
    from ..per_op.culprit import Fault
    from ..per_op.op_results import OpCheck

SCHEMA = "renormlite/parity/1"


def render(report: CheckRecord) -> str:
    """Return the whole report as JSON text, keys in a fixed order."""
    return json.dumps(plain(record(report)), indent=2, allow_nan=False) + "\n"


def record(report: CheckRecord) -> dict[str, Any]:
    """Return the report as nested dictionaries."""
    return {
        "schema": SCHEMA,
        "name": report.name,
        "verdict": verdict_word(report.passed),
        "samples": report.samples,
        "seconds": report.seconds,
        "host": report.host,
        "versions": report.manifest.get("versions", {}),
        "results": [result_record(result) for result in report.results],
        "limits": vars(report.limits),
        "left_out": list(report.left_out),
        "findings": [dataclasses.asdict(finding) for finding in report.findings],
        "streamed": None if report.streamed is None else report.streamed.to_json(),
        "searched": [{**vars(search), "sentence": search.sentence} for search in report.searched],
    }


def read(path: str | os.PathLike[str]) -> Record:
    """Read a JSON report and check its schema.

    Raises:
        UserError: The file is not such a report.
    """
    with reading(path):
        record = Record(parse_json(regular(path).read_text(encoding="utf-8")))
        schema = record.text("schema")
        if schema != SCHEMA:
            raise ValueError(f"its schema is {schema!r}, expected {SCHEMA!r}")
        return record


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Convert the errors of a block that reads a JSON report to a `UserError`."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a JSON report of `renormlite check` ({error}). Write one with --json."
        ) from error


def read_decibels(metrics: Record) -> float:
    """Return the signal-to-noise ratio of an output; an infinite one is stored as text."""
    try:
        return metrics.number("snr_db") or 0.0
    except ValueError:
        return float(metrics.text("snr_db"))


def result_record(result: TargetResult) -> dict[str, Any]:
    """Return one artifact on one target as nested dictionaries."""
    return {
        "target": result.target,
        "artifact": result.artifact,
        "precision": result.precision,
        "verdict": verdict_word(result.passed),
        "reason": result.reason,
        "findings": [dataclasses.asdict(finding) for finding in result.findings],
        "metrics": {entry.metrics.output: _output_record(entry) for entry in result.outputs},
        "stages": {budget.output: budget.to_json() for budget in result.stages},
        "tasks": {task.output: task.to_json() for task in result.tasks},
        "quality": {entry.output: entry.to_json() for entry in result.qualities},
        "threads": [vars(entry) for entry in result.threads],
        "ops": [_op_check_record(check) for check in result.ops],
        "faults": [_fault_record(fault) for fault in result.faults],
        "ran": result.ran,
        **result.measured,
    }


def verdict_word(passed: bool) -> str:
    """Return the one word for a verdict."""
    return "pass" if passed else "fail"


def _output_record(entry: OutputVerdict) -> dict[str, Any]:
    """Return one output's metrics and bound, without its name."""
    metrics = dataclasses.asdict(entry.metrics)
    del metrics["output"]
    return {
        **metrics,
        "noise": {
            "pooled_ratio": entry.pooled_ratio,
            "pooled_limit": entry.pooled_limit,
            "worst_ratio": entry.worst_ratio,
            "worst_limit": entry.bound.worst,
            "worst_sample": entry.worst_sample,
            "reason": entry.bound.reason,
            "against": entry.bound.against,
            "expected_rms": entry.bound.noise,
        },
    }


def _op_check_record(check: OpCheck) -> dict[str, Any]:
    """Return one operator that was checked separately."""
    return {**vars(check), "op": _op_record(check.op)}


def _fault_record(fault: Fault) -> dict[str, Any]:
    """Return one fault without its tensors."""
    return {
        "layer": fault.layer,
        "kind": fault.kind,
        "op": _op_record(fault.op),
        "message": fault.message,
    }


def _op_record(op: GraphOp | None) -> dict[str, Any] | None:
    """Return the name of an operator in its file; None for a value that no operator computes."""
    return None if op is None else {"index": op.index, "kind": op.kind, "name": op.name}
