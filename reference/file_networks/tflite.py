"""The ops of a .tflite file in the operators of the checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp
from ...artifacts.network import Network
from .writer import UnknownFormError, Writer

_Write = Callable[[Writer, GraphOp], None]

_PADDING = {0: "same", 1: "valid"}
_FUSED: dict[int, tuple[str, dict[str, Any]]] = {
    1: ("relu", {}),
    2: ("clip", {"min_value": -1.0, "max_value": 1.0}),
    3: ("relu", {"max_value": 6.0}),
    4: ("tanh", {}),
}


def network_of(graph: ArtifactGraph) -> Network:
    """Return a .tflite file's graph as a network."""
    writer = Writer(graph)
    for op in graph.ops:
        fused = int(op.attributes.get("fusedActivationFunction", 0))
        try:
            if op.kind not in _WRITERS or (fused and fused not in _FUSED):
                raise UnknownFormError(op.kind)
            _WRITERS[op.kind](writer, op)
            _activated(writer, op)
        except UnknownFormError:
            writer.opaque(op)
    return writer.network()


def _activated(writer: Writer, op: GraphOp) -> None:
    """Append the activation that is fused into an op."""
    fused = int(op.attributes.get("fusedActivationFunction", 0))
    if fused:
        activation, attributes = _FUSED[fused]
        writer.add(op, activation, [op.outputs[0]], attributes, suffix="/activation")


def _framing(op: GraphOp) -> dict[str, Any]:
    a = op.attributes
    return {
        "strides": [a["strideH"], a["strideW"]],
        "padding": _PADDING[a["padding"]],
        "dilation": [a.get("dilationHFactor", 1), a.get("dilationWFactor", 1)],
    }


def _bias(writer: Writer, op: GraphOp, place: int) -> dict[str, np.ndarray]:
    keys = op.inputs[place : place + 1]
    return {"bias": writer.constant(keys[0]).reshape(-1)} if keys and keys[0] else {}


def _conv(writer: Writer, op: GraphOp) -> None:
    kernel = np.transpose(writer.constant(op.inputs[1]), (1, 2, 3, 0))
    groups = writer.shape(op.inputs[0])[-1] // kernel.shape[2]
    weights = {"kernel": kernel, **_bias(writer, op, 2)}
    writer.add(op, "conv", op.inputs[:1], {**_framing(op), "groups": groups}, weights)


def _depthwise(writer: Writer, op: GraphOp) -> None:
    kernel = writer.constant(op.inputs[1])[0]
    channels = writer.shape(op.inputs[0])[-1]
    kernel = kernel.reshape(*kernel.shape[:2], channels, -1)
    weights = {"kernel": kernel, **_bias(writer, op, 2)}
    writer.add(op, "depthwise_conv", op.inputs[:1], _framing(op), weights)


def _transposed(writer: Writer, op: GraphOp) -> None:
    kernel = np.transpose(writer.constant(op.inputs[1]), (1, 2, 0, 3))
    attributes = {**_framing(op), "output_sizes": list(writer.shape(op.outputs[0])[:2])}
    weights = {"kernel": kernel, **_bias(writer, op, 3)}
    writer.add(op, "conv_transpose", op.inputs[2:3], attributes, weights)


def _dense(writer: Writer, op: GraphOp) -> None:
    kernel = writer.constant(op.inputs[1]).T
    shape = writer.shape(op.inputs[0])
    if len(shape) != 1 and not op.attributes.get("keepNumDims"):
        writer.add(op, "flatten", op.inputs[:1], suffix="/flat")
        inputs = op.outputs[:1]
    else:
        inputs = op.inputs[:1]
    writer.add(op, "dense", inputs, {}, {"kernel": kernel, **_bias(writer, op, 2)})


def _operands(kind: str) -> _Write:
    return lambda writer, op: writer.elementwise(op, kind, op.inputs)


def _unary(kind: str, attributes: dict[str, Any] | None = None) -> _Write:
    return lambda writer, op: writer.add(op, kind, op.inputs[:1], attributes)


def _pool(kind: str) -> _Write:
    def write(writer: Writer, op: GraphOp) -> None:
        a = op.attributes
        size = [a["filterHeight"], a["filterWidth"]]
        writer.add(op, kind, op.inputs[:1], {**_framing(op), "pool_size": size})

    return write


