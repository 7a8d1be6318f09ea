"""Errors of every op as node data for Model Explorer, which paints them on the file's graph.

The format is `GraphNodeData` of google-ai-edge/model-explorer (`node_data_builder.py` there):
`results` by node id, `thresholds` in rising order with the colour of what lies at or below them.
Model Explorer's own reader calls the ops of a .tflite file by their place in it, and its ONNX
extension calls nodes by their name, nameless ones by their place.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..graphs.base import GraphOp
from ..verdict import TargetResult
from .op_points import OpPoint, op_points

if TYPE_CHECKING:
    from ..parity import ParityReport

# JSON has no infinity, and Model Explorer no colour for what exceeds the last threshold.
_MOST = sys.float_info.max

_GREEN, _PALE, _YELLOW, _ORANGE, _RED = "#2e9e5b", "#b7e1c3", "#ffe08a", "#f5a25d", "#d64545"


def render(report: ParityReport) -> dict[str, str]:
    """Return file names and contents: for each result with checked ops, bound and accuracy.

    `….bound.json` holds each op's greatest error over what rounding explains: above 1 is a fault.
    `….snr_db.json` holds the error each op adds by itself, as a signal-to-noise ratio in decibels.
    """
    files = {}
    for result in report.results:
        points = op_points(result)
        if not points:
            continue
        target = re.sub(r"[^\w.+@-]", "_", result.target)
        stem = f"{result.artifact}.{target}"
        files[f"{stem}.bound.json"] = _node_data(
            result,
            points,
            lambda point: point.ratio,
            {0.5: _GREEN, 1.0: _YELLOW, _MOST: _RED},
        )
        files[f"{stem}.snr_db.json"] = _node_data(
            result,
            points,
            lambda point: point.snr_db,
            {20.0: _RED, 40.0: _ORANGE, 60.0: _YELLOW, 100.0: _PALE, _MOST: _GREEN},
        )
    return files


def _node_data(
    result: TargetResult,
    points: list[OpPoint],
    measure: Callable[[OpPoint], float],
    colours: Mapping[float, str],
) -> str:
    """Return one file of node data as JSON text."""
    results: dict[str, dict[str, Any]] = {}
    for point in points:
        if point.op is not None:
            value = min(max(measure(point), -_MOST), _MOST)
            entry: dict[str, Any] = {"value": value}
            if point.faulty:
                entry |= {"bgColor": _RED, "textColor": "#ffffff"}
            results[node_id(point.op, result.artifact)] = entry
    thresholds = [{"value": value, "bgColor": colour} for value, colour in colours.items()]
    return json.dumps({"results": results, "thresholds": thresholds}, indent=2) + "\n"


def node_id(op: GraphOp, artifact: str) -> str:
    """Return how Model Explorer calls an op of a file."""
    if artifact.endswith(".onnx"):
        return op.name or f"<node_{op.index}>"
    return str(op.index)
