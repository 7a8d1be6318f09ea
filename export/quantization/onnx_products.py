"""Prevents ONNX Runtime from quantizing the activations of products that compute in float32.

A Gemm or MatMul with 16-bit activations has no integer kernel: ONNX Runtime dequantizes its
operands and multiplies in float32. But its optimizer replaces a product whose weights come directly
from a DequantizeLinear by MatMulNBits, which by default quantizes the activations to 8 bits in
blocks (`session.qdq_matmulnbits_accuracy_level`; measured with version 1.32: 40 dB instead of 47 dB
for an autoencoder). A Max of the weights and the least float32 number has the same result, and does
not match the pattern.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

_EIGHT_BITS = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
_LEAST = np.array(np.finfo(np.float32).min, np.float32)


def keep_activations(model: onnx.ModelProto) -> None:
    """Add a Max to the dequantized weights of every product that is not computed in integers.

    Args:
        model: A model with QuantizeLinear and DequantizeLinear; changed in place.
    """
    graph = model.graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    for place, node in reversed(list(enumerate(graph.node))):
        if node.op_type not in ("Gemm", "MatMul"):
            continue
        weights = makers.get(node.input[1])
        if weights is None or weights.op_type != "DequantizeLinear":
            continue
        if weights.input[0] not in types or _in_integers(node, graph, makers, types):
            continue
        least, bounded = f"{node.name}/least", f"{node.name}/weights"
        graph.initializer.append(onnx.numpy_helper.from_array(_LEAST, least))
        made = onnx.helper.make_node("Max", [node.input[1], least], [bounded], f"{node.name}/Max")
        node.input[1] = bounded
        graph.node.insert(place, made)


def _in_integers(
    product: onnx.NodeProto,
    graph: onnx.GraphProto,
    makers: Mapping[str, onnx.NodeProto],
    types: Mapping[str, int],
) -> bool:
    """Return whether a product reads and writes integers of 8 bits."""
    before = makers.get(product.input[0])
    after = [node for node in graph.node if product.output[0] in node.input]
    if len(after) == 1 and after[0].op_type == "Relu":
        after = [node for node in graph.node if after[0].output[0] in node.input]
    ends = [before, *after]
    kinds = ["DequantizeLinear", *["QuantizeLinear"] * len(after)]
    return all(
        node is not None and node.op_type == kind and types.get(node.input[2]) in _EIGHT_BITS
        for node, kind in zip(ends, kinds, strict=True)
    )
