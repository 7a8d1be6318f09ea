"""Errors of every operator as node data for Model Explorer, which colors the file's graph.

The format is `GraphNodeData` of google-ai-edge/model-explorer (`node_data_builder.py` there):
`results` by node id, `thresholds` in ascending order with the color of values up to them. Model
Explorer's own reader identifies the operators of a .tflite file by their index, and its ONNX
extension identifies nodes by name, or by index if they have none.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ...artifacts.graphs.base import GraphOp
from ..end_to_end.findings import TargetResult
from .op_points import OpPoint, op_points

if TYPE_CHECKING:
    from ..check_record import CheckRecord

# Replacements for infinity, which JSON lacks: more decibels than float64 can resolve, and more than
# any error over its bound. Model Explorer has no color beyond the last threshold.
_EXACT_DB = 400.0
_OVER = 1e12

_GREEN, _PALE, _YELLOW, _ORANGE, _RED = "#2e9e5b", "#b7e1c3", "#ffe08a", "#f5a25d", "#d64545"


def render(report: CheckRecord) -> dict[str, str]:
    """Return file names and contents: three for each result whose operators were checked.

    `….bound.json` holds each operator's greatest error over its bound: above 1 is a fault.
    `….added_db.json` holds the error added by each operator, `….drift_db.json` that of everything
    up to it, both as signal-to-noise ratios in decibels.
    """
    files = {}
    for result in report.results:
        points = op_points(result)
        if not points:
            continue
        target = re.sub(r"[^\w.+@-]", "_", result.target)
        stem = f"{result.artifact}.{target}"
        bounds = {0.5: _GREEN, 1.0: _YELLOW, _OVER: _RED}
        levels = {20.0: _RED, 40.0: _ORANGE, 60.0: _YELLOW, 100.0: _PALE, _EXACT_DB: _GREEN}
        for name, measure, colours in (
            ("bound", lambda point: min(point.ratio, _OVER), bounds),
            ("added_db", lambda point: _decibels(point.relative), levels),
            ("drift_db", lambda point: _decibels(point.accumulated), levels),
        ):
            files[f"{stem}.{name}.json"] = _node_data(result, points, measure, colours)
    return files


def _decibels(relative: float | None) -> float | None:
    """Return a relative error as a signal-to-noise ratio; None if unknown."""
    if relative is None:
        return None
    if relative == 0:
        return _EXACT_DB
    return -20 * math.log10(relative) if math.isfinite(relative) else -_EXACT_DB


def _node_data(
    result: TargetResult,
    points: list[OpPoint],
    measure: Callable[[OpPoint], float | None],
    colours: Mapping[float, str],
) -> str:
    """Return one file of node data as JSON text."""
    results: dict[str, dict[str, Any]] = {}
    for point in points:
        value = measure(point)
        if point.op is not None and value is not None:
            # Four digits: more than an error needs, and they fit Model Explorer's tables.
            entry: dict[str, Any] = {"value": float(f"{value:.4g}")}
            if point.faulty:
                entry |= {"bgColor": _RED, "textColor": "#ffffff"}
            results[node_id(point.op, result.artifact)] = entry
    thresholds = [{"value": value, "bgColor": colour} for value, colour in colours.items()]
    return json.dumps({"results": results, "thresholds": thresholds}, indent=2) + "\n"


def node_id(op: GraphOp, artifact: str) -> str:
    """Return Model Explorer's id of an operator."""
    if artifact.endswith(".onnx"):
        return op.name or f"<node_{op.index}>"
    return str(op.index)
