"""Determines how often the loops of .tflite and .onnx files run their bodies."""

from __future__ import annotations

from collections.abc import Mapping

from ..artifacts.graphs.base import ArtifactGraph, GraphOp

LOOPS = ("WHILE", "Loop", "Scan")


def loop_steps(op: GraphOp, graph: ArtifactGraph, inner: Mapping[str, ArtifactGraph]) -> int | None:
    """Return how often a loop runs its body at most; None if that is computed at run time.

    Args:
        op: The loop.
        graph: The graph it belongs to.
        inner: Its graphs, by role.
    """
    if op.kind == "WHILE":
        return _while_steps(op, graph, inner["cond"], inner["body"])
    if op.kind == "Loop":
        return _number(graph, op.inputs[0]) if op.inputs[0] else None
    sequences = int(op.attributes["num_scan_inputs"])
    axis = (op.attributes.get("scan_input_axes") or [0])[0]
    shape = graph.tensors[op.inputs[-sequences]].shape
    return shape[axis] if shape and shape[axis] > 0 else None


def _while_steps(
    op: GraphOp, graph: ArtifactGraph, condition: ArtifactGraph, body: ArtifactGraph
) -> int | None:
    """Return the steps of a loop that counts from one constant to another.

    Its condition compares one of its values with a constant (several comparisons are joined by
    "and"), and its body adds one to that value.
    """
    joined = {"LESS", "LOGICAL_AND"}
    if not {test.kind for test in condition.ops} <= joined:
        return None
    found = []
    for test in condition.ops:
        if test.kind != "LESS" or test.inputs[0] not in condition.inputs:
            continue
        place = condition.inputs.index(test.inputs[0])
        start, end = _number(graph, op.inputs[place]), _number(condition, test.inputs[1])
        if start is not None and end is not None and _counts(body, place):
            found.append(max(end - start, 0))
    return min(found, default=None)


def _counts(body: ArtifactGraph, place: int) -> bool:
    """Return whether a body adds one to its value at a place."""
    made = body.producer(body.outputs[place])
    if made is None or made.kind != "ADD" or body.inputs[place] not in made.inputs:
        return False
    return any(_number(body, key) == 1 for key in made.inputs)


def _number(graph: ArtifactGraph, key: str) -> int | None:
    """Return a constant integer; None if it is computed."""
    data = graph.tensors[key].data
    return int(data.reshape(-1)[0]) if data is not None and data.size == 1 else None
