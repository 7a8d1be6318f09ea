"""The report as JSON; docs/checks.md describes the schema field by field."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..verdict import OutputVerdict, TargetResult

if TYPE_CHECKING:
    from ..parity import ParityReport

SCHEMA = "renormlite/parity/1"


def render(report: ParityReport) -> str:
    """Return the whole report as JSON text, keys in a fixed order."""
    return json.dumps(plain(record(report)), indent=2, allow_nan=False) + "\n"


def record(report: ParityReport) -> dict[str, Any]:
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
    }


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
            "pooled_limit": entry.bound.pooled,
            "worst_ratio": entry.worst_ratio,
            "worst_limit": entry.bound.worst,
            "worst_sample": entry.worst_sample,
            "reason": entry.bound.reason,
            "expected_rms": entry.bound.noise,
        },
    }


def plain(value: Any) -> Any:
    """Return nested data as JSON can hold it; NaN and infinities become their names.

    JSON has no number for them, and null would read as "not measured".
    """
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
