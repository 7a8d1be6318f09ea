"""Writes the integer weights of a quantization-aware model into its ONNX model.

In the traced graph, a kernel is its integers times its mark (see `trained`). Here, each kernel is
replaced by int8 integers and a DequantizeLinear with the steps of its channels, and each bias by
int32 integers and a DequantizeLinear. The fake quantizations of activations were converted to pairs
of QuantizeLinear and DequantizeLinear by `fake_quantization`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from .fake_quantized import Weights
from .onnx_integer_pads import pad_integers
from .onnx_integers import compute_in_integers
from .trained import IntegerModel

# Axis of a kernel's output channels, for grouped and depthwise convolutions too.
_CHANNELS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}


def fake_quantization(ctx: Any, node: Any, name: str, args: list[Any]) -> None:
    """Convert TensorFlow's fake quantization to a QuantizeLinear and a DequantizeLinear.

    This is a handler for tf2onnx. The fake quantization of a kernel is removed. Activations are
    uint8, which is fastest on x86.
    """
    if node.inputs[0].is_const():
        ctx.replace_all_inputs(node.output[0], node.input[0])
        ctx.remove_node(name)
        return
    low, high = (float(node.inputs[i].get_tensor_value(as_list=False)) for i in (1, 2))
    scale = np.float32((high - low) / 255)
    zero = np.uint8(round(-low / scale))
    shapes, (value, output) = [ctx.get_shape(node.output[0])], (node.input[0], node.output[0])
    step = ctx.make_const(f"{name}/scale", np.array(scale, np.float32)).output[0]
    point = ctx.make_const(f"{name}/zero_point", np.array(zero, np.uint8)).output[0]
    ctx.remove_node(name)
    integers = ctx.make_node(
        "QuantizeLinear",
        [value, step, point],
        name=f"{name}/quantize",
        shapes=shapes,
        dtypes=[onnx.TensorProto.UINT8],
    )
    ctx.make_node(
        "DequantizeLinear",
        [integers.output[0], step, point],
        name=name,
        outputs=[output],
        shapes=shapes,
        dtypes=[onnx.TensorProto.FLOAT],
    )


def finish(
    model: onnx.ModelProto, integers: IntegerModel, readable: Callable[[str], str]
) -> onnx.ModelProto:
    """Return the model with integer weights; it is changed in place.

    Args:
        model: The converted model, with biases fused into the linear layers.
        integers: The integer network that it was converted from.
        readable: Converts the converter's name of a node to one with the names of layers.
    """
    graph = model.graph
    compute_in_integers(graph, integers, readable)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    made: dict[str, str] = {}
    added: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type not in _CHANNELS or node.input[1] not in constants:
            continue
        weights = _weights_of(constants[node.input[1]], integers.weights)
        if weights is None:
            continue  # a layer that stays in floating point
        axis = 0 if _transposed(node) else _CHANNELS[node.op_type]
        kernel = numpy_helper.to_array(constants[node.input[1]])
        values = np.rint(kernel / weights.mark).astype(np.int8)
        key = f"{node.input[1]}|{weights.mark}"
        if key not in made:
            made[key] = _dequantized(graph, added, node.input[1], values, weights.steps, axis)
        if len(node.input) > 2 and node.input[2]:
            steps = weights.input_step * weights.steps
            node.input[2] = _dequantized(
                graph, added, f"{node.name}/bias", weights.bias.astype(np.int32), steps, 0
            )
        node.input[1] = made[key]
    nodes = [*added, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unread(graph)
    pad_integers(model)
    return model


def _weights_of(kernel: onnx.TensorProto, known: Iterable[Weights]) -> Weights | None:
    """Return the weights that a constant contains, in any order of axes."""
    found = np.sort(numpy_helper.to_array(kernel), axis=None)
    for weights in known:
        if weights.kernel.size == found.size and np.array_equal(
            found, np.sort(weights.kernel * weights.mark, axis=None)
        ):
            return weights
    return None


def _dequantized(
    graph: onnx.GraphProto,
    nodes: list[onnx.NodeProto],
    name: str,
    values: np.ndarray,
    steps: np.ndarray,
    axis: int,
) -> str:
    """Add integers and their DequantizeLinear; return the name of its output."""
    if (steps == steps[0]).all():
        steps = steps[0]
    named = {
        f"{name}_quantized": values,
        f"{name}_scale": np.asarray(steps, np.float32),
        f"{name}_zero_point": np.zeros(np.shape(steps), values.dtype),
    }
    graph.initializer.extend(numpy_helper.from_array(a, key) for key, a in named.items())
    result = f"{name}_dequantized"
    node = onnx.helper.make_node("DequantizeLinear", list(named), [result], f"{name}/dequantize")
    if np.ndim(steps):
        node.attribute.append(onnx.helper.make_attribute("axis", axis))
    nodes.append(node)
    return result


def _drop_unread(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _transposed(node: onnx.NodeProto) -> bool:
    return any(a.name == "transB" and a.i for a in node.attribute)
