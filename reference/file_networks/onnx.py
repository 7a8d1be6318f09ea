"""The ops of an .onnx file in the operators of the checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp
from ...artifacts.network import Network
from .writer import UnknownFormError, Writer

_Write = Callable[[Writer, GraphOp], None]

_FIRST = {"data_format": "channels_first"}


def network_of(graph: ArtifactGraph) -> Network:
    """Return an .onnx file's graph as a network; shapes must have been inferred."""
    writer = Writer(graph)
    for op in graph.ops:
        try:
            if op.kind not in _WRITERS or op.domain not in ("", "ai.onnx"):
                raise UnknownFormError(op.kind)
            _WRITERS[op.kind](writer, op)
        except UnknownFormError:
            writer.opaque(op)
    return writer.network()


def _ints(op: GraphOp, name: str, default: list[int]) -> list[int]:
    return [int(value) for value in op.attributes.get(name, default)]


def _framing(op: GraphOp, rank: int) -> dict[str, Any]:
    """Return strides, padding and dilation of a window."""
    automatic = op.attributes.get("auto_pad", "NOTSET")
    pads = _ints(op, "pads", [0] * (2 * rank))
    padding: Any = [[pads[axis], pads[axis + rank]] for axis in range(rank)]
    if automatic not in ("NOTSET", ""):
        if automatic not in ("SAME_UPPER", "VALID"):
            raise UnknownFormError(str(automatic))
        padding = "same" if automatic == "SAME_UPPER" else "valid"
    return {
        "strides": _ints(op, "strides", [1] * rank),
        "padding": padding,
        "dilation": _ints(op, "dilations", [1] * rank),
        **_FIRST,
    }


def _conv(writer: Writer, op: GraphOp) -> None:
    kernel = writer.constant(op.inputs[1])
    rank = kernel.ndim - 2
    weights = {"kernel": np.transpose(kernel, (*range(2, kernel.ndim), 1, 0))}
    if len(op.inputs) > 2 and op.inputs[2]:
        weights["bias"] = writer.constant(op.inputs[2])
    attributes = {**_framing(op, rank), "groups": int(op.attributes.get("group", 1))}
    writer.add(op, "conv", op.inputs[:1], attributes, weights)


def _gemm(writer: Writer, op: GraphOp) -> None:
    a = op.attributes
    if a.get("transA") or a.get("alpha", 1.0) != 1.0 or a.get("beta", 1.0) != 1.0:
        raise UnknownFormError("scaled or transposed")
    kernel = writer.constant(op.inputs[1])
    weights = {"kernel": kernel.T if a.get("transB") else kernel}
    if len(op.inputs) > 2 and op.inputs[2]:
        bias = writer.constant(op.inputs[2]).reshape(-1)
        weights["bias"] = np.broadcast_to(bias, (weights["kernel"].shape[1],))
    writer.add(op, "dense", op.inputs[:1], {}, weights)


def _matmul(writer: Writer, op: GraphOp) -> None:
    if op.inputs[1] in writer.constants and writer.constants[op.inputs[1]].ndim == 2:
        kernel = writer.constants[op.inputs[1]]
        writer.add(op, "dense", op.inputs[:1], {}, {"kernel": kernel})
    elif not any(key in writer.constants for key in op.inputs):
        writer.add(op, "matmul", op.inputs)
    else:
        raise UnknownFormError("a constant first operand")


def _operands(kind: str) -> _Write:
    def write(writer: Writer, op: GraphOp) -> None:
        if len(op.inputs) != 2:
            raise UnknownFormError("not two operands")
        writer.elementwise(op, kind, op.inputs)

    return write


def _unary(kind: str, attributes: dict[str, Any] | None = None) -> _Write:
    return lambda writer, op: writer.add(op, kind, op.inputs[:1], attributes)


