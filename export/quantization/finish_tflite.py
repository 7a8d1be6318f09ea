"""Writes the quantization steps of a quantization-aware model into its TFLite file.

The converter wrote the integers of every kernel with one step, its mark (see `trained`). Here, each
kernel and its bias get the steps of their channels.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ...artifacts.flatbuffer import operator_code, operator_kind, text
from ...errors import UserError
from .fake_quantized import Weights
from .pack import pack
from .trained import FENCE, IntegerModel

# Kernel, bias and input among an operator's inputs, and the axis of the kernel's channels.
_LINEAR = {
    "CONV_2D": (1, 2, 0),
    "DEPTHWISE_CONV_2D": (1, 2, 3),
    "FULLY_CONNECTED": (1, 2, 0),
    "TRANSPOSE_CONV": (1, 3, 0),
}


def finish(model: Any, integers: IntegerModel, readable: Callable[[str], str]) -> None:
    """Finish a file.

    Args:
        model: The parsed file; changed in place.
        integers: The integer network that it was converted from.
        readable: Converts the converter's name of a tensor to one with the names of layers.

    Raises:
        UserError: An operator computes in floating point unexpectedly.
    """
    _replace_markers(model, integers.markers)
    by_mark = {weights.mark: weights for weights in integers.weights}
    for graph in model.subgraphs:
        for operator in graph.operators:
            kind = operator_kind(model, operator)
            if kind in _LINEAR:
                weights = _set_steps(model, graph, operator, _LINEAR[kind], by_mark)
                if weights is not None and weights.bits <= 4:
                    pack(model, operator, graph, integers.rounding)
            if not (_is_border(graph, operator, kind) or _is_fence(operator, integers.markers)):
                _refuse_float(graph, operator, kind, integers.float_layers, readable)
        _remove_fences(graph, integers.markers)


def _is_fence(operator: Any, markers: dict[np.float32, str]) -> bool:
    return _marked_by(operator, markers) == FENCE


def _remove_fences(graph: Any, markers: dict[np.float32, str]) -> None:
    """Remove the marks of borders; their operands become outputs of the file where they are."""
    kept = [operator for operator in graph.operators if not _is_fence(operator, markers)]
    for fence in (operator for operator in graph.operators if _is_fence(operator, markers)):
        before, after = fence.inputs[0], fence.outputs[0]
        old, new = (before, after) if after in graph.outputs else (after, before)
        for operator in graph.operators:
            operator.inputs = [new if i == old else i for i in operator.inputs]
            operator.outputs = [new if i == old else i for i in operator.outputs]
    graph.operators = kept


def _is_border(graph: Any, operator: Any, kind: str) -> bool:
    """Return whether an operator converts between integers and floating point."""
    types = {graph.tensors[i].type for i in (operator.inputs[0], operator.outputs[0])}
    return kind in ("QUANTIZE", "DEQUANTIZE") and len(types) == 2


def _replace_markers(model: Any, markers: dict[np.float32, str]) -> None:
    """Replace each LEAKY_RELU that marks another operator."""
    for operator in model.subgraphs[0].operators:
        kind = _marked_by(operator, markers)
        if kind in _MARKED:
            operator.opcodeIndex = operator_code(model, *_MARKED[kind])
            # No marked operator needs options.
            operator.builtinOptions = None
            operator.builtinOptionsType = schema.BuiltinOptions.NONE


def _marked_by(operator: Any, markers: dict[np.float32, str]) -> str | None:
    """Return the operator that a LEAKY_RELU marks; None for other operators."""
    options = operator.builtinOptions
    if not isinstance(options, schema.LeakyReluOptionsT):
        return None
    return markers.get(np.float32(options.alpha))


# Each marked operator, and its version for integer inputs.
_MARKED = {
    "QUANTIZE": (schema.BuiltinOperator.QUANTIZE, 2),
    "ELU": (schema.BuiltinOperator.ELU, 1),
    "LOGISTIC": (schema.BuiltinOperator.LOGISTIC, 3),
    "TANH": (schema.BuiltinOperator.TANH, 3),
}


def _widen(model: Any, bias: Any, integers: np.ndarray) -> None:
    """Store a bias as int64, which kernels with 16-bit activations require."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(integers.astype(np.int64).tobytes(), np.uint8)
    bias.type, bias.buffer = schema.TensorType.INT64, len(model.buffers)
    model.buffers.append(buffer)


def _set_steps(
    model: Any,
    graph: Any,
    operator: Any,
    places: tuple[int, int, int],
    by_mark: dict[np.float32, Weights],
) -> Weights | None:
    """Set the steps of an operator's weights; return them where they were trained."""
    kernel_at, bias_at, axis = places
    kernel = graph.tensors[operator.inputs[kernel_at]]
    steps = kernel.quantization
    if steps is None or steps.scale is None or np.float32(steps.scale[0]) not in by_mark:
        return None  # a layer that stays in floating point, or one that is finished
    weights = by_mark[np.float32(steps.scale[0])]
    _set(kernel, weights.steps, axis)
    if bias_at < len(operator.inputs) and operator.inputs[bias_at] >= 0:
        bias = graph.tensors[operator.inputs[bias_at]]
        _set(bias, weights.input_step * weights.steps, 0)
        if graph.tensors[operator.outputs[0]].type == schema.TensorType.INT16:
            _widen(model, bias, weights.bias)
    return weights


def _set(tensor: Any, steps: np.ndarray, axis: int) -> None:
    quantization = tensor.quantization
    if (steps == steps[0]).all():
        steps = steps[:1]
    quantization.scale = steps.astype(np.float32)
    quantization.zeroPoint = np.zeros(len(steps), np.int64)
    quantization.quantizedDimension = axis if len(steps) > 1 else 0
    quantization.min = quantization.max = None


def _refuse_float(
    graph: Any,
    operator: Any,
    kind: str,
    float_layers: Container[str],
    readable: Callable[[str], str],
) -> None:
    """Refuse an operator that computes in floating point, unless its layer is in float_layers."""
    float32 = schema.TensorType.FLOAT32
    tensors = [graph.tensors[i] for i in (*operator.inputs, *operator.outputs) if i >= 0]
    if all(tensor.type != float32 for tensor in tensors):
        return
    name = readable(text(graph.tensors[operator.outputs[0]].name))
    if any(part in float_layers for part in name.replace(";", "/").split("/")):
        return
    raise UserError(
        f"{kind} ({name}) computes in floating point inside an integer file: its input or output "
        "has no quantizer. Make the model with renormlite.quantize_aware, which gives every value "
        "one, or name the layer in float_layers."
    )
