"""Converts the ops of a .tflite file to the operators of the checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...artifacts.graphs.base import GraphOp
from ..integer.tflite_moving import MOVING_OPS
from ..rounding.xnnpack import Float32
from . import forms
from .forms import Write
from .recurrent import tflite_lstm
from .tflite_constants import CONSTANTS
from .writer import Tensors, UnknownFormError, Writer

_PADDING = {0: "same", 1: "valid"}
_FUSED: dict[int, tuple[str, dict[str, Any]]] = {
    1: ("relu", {}),
    2: ("clip", {"min_value": -1.0, "max_value": 1.0}),
    3: ("relu", {"max_value": 6.0}),
    4: ("tanh", {}),
}


def write(writer: Writer, op: GraphOp) -> None:
    """Append the nodes of an op.

    Raises:
        UnknownFormError: It has no counterpart among the operators of the checks.
    """
    if op.kind not in _SAME and writer.computed(op):
        return
    moving = _MOVES.get(op.kind, -1)
    rest = [key for place, key in enumerate(op.inputs) if key and place != moving]
    if moving >= 0 and all(key in writer.constants for key in rest):
        writer.moved(op, op.inputs[moving])
    elif op.kind in _WRITERS:
        _WRITERS[op.kind](writer, op)
        if op.kind not in _RECURRENT:
            _activated(writer, op)
    else:
        raise UnknownFormError(op.kind)


def computed(op: GraphOp, tensors: Tensors) -> list[np.ndarray]:
    """Compute an op that only moves elements, or whose inputs are constants."""
    if op.kind in CONSTANTS:
        return [CONSTANTS[op.kind](op, tensors)[None]]
    if op.kind not in MOVING_OPS or op.kind == "RESIZE_BILINEAR":
        raise UnknownFormError(op.kind)
    found = MOVING_OPS[op.kind].prepare(op, tensors)(Float32())
    return found if isinstance(found, list) else [found]


def _activated(writer: Writer, op: GraphOp) -> None:
    """Append the activation that is fused into an op."""
    fused = int(op.attributes.get("fusedActivationFunction", 0))
    if not fused:
        return
    if fused not in _FUSED:
        raise UnknownFormError("another activation")
    activation, attributes = _FUSED[fused]
    before = writer.value(op.outputs[0])
    after = writer.part(op, activation, [before.name], attributes)
    writer.give(op.outputs[0], after, before.filed)


def _framing(op: GraphOp) -> dict[str, Any]:
    a = op.attributes
    depth = [a["strideD"]] if "strideD" in a else []
    dilated = [a["dilationDFactor"]] if "dilationDFactor" in a else []
    return {
        "strides": [*depth, a["strideH"], a["strideW"]],
        "padding": _PADDING[a["padding"]],
        "dilation": [*dilated, a.get("dilationHFactor", 1), a.get("dilationWFactor", 1)],
    }


def _conv(writer: Writer, op: GraphOp) -> None:
    kernel = np.transpose(writer.constant(op.inputs[1]), (1, 2, 3, 0))
    groups = writer.filed(op.inputs[0])[-1] // kernel.shape[2]
    _convolution(writer, op, "conv", kernel, {"groups": groups})


def _conv_3d(writer: Writer, op: GraphOp) -> None:
    kernel = writer.constant(op.inputs[1])
    groups = writer.filed(op.inputs[0])[-1] // kernel.shape[-2]
    _convolution(writer, op, "conv", kernel, {"groups": groups})


def _depthwise(writer: Writer, op: GraphOp) -> None:
    kernel = writer.constant(op.inputs[1])[0]
    channels = writer.filed(op.inputs[0])[-1]
    _convolution(writer, op, "depthwise_conv", kernel.reshape(*kernel.shape[:2], channels, -1), {})


def _convolution(
    writer: Writer, op: GraphOp, kind: str, kernel: np.ndarray, more: Mapping[str, Any]
) -> None:
    name, merged, lead = writer.images(op.inputs[0])
    weights = {"kernel": kernel, **forms.bias(writer, op, 2)}
    writer.add(op, kind, [name], {**_framing(op), **merged, **more}, weights, lead=lead)


def _transposed(writer: Writer, op: GraphOp) -> None:
    kernel = np.transpose(writer.constant(op.inputs[1]), (1, 2, 0, 3))
    name, merged, lead = writer.images(op.inputs[2])
    sizes = writer.ints(op.inputs[0])[1:3]
    weights = {"kernel": kernel, **forms.bias(writer, op, 3)}
    attributes = {**_framing(op), **merged, "output_sizes": sizes}
    writer.add(op, "conv_transpose", [name], attributes, weights, lead=lead)


def _dense(writer: Writer, op: GraphOp) -> None:
    key, filed = op.inputs[0], writer.filed(op.inputs[0])
    if op.inputs[1] not in writer.constants:
        if len(filed) != 2 or writer.optional(op, 2):
            raise UnknownFormError("a computed kernel")
        forms.product(writer, op, second_turned=True)
        return
    kernel = writer.constant(op.inputs[1]).T
    if not op.attributes.get("keepNumDims"):
        filed = (int(np.prod(filed)) // kernel.shape[0], kernel.shape[0])
    lead = 1 if len(filed) > 1 and filed[0] == 1 else 0
    name = writer.read(key, filed[lead:])
    weights = {"kernel": kernel, **forms.bias(writer, op, 2)}
    writer.add(op, "dense", [name], {}, weights, lead=lead)


def _operands(kind: str) -> Write:
    return lambda writer, op: writer.broadcast(op, kind, op.inputs)


def _power(writer: Writer, op: GraphOp) -> None:
    exponent = writer.constants.get(op.inputs[1])
    if exponent is not None and exponent.size == 1 and float(exponent.reshape(-1)[0]) == 2:
        forms.unary(writer, op, "square")
    else:
        writer.broadcast(op, "power", op.inputs)


def _squared_difference(writer: Writer, op: GraphOp) -> None:
    writer.broadcast(op, "subtract", op.inputs)
    before = writer.value(op.outputs[0])
    writer.give(op.outputs[0], writer.part(op, "square", [before.name]), before.filed)


def _pool(kind: str) -> Write:
    def write(writer: Writer, op: GraphOp) -> None:
        a = op.attributes
        name, merged, lead = writer.images(op.inputs[0])
        size = [a["filterHeight"], a["filterWidth"]]
        attributes = {**_framing(op), **merged, "pool_size": size}
        writer.add(op, kind, [name], attributes, lead=lead)

    return write


def _reduce(kind: str) -> Write:
    def write(writer: Writer, op: GraphOp) -> None:
        keepdims = bool(op.attributes.get("keepDims"))
        forms.reduced(writer, op, kind, writer.ints(op.inputs[1]), keepdims)

    return write


def _arg(kind: str) -> Write:
    return lambda writer, op: forms.extreme_place(
        writer, op, kind, writer.ints(op.inputs[1])[0], keepdims=False
    )


def _reshape(writer: Writer, op: GraphOp) -> None:
    """Append a reshape; a fixed batch axis of the file corresponds to the samples."""
    try:
        writer.moved(op, op.inputs[0])
    except UnknownFormError:
        shape = writer.graph.tensors[op.outputs[0]].shape
        writer.same(op.inputs[0], op.outputs[0], (1, *shape[1:]))


def _transpose(writer: Writer, op: GraphOp) -> None:
    forms.permuted(writer, op, writer.ints(op.inputs[1]))


def _pad(writer: Writer, op: GraphOp) -> None:
    pairs = [[int(n) for n in pair] for pair in writer.constant(op.inputs[1])]
    key = writer.optional(op, 2)
    forms.padded(writer, op, pairs, float(writer.constant(key).reshape(-1)[0]) if key else 0.0)


def _pack(writer: Writer, op: GraphOp) -> None:
    shapes = [writer.filed(key) for key in op.inputs]
    axis = int(op.attributes.get("axis", 0)) % (len(shapes[0]) + 1)
    forms.joined(writer, op, [(*s[:axis], 1, *s[axis:]) for s in shapes], axis)


def _gather(writer: Writer, op: GraphOp) -> None:
    """Append rows of a constant table; constant indices are handled by `write`."""
    if op.attributes.get("axis") or op.attributes.get("batchDims"):
        raise UnknownFormError("computed places in computed numbers")
    forms.looked_up(writer, op, op.inputs[0], op.inputs[1])


def _bilinear(writer: Writer, op: GraphOp) -> None:
    filed, sizes = writer.filed(op.inputs[0]), writer.ints(op.inputs[1])
    corners, centres = (op.attributes.get(n) for n in ("alignCorners", "halfPixelCenters"))
    matrices = {}
    for axis, size in zip((1, 2), sizes):
        n, index = filed[axis], np.arange(size)
        if n == size:
            continue
        scale = (n - 1) / (size - 1) if corners and size > 1 else n / size
        places = (index + 0.5) * scale - 0.5 if centres else index * scale
        matrices[axis] = forms.interpolation(n, places)
    forms.resized(writer, op, matrices)


def _softmax(writer: Writer, op: GraphOp) -> None:
    name, _, lead = writer.framed(op.inputs[0])
    beta = float(op.attributes.get("beta", 1.0))
    if beta != 1.0:
        kept = {"constant": np.array(beta)}
        name = writer.part(op, "multiply", [name], {}, kept, lead=lead).name
    writer.add(op, "softmax", [name], {"axis": -1}, lead=lead)


def _l2(writer: Writer, op: GraphOp) -> None:
    """Append an L2 normalization; norms are at least 1e-6 (`reference/l2normalization.h`)."""
    name, shape, lead = writer.framed(op.inputs[0], len(writer.filed(op.inputs[0])) - 1)
    squares = writer.part(op, "square", [name])
    places = {"axes": [len(shape)], "keepdims": True}
    norm = writer.part(op, "sqrt", [writer.part(op, "reduce_sum", [squares.name], places).name])
    most = writer.part(op, "maximum", [norm.name], {}, {"constant": np.array(1e-6)})
    writer.add(op, "divide", [name, most.name], lead=lead)


def _leaky(writer: Writer, op: GraphOp) -> None:
    forms.unary(writer, op, "leaky_relu", {"negative_slope": float(op.attributes["alpha"])})


def _gelu(writer: Writer, op: GraphOp) -> None:
    forms.unary(writer, op, "gelu", {"approximate": bool(op.attributes.get("approximate"))})


def _prelu(writer: Writer, op: GraphOp) -> None:
    name, _, lead = writer.framed(op.inputs[0])
    writer.add(op, "prelu", [name], {}, {"alpha": writer.constant(op.inputs[1])}, lead=lead)


def _cumulative(writer: Writer, op: GraphOp) -> None:
    axis = writer.ints(op.inputs[1])[0] % len(writer.filed(op.inputs[0]))
    name, _, lead = writer.framed(op.inputs[0], axis)
    flags = {name: bool(op.attributes.get(name)) for name in ("exclusive", "reverse")}
    writer.add(op, "cumsum", [name], {"axis": axis + 1 - lead, **flags}, lead=lead)


def _one_hot(writer: Writer, op: GraphOp) -> None:
    depth, on, off = (float(writer.constant(key).reshape(-1)[0]) for key in op.inputs[1:4])
    if op.attributes.get("axis", -1) not in (-1, len(writer.filed(op.inputs[0]))):
        raise UnknownFormError("another axis")
    name, _, lead = writer.framed(op.inputs[0])
    writer.add(op, "one_hot", [name], {"depth": int(depth), "on": on, "off": off}, lead=lead)


def _cast(writer: Writer, op: GraphOp) -> None:
    """Append a conversion; the rounding of floats is not modelled."""
    before, after = (writer.graph.tensors[side[0]].dtype.kind for side in (op.inputs, op.outputs))
    if after == "f" or before in "iub":
        writer.same(op.inputs[0], op.outputs[0])
    else:
        forms.unary(writer, op, "truncate")


def _shape(writer: Writer, op: GraphOp) -> None:
    writer.known(op, [np.array(writer.filed(op.inputs[0]), np.int32)])


# Ops whose constants are used unchanged, since they determine the quantization.
_SAME = {"QUANTIZE", "DEQUANTIZE", "DENSIFY"}

# Ops that take each number from one place of an input, and which one of theirs that is.
_MOVES = {
    "SQUEEZE": 0,
    "EXPAND_DIMS": 0,
    "MIRROR_PAD": 0,
    "SLICE": 0,
    "STRIDED_SLICE": 0,
    "TILE": 0,
    "BROADCAST_TO": 0,
    "GATHER": 0,
    "RESIZE_NEAREST_NEIGHBOR": 0,
    "DEPTH_TO_SPACE": 0,
    "SPACE_TO_DEPTH": 0,
    "SPACE_TO_BATCH_ND": 0,
    "BATCH_TO_SPACE_ND": 0,
    "REVERSE_V2": 0,
    "SPLIT": 1,
    "SPLIT_V": 0,
    "UNPACK": 0,
}

# Ops whose activation is one of their own.
_RECURRENT = {"UNIDIRECTIONAL_SEQUENCE_LSTM"}

_WRITERS: dict[str, Write] = {
    "CONV_2D": _conv,
    "CONV_3D": _conv_3d,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transposed,
    "FULLY_CONNECTED": _dense,
    "BATCH_MATMUL": lambda writer, op: forms.product(
        writer, op, bool(op.attributes.get("adjX")), bool(op.attributes.get("adjY"))
    ),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": tflite_lstm,
    "ADD": _operands("add"),
    "SUB": _operands("subtract"),
    "MUL": _operands("multiply"),
    "DIV": _operands("divide"),
    "FLOOR_DIV": _operands("floor_divide"),
    "MAXIMUM": _operands("maximum"),
    "MINIMUM": _operands("minimum"),
    "POW": _power,
    "SQUARED_DIFFERENCE": _squared_difference,
    "EQUAL": _operands("equal"),
    "NOT_EQUAL": _operands("not_equal"),
    "GREATER": _operands("greater"),
    "GREATER_EQUAL": _operands("greater_equal"),
    "LESS": _operands("less"),
    "LESS_EQUAL": _operands("less_equal"),
    "LOGICAL_AND": _operands("multiply"),
    "LOGICAL_OR": _operands("maximum"),
    "LOGICAL_NOT": forms.function("logical_not"),
    "SELECT": _operands("select"),
    "SELECT_V2": _operands("select"),
    "RELU": forms.function("relu"),
    "RELU6": forms.function("relu", {"max_value": 6.0}),
    "RELU_N1_TO_1": forms.function("clip", {"min_value": -1.0, "max_value": 1.0}),
    "RELU_0_TO_1": forms.function("clip", {"min_value": 0.0, "max_value": 1.0}),
    "LEAKY_RELU": _leaky,
    "PRELU": _prelu,
    "LOGISTIC": forms.function("sigmoid"),
    "TANH": forms.function("tanh"),
    "HARD_SWISH": forms.function("hard_silu"),
    "GELU": _gelu,
    "ELU": forms.function("elu", {"alpha": 1.0}),
    "EXP": forms.function("exp"),
    "LOG": forms.function("log"),
    "SQRT": forms.function("sqrt"),
    "RSQRT": forms.function("rsqrt"),
    "SQUARE": forms.function("square"),
    "ABS": forms.function("absolute"),
    "NEG": forms.function("negative"),
    "SIGN": forms.function("sign"),
    "FLOOR": forms.function("floor"),
    "CEIL": forms.function("ceil"),
    "ROUND": forms.function("round"),
    "SIN": forms.function("sin"),
    "COS": forms.function("cos"),
    "SOFTMAX": _softmax,
    "LOG_SOFTMAX": lambda writer, op: forms.along(writer, op, "log_softmax", -1),
    "L2_NORMALIZATION": _l2,
    "CUMSUM": _cumulative,
    "ONE_HOT": _one_hot,
    "AVERAGE_POOL_2D": _pool("average_pool"),
    "MAX_POOL_2D": _pool("max_pool"),
    "MEAN": _reduce("reduce_mean"),
    "SUM": _reduce("reduce_sum"),
    "REDUCE_MAX": _reduce("reduce_max"),
    "REDUCE_MIN": _reduce("reduce_min"),
    "REDUCE_PROD": _reduce("reduce_prod"),
    "ARG_MAX": _arg("argmax"),
    "ARG_MIN": _arg("argmin"),
    "RESHAPE": _reshape,
    "TRANSPOSE": _transpose,
    "PAD": _pad,
    "PADV2": _pad,
    "CONCATENATION": forms.concatenated,
    "PACK": _pack,
    "GATHER": _gather,
    "EMBEDDING_LOOKUP": lambda writer, op: forms.looked_up(writer, op, op.inputs[1], op.inputs[0]),
    "RESIZE_BILINEAR": _bilinear,
    "SHAPE": _shape,
    "CAST": _cast,
    "DENSIFY": forms.same,
    "QUANTIZE": forms.same,
    "DEQUANTIZE": forms.same,
}