def _reduce(kind: str) -> _Write:
    def write(writer: Writer, op: GraphOp) -> None:
        rank = len(writer.graph.tensors[op.inputs[0]].shape)
        axes = sorted(int(a) % rank for a in writer.constant(op.inputs[1]).reshape(-1))
        if 0 in axes:
            raise UnknownFormError("reduces over samples")
        attributes = {"axes": axes, "keepdims": bool(op.attributes.get("keepDims"))}
        writer.add(op, kind, op.inputs[:1], attributes)

    return write


def _reshape(writer: Writer, op: GraphOp) -> None:
    if op.inputs[0] in writer.constants:
        shape = writer.graph.tensors[op.outputs[0]].shape
        writer.constants[op.outputs[0]] = writer.constants[op.inputs[0]].reshape(shape)
        return
    shape = writer.shape(op.outputs[0])
    writer.add(op, "reshape", op.inputs[:1], {"target_shape": list(shape)})


def _transpose(writer: Writer, op: GraphOp) -> None:
    axes = [int(axis) for axis in writer.constant(op.inputs[1])]
    if axes[0] != 0:
        raise UnknownFormError("moves the samples")
    writer.add(op, "permute", op.inputs[:1], {"axes": axes})


def _pad(writer: Writer, op: GraphOp) -> None:
    pairs = [[int(n) for n in pair] for pair in writer.constant(op.inputs[1])]
    if any(pairs[0]):
        raise UnknownFormError("pads the samples")
    writer.add(op, "pad", op.inputs[:1], {"padding": pairs[1:]})


def _concatenate(writer: Writer, op: GraphOp) -> None:
    if any(key in writer.constants for key in op.inputs):
        raise UnknownFormError("a part is constant")
    rank = len(writer.graph.tensors[op.outputs[0]].shape)
    axis = int(op.attributes["axis"]) % rank
    writer.add(op, "concatenate", op.inputs, {"axis": axis})


def _softmax(writer: Writer, op: GraphOp) -> None:
    if float(op.attributes.get("beta", 1.0)) != 1.0:
        raise UnknownFormError("beta")
    writer.add(op, "softmax", op.inputs[:1], {"axis": -1})


def _leaky(writer: Writer, op: GraphOp) -> None:
    slope = float(op.attributes["alpha"])
    writer.add(op, "leaky_relu", op.inputs[:1], {"negative_slope": slope})


def _prelu(writer: Writer, op: GraphOp) -> None:
    alpha = writer.constant(op.inputs[1])
    writer.add(op, "prelu", op.inputs[:1], {}, {"alpha": alpha})


def _same(writer: Writer, op: GraphOp) -> None:
    writer.same(op.inputs[0], op.outputs[0])


_WRITERS: dict[str, _Write] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transposed,
    "FULLY_CONNECTED": _dense,
    "ADD": _operands("add"),
    "SUB": _operands("subtract"),
    "MUL": _operands("multiply"),
    "DIV": _operands("divide"),
    "MAXIMUM": _operands("maximum"),
    "MINIMUM": _operands("minimum"),
    "RELU": _unary("relu"),
    "RELU6": _unary("relu", {"max_value": 6.0}),
    "RELU_N1_TO_1": _unary("clip", {"min_value": -1.0, "max_value": 1.0}),
    "RELU_0_TO_1": _unary("clip", {"min_value": 0.0, "max_value": 1.0}),
    "LEAKY_RELU": _leaky,
    "PRELU": _prelu,
    "LOGISTIC": _unary("sigmoid"),
    "TANH": _unary("tanh"),
    "HARD_SWISH": _unary("hard_silu"),
    "ELU": _unary("elu", {"alpha": 1.0}),
    "EXP": _unary("exp"),
    "LOG": _unary("log"),
    "SQRT": _unary("sqrt"),
    "RSQRT": _unary("rsqrt"),
    "SQUARE": _unary("square"),
    "ABS": _unary("absolute"),
    "NEG": _unary("negative"),
    "SOFTMAX": _softmax,
    "AVERAGE_POOL_2D": _pool("average_pool"),
    "MAX_POOL_2D": _pool("max_pool"),
    "MEAN": _reduce("reduce_mean"),
    "SUM": _reduce("reduce_sum"),
    "REDUCE_MAX": _reduce("reduce_max"),
    "REDUCE_MIN": _reduce("reduce_min"),
    "RESHAPE": _reshape,
    "SQUEEZE": _reshape,
    "EXPAND_DIMS": _reshape,
    "TRANSPOSE": _transpose,
    "PAD": _pad,
    "CONCATENATION": _concatenate,
    "QUANTIZE": _same,
    "DEQUANTIZE": _same,
}