def _clip(writer: Writer, op: GraphOp) -> None:
    limits = [-math.inf, math.inf]
    for place, name in enumerate(("min", "max")):
        if name in op.attributes:
            limits[place] = float(op.attributes[name])
        elif len(op.inputs) > place + 1 and op.inputs[place + 1]:
            limits[place] = float(writer.constant(op.inputs[place + 1]))
    writer.add(op, "clip", op.inputs[:1], {"min_value": limits[0], "max_value": limits[1]})


def _leaky(writer: Writer, op: GraphOp) -> None:
    slope = float(op.attributes.get("alpha", 0.01))
    writer.add(op, "leaky_relu", op.inputs[:1], {"negative_slope": slope})


def _prelu(writer: Writer, op: GraphOp) -> None:
    writer.add(op, "prelu", op.inputs[:1], {}, {"alpha": writer.constant(op.inputs[1])})


def _elu(writer: Writer, op: GraphOp) -> None:
    writer.add(op, "elu", op.inputs[:1], {"alpha": float(op.attributes.get("alpha", 1.0))})


def _hard_sigmoid(writer: Writer, op: GraphOp) -> None:
    slope, offset = (float(op.attributes.get(k, d)) for k, d in (("alpha", 0.2), ("beta", 0.5)))
    if abs(slope - 1 / 6) > 1e-7 or offset != 0.5:
        raise UnknownFormError("another slope")
    writer.add(op, "hard_sigmoid", op.inputs[:1])


def _softmax(writer: Writer, op: GraphOp) -> None:
    writer.add(op, "softmax", op.inputs[:1], {"axis": int(op.attributes.get("axis", -1))})


def _global_pool(kind: str) -> _Write:
    return _unary(kind, {"keepdims": True, **_FIRST})


def _pool(kind: str) -> _Write:
    def write(writer: Writer, op: GraphOp) -> None:
        size = _ints(op, "kernel_shape", [])
        framing = _framing(op, len(size))
        odd = op.attributes.get("ceil_mode") or set(framing["dilation"]) != {1}
        counted = op.attributes.get("count_include_pad") and framing["padding"] != "valid"
        if odd or (counted and np.any(framing["padding"])):
            raise UnknownFormError("another way of pooling")
        writer.add(op, kind, op.inputs[:1], {**framing, "pool_size": size})

    return write


def _reduce(kind: str) -> _Write:
    def write(writer: Writer, op: GraphOp) -> None:
        given = op.attributes.get("axes")
        if given is None and len(op.inputs) > 1 and op.inputs[1]:
            given = writer.constant(op.inputs[1]).reshape(-1)
        rank = len(writer.graph.tensors[op.inputs[0]].shape)
        if given is None or not rank:
            raise UnknownFormError("reduces everything")
        axes = sorted(int(axis) % rank for axis in given)
        if 0 in axes:
            raise UnknownFormError("reduces over samples")
        attributes = {"axes": axes, "keepdims": bool(op.attributes.get("keepdims", 1))}
        writer.add(op, kind, op.inputs[:1], attributes)

    return write


def _reshape(writer: Writer, op: GraphOp) -> None:
    """Write what changes the shape of each sample alone; the file says into which."""
    shape = writer.shape(op.outputs[0])
    if not writer.graph.tensors[op.outputs[0]].shape or any(size < 0 for size in shape):
        raise UnknownFormError("a shape that is computed")
    writer.add(op, "reshape", op.inputs[:1], {"target_shape": list(shape)})


def _transpose(writer: Writer, op: GraphOp) -> None:
    axes = _ints(op, "perm", [])
    if not axes or axes[0] != 0:
        raise UnknownFormError("moves the samples")
    writer.add(op, "permute", op.inputs[:1], {"axes": axes})


def _concatenate(writer: Writer, op: GraphOp) -> None:
    rank = len(writer.graph.tensors[op.outputs[0]].shape)
    if any(key in writer.constants for key in op.inputs) or not rank:
        raise UnknownFormError("a part is constant")
    axis = int(op.attributes["axis"]) % rank
    if axis == 0:
        raise UnknownFormError("joins samples")
    writer.add(op, "concatenate", op.inputs, {"axis": axis})


