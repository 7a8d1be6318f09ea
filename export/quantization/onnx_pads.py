"""Lets a Pad between integers move the integers themselves.

ONNX Runtime's quantizer writes DequantizeLinear, Pad and QuantizeLinear, in equal steps. OpenVINO
2026.4 gives wrong numbers for it if one axis is padded and the zero point is not 0, or cannot load
the file. A Pad of the integers with the zero point computes the same, in one operator.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

_LEAST_OPSET = 13  # the first whose Pad takes integers of 8 bits


def pad_integers(model: onnx.ModelProto) -> None:
    """Replace every Pad with zeros between integers in equal steps.

    Args:
        model: A model with QuantizeLinear and DequantizeLinear; changed in place.
    """
    if any(o.version < _LEAST_OPSET for o in model.opset_import if o.domain in ("", "ai.onnx")):
        return
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    returned = {value.name for value in graph.output}
    removed = []
    for node in graph.node:
        if node.op_type != "Pad" or not _with_zeros(node, constants):
            continue
        before, after = makers.get(node.input[0]), readers.get(node.output[0], [])
        if before is None or before.op_type != "DequantizeLinear" or node.output[0] in returned:
            continue
        if len(after) != 1 or after[0].op_type != "QuantizeLinear" or len(before.input) < 3:
            continue
        steps = [[constants.get(name) for name in n.input[1:3]] for n in (before, after[0])]
        if not all(_is_one_number(a) and np.array_equal(a, b) for a, b in zip(*steps, strict=True)):
            continue
        node.input[:] = [before.input[0], node.input[1], before.input[2], *node.input[3:]]
        node.output[:] = after[0].output
        removed.append(after[0])
    for node in removed:
        graph.node.remove(node)


def _with_zeros(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> bool:
    """Return whether a Pad adds zeros."""
    mode = next((a.s for a in node.attribute if a.name == "mode"), b"constant")
    fill = node.input[2] if len(node.input) > 2 else ""
    return mode == b"constant" and (not fill or (fill in constants and not constants[fill].any()))


def _is_one_number(array: np.ndarray | None) -> bool:
    return array is not None and array.size == 1
