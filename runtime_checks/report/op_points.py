"""The operators of one result as the reports show them, passed and at fault, in order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ...artifacts.graphs.base import GraphOp
from ..end_to_end.findings import TargetResult
from ..per_op.culprit import Fault


@dataclass(frozen=True)
class OpPoint:
    """One op of a file, measured against float64.

    Attributes:
        op: The file's operator; None if no operator of the file computes the layer's value.
        layer: Its Keras layer.
        ratio: Greatest error over its bound: above 1 for an op at fault, infinite for NaN.
        relative: Root mean square error relative to the expected value's, from the op's own inputs.
        accumulated: The same of everything up to this op; None for an op at fault.
        faulty: Whether it is at fault.
    """

    op: GraphOp | None
    layer: str
    ratio: float
    relative: float
    accumulated: float | None
    faulty: bool


def op_points(result: TargetResult) -> list[OpPoint]:
    """Return every checked operator as one point, in the order in which they run."""
    points = [
        OpPoint(check.op, check.layer, check.ratio, check.drift, check.accumulated, faulty=False)
        for check in result.ops
    ]
    points.extend(_faulty(fault) for fault in result.faults)
    worst: dict[int | str, OpPoint] = {}
    for point in points:
        key = point.op.index if point.op else point.layer
        known = worst.get(key)
        if known is None or (point.faulty, point.ratio) > (known.faulty, known.ratio):
            worst[key] = point
    return sorted(worst.values(), key=lambda point: point.op.index if point.op else math.inf)


def _faulty(fault: Fault) -> OpPoint:
    """Return a fault as a point; one without tensors has an infinite error."""
    culprit = fault.culprit
    if culprit is None or culprit.got is None:
        return OpPoint(fault.op, fault.layer, math.inf, math.inf, None, faulty=True)
    with np.errstate(invalid="ignore", over="ignore"):  # infinity less infinity
        error = np.abs(culprit.got - culprit.expected)
    if not np.isfinite(error).all():
        return OpPoint(fault.op, fault.layer, math.inf, math.inf, None, faulty=True)
    allowed = np.maximum(culprit.allowed, np.finfo(np.float64).tiny)
    size = float(np.sqrt(np.mean(np.square(culprit.expected))))
    noise = float(np.sqrt(np.mean(np.square(error))))
    return OpPoint(
        fault.op,
        fault.layer,
        ratio=float((error / allowed).max(initial=0.0)),
        relative=noise / size if size else math.inf,
        accumulated=None,
        faulty=True,
    )