def _pad(writer: Writer, op: GraphOp) -> None:
    pads = [int(n) for n in writer.constant(op.inputs[1])]
    rank = len(pads) // 2
    pairs = [[pads[axis], pads[axis + rank]] for axis in range(rank)]
    if any(pairs[0]) or op.attributes.get("mode", "constant") != "constant" or len(op.inputs) > 3:
        raise UnknownFormError("another way of padding")
    value = op.inputs[2:3]
    if value and value[0] and float(writer.constant(value[0])) != 0:
        raise UnknownFormError("pads with another number")
    writer.add(op, "pad", op.inputs[:1], {"padding": pairs[1:]})


def _batch_norm(writer: Writer, op: GraphOp) -> None:
    gamma, beta, mean, variance = (writer.constant(key) for key in op.inputs[1:5])
    scale = gamma / np.sqrt(variance + float(op.attributes.get("epsilon", 1e-5)))
    weights = {"scale": scale, "shift": beta - mean * scale}
    writer.add(op, "affine", op.inputs[:1], {"axis": 1}, weights)


def _same(writer: Writer, op: GraphOp) -> None:
    writer.same(op.inputs[0], op.outputs[0])


def _quantize(writer: Writer, op: GraphOp) -> None:
    """Write what saturation does: quantizers leave it the work of a relu or a clip before it."""
    steps = writer.graph.tensors[op.outputs[0]].quantization
    if op.inputs[0] in writer.constants or steps is None or steps.scales.size != 1:
        _same(writer, op)
        return
    limits, point = np.iinfo(steps.dtype), int(steps.zero_points[0])
    low, high = ((limit - point) * float(steps.scales[0]) for limit in (limits.min, limits.max))
    writer.add(op, "clip", op.inputs[:1], {"min_value": low, "max_value": high})


# FLOAT, FLOAT16, DOUBLE and BFLOAT16 of onnx.TensorProto.
_FLOATS = (1, 10, 11, 16)


def _cast(writer: Writer, op: GraphOp) -> None:
    """Write a conversion among floats, whose rounding is no part of what the file means."""
    if (
        op.attributes.get("to") not in _FLOATS
        or writer.graph.tensors[op.inputs[0]].dtype.kind != "f"
    ):
        raise UnknownFormError("a conversion of integers")
    _same(writer, op)


_WRITERS: dict[str, _Write] = {
    "Cast": _cast,
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Add": _operands("add"),
    "Sub": _operands("subtract"),
    "Mul": _operands("multiply"),
    "Div": _operands("divide"),
    "Max": _operands("maximum"),
    "Min": _operands("minimum"),
    "Relu": _unary("relu"),
    "Clip": _clip,
    "LeakyRelu": _leaky,
    "PRelu": _prelu,
    "Elu": _elu,
    "Sigmoid": _unary("sigmoid"),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary("hard_silu"),
    "Tanh": _unary("tanh"),
    "Softplus": _unary("softplus"),
    "Softsign": _unary("softsign"),
    "Erf": _unary("erf"),
    "Exp": _unary("exp"),
    "Log": _unary("log"),
    "Sqrt": _unary("sqrt"),
    "Reciprocal": _unary("reciprocal"),
    "Abs": _unary("absolute"),
    "Neg": _unary("negative"),
    "Softmax": _softmax,
    "GlobalAveragePool": _global_pool("global_average_pool"),
    "GlobalMaxPool": _global_pool("global_max_pool"),
    "AveragePool": _pool("average_pool"),
    "MaxPool": _pool("max_pool"),
    "ReduceMean": _reduce("reduce_mean"),
    "ReduceSum": _reduce("reduce_sum"),
    "ReduceMax": _reduce("reduce_max"),
    "ReduceMin": _reduce("reduce_min"),
    "Flatten": _reshape,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "Concat": _concatenate,
    "Pad": _pad,
    "BatchNormalization": _batch_norm,
    "Identity": _same,
    "Dropout": _same,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _same,
}
