"""Lets a Pad between integers move the integers themselves.

OpenVINO 2026.4 gives wrong numbers for a Pad of one axis behind a DequantizeLinear if the zero
point is not 0, or cannot load the file. A Pad of the integers with the zero point computes the
same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx

from ..formats.onnx_view import text_of

_LEAST_OPSET = 13  # the first whose Pad takes integers of 8 bits


def pad_integers(model: onnx.ModelProto) -> None:
    """Move every Pad with zeros in front of the DequantizeLinear that it reads.

    If a QuantizeLinear in the same steps follows, neither is needed.

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
    constants = {tensor.name: tensor for tensor in graph.initializer}
    returned = {value.name for value in graph.output}
    for node in [node for node in graph.node if node.op_type == "Pad"]:
        before, after = makers.get(node.input[0]), readers.get(node.output[0], [])
        if before is None or not _with_zeros(node, constants):
            continue
        if before.op_type != "DequantizeLinear" or before.input[0] in constants:
            continue
        steps = [_number(constants, name) for name in before.input[1:3]]
        if len(steps) < 2 or None in steps:
            continue
        integers, padded = f"{node.output[0]}/integers", node.output[0]
        node.input[:] = [before.input[0], node.input[1], before.input[2], *node.input[3:]]
        kinds = [reader.op_type for reader in after]
        if kinds == ["QuantizeLinear"] and padded not in returned:
            (last,) = after
            if steps == [_number(constants, name) for name in last.input[1:3]]:
                node.output[0] = last.output[0]
                graph.node.remove(last)
                continue
        node.output[0] = integers
        names = [integers, *before.input[1:3]]
        made = onnx.helper.make_node("DequantizeLinear", names, [padded], f"{node.name}/dequantize")
        graph.node.insert(list(graph.node).index(node) + 1, made)
        makers[padded] = made  # another Pad may follow


def _with_zeros(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Return whether a Pad adds zeros."""
    fill = node.input[2] if len(node.input) > 2 else ""
    constant = text_of(node, "mode") in ("", "constant")
    return constant and (not fill or _number(constants, fill) == 0)


def _number(constants: Mapping[str, onnx.TensorProto], name: str) -> float | None:
    """Return a constant of one number; None for other values."""
    tensor = constants.get(name)
    if tensor is None or math.prod(tensor.dims) != 1:
        return None
    return float(onnx.numpy_helper.to_array(tensor).item())
