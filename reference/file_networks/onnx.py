"""Converts the ops of an .onnx file to the operators of the checks."""

from __future__ import annotations

import math

import numpy as np

from ...artifacts.graphs.base import GraphOp
from ..integer.onnx_floats import FLOATS
from ..integer.onnx_moving import MOVING
from . import forms
from .forms import Write
from .onnx_constants import CONSTANTS
from .onnx_dynamic import DYNAMIC, multiply
from .onnx_linear import LINEAR, ints, parameter
from .recurrent import onnx_recurrent
from .writer import Tensors, UnknownFormError, Writer

_COMPUTED = {**FLOATS, **MOVING, **CONSTANTS}


def write(writer: Writer, op: GraphOp) -> None:
    """Append the nodes of an op.

    Raises:
        UnknownFormError: It has no counterpart among the operators of the checks.
    """
    if op.domain not in ("", "ai.onnx"):
        raise UnknownFormError(op.domain)
    if op.kind not in _SAME and writer.computed(op):
        return
    if op.kind in _MOVES and all(key in writer.constants for key in op.inputs[1:] if key):
        writer.moved(op, op.inputs[0])
    elif op.kind in _WRITERS:
        _WRITERS[op.kind](writer, op)
    else:
        raise UnknownFormError(op.kind)


def computed(op: GraphOp, tensors: Tensors) -> list[np.ndarray]:
    """Compute an op that only moves elements, or whose inputs are constants."""
    if op.kind not in _COMPUTED:
        raise UnknownFormError(op.kind)
    found = _COMPUTED[op.kind](op, tensors)
    return found if isinstance(found, list) else [found]


def _operands(kind: str) -> Write:
    """Append an operator with two operands; more operands are combined in pairs."""

    def write(writer: Writer, op: GraphOp) -> None:
        if len(op.inputs) == 1:
            writer.same(op.inputs[0], op.outputs[0])
        elif len(op.inputs) == 2:
            writer.broadcast(op, kind, op.inputs)
        else:
            raise UnknownFormError("more than two operands")

    return write


def _power(writer: Writer, op: GraphOp) -> None:
    exponent = writer.constants.get(op.inputs[1])
    special = {2.0: "square", 0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}
    if exponent is not None and exponent.size == 1 and float(exponent.reshape(-1)[0]) in special:
        forms.unary(writer, op, special[float(exponent.reshape(-1)[0])])
    else:
        writer.broadcast(op, "power", op.inputs)


def _logic(kind: str) -> Write:
    return lambda writer, op: writer.broadcast(op, kind, op.inputs)


def _clip(writer: Writer, op: GraphOp) -> None:
    limits = [-math.inf, math.inf]
    for place, name in enumerate(("min", "max")):
        key = writer.optional(op, place + 1)
        if name in op.attributes:
            limits[place] = float(op.attributes[name])
        elif key:
            limits[place] = float(writer.constant(key).reshape(-1)[0])
    forms.unary(writer, op, "clip", {"min_value": limits[0], "max_value": limits[1]})


def _leaky(writer: Writer, op: GraphOp) -> None:
    slope = float(op.attributes.get("alpha", 0.01))
    forms.unary(writer, op, "leaky_relu", {"negative_slope": slope})


def _prelu(writer: Writer, op: GraphOp) -> None:
    alpha, (name, shape, lead) = writer.constant(op.inputs[1]), writer.framed(op.inputs[0])
    if alpha.ndim > len(shape):
        alpha = alpha.reshape(alpha.shape[alpha.ndim - len(shape) :])
    writer.add(op, "prelu", [name], {}, {"alpha": alpha}, lead=lead)


def _elu(writer: Writer, op: GraphOp) -> None:
    forms.unary(writer, op, "elu", {"alpha": float(op.attributes.get("alpha", 1.0))})


def _selu(writer: Writer, op: GraphOp) -> None:
    if set(op.attributes) & {"alpha", "gamma"}:
        raise UnknownFormError("other constants")
    forms.unary(writer, op, "selu")


def _gelu(writer: Writer, op: GraphOp) -> None:
    approximate = op.attributes.get("approximate", "none") == "tanh"
    forms.unary(writer, op, "gelu", {"approximate": approximate})


def _hard_sigmoid(writer: Writer, op: GraphOp) -> None:
    slope, offset = (float(op.attributes.get(k, d)) for k, d in (("alpha", 0.2), ("beta", 0.5)))
    if abs(slope - 1 / 6) < 1e-7 and offset == 0.5:
        forms.unary(writer, op, "hard_sigmoid")
        return
    name, _, lead = writer.framed(op.inputs[0])
    scaled = writer.part(op, "multiply", [name], {}, {"constant": np.array(slope)}, lead=lead)
    moved = writer.part(op, "add", [scaled.name], {}, {"constant": np.array(offset)}, lead=lead)
    writer.add(op, "clip", [moved.name], {"min_value": 0.0, "max_value": 1.0}, lead=lead)


def _along(kind: str) -> Write:
    return lambda writer, op: forms.along(writer, op, kind, int(op.attributes.get("axis", -1)))


def _arg(kind: str) -> Write:
    def write(writer: Writer, op: GraphOp) -> None:
        a = op.attributes
        if a.get("select_last_index"):
            raise UnknownFormError("the last of equal ones")
        axis, keepdims = int(a.get("axis", 0)), bool(a.get("keepdims", 1))
        forms.extreme_place(writer, op, kind, axis, keepdims)

    return write


def _reduce(kind: str) -> Write:
    def write(writer: Writer, op: GraphOp) -> None:
        axes = parameter(writer, op, 1, "axes")
        if not axes and op.attributes.get("noop_with_empty_axes"):
            writer.same(op.inputs[0], op.outputs[0])
            return
        forms.reduced(writer, op, kind, axes or None, bool(op.attributes.get("keepdims", 1)))

    return write


def _reshape(writer: Writer, op: GraphOp) -> None:
    """Append a reshape; a fixed batch axis of the file corresponds to the samples."""
    try:
        writer.moved(op, op.inputs[0])
    except UnknownFormError:
        shape = writer.graph.tensors[op.outputs[0]].shape
        if not shape or any(size < 0 for size in shape[1:]):
            raise
        writer.same(op.inputs[0], op.outputs[0], (1, *shape[1:]))


def _shape_of(writer: Writer, op: GraphOp) -> None:
    sizes = writer.filed(op.inputs[0])
    cut = slice(op.attributes.get("start", 0), op.attributes.get("end"))
    writer.known(op, [np.array(sizes[cut], np.int64)])


def _transpose(writer: Writer, op: GraphOp) -> None:
    rank = len(writer.filed(op.inputs[0]))
    forms.permuted(writer, op, ints(op, "perm", list(range(rank))[::-1]))


def _pad(writer: Writer, op: GraphOp) -> None:
    amounts = parameter(writer, op, 1, "pads") or []
    rank, half = len(writer.filed(op.inputs[0])), len(amounts) // 2
    key = writer.optional(op, 3)
    axes = [axis % rank for axis in writer.ints(key)] if key else list(range(half))
    pairs = [[0, 0] for _ in range(rank)]
    for place, axis in enumerate(axes):
        pairs[axis] = [amounts[place], amounts[place + half]]
    if op.attributes.get("mode", "constant") != "constant":
        writer.moved(op, op.inputs[0])
        return
    fill = writer.optional(op, 2)
    value = float(writer.constant(fill).reshape(-1)[0]) if fill else op.attributes.get("value", 0)
    forms.padded(writer, op, pairs, float(value))


def _gather(writer: Writer, op: GraphOp) -> None:
    """Append rows of a constant table; constant indices are handled by `write`."""
    if op.inputs[0] not in writer.constants or op.attributes.get("axis", 0):
        raise UnknownFormError("computed places in computed numbers")
    forms.looked_up(writer, op, op.inputs[0], op.inputs[1])


def _norm(kind: str, power: float) -> Write:
    """Append the sum of magnitudes, or the root of the sum of squares."""

    def write(writer: Writer, op: GraphOp) -> None:
        filed = writer.filed(op.inputs[0])
        axes = parameter(writer, op, 1, "axes") or list(range(len(filed)))
        keepdims = bool(op.attributes.get("keepdims", 1))
        chosen = [axis % len(filed) for axis in axes]
        name, _, lead = writer.framed(op.inputs[0], *chosen)
        each = writer.part(op, kind, [name], lead=lead)
        places = {"axes": [axis + 1 - lead for axis in chosen], "keepdims": True}
        found = writer.part(op, "reduce_sum", [each.name], places, lead=lead)
        if power != 1:
            found = writer.part(op, "sqrt", [found.name], lead=lead)
        writer.give(op.outputs[0], found, forms.reduced_shape(filed, chosen, keepdims))

    return write


def _quantize(writer: Writer, op: GraphOp) -> None:
    """Append the saturation, since quantizers remove a relu or clip before it."""
    steps = writer.graph.tensors[op.outputs[0]].quantization
    if op.inputs[0] in writer.constants or steps is None or steps.scales.size != 1:
        forms.same(writer, op)
        return
    limits, point = np.iinfo(steps.dtype), int(steps.zero_points[0])
    low, high = ((limit - point) * float(steps.scales[0]) for limit in (limits.min, limits.max))
    forms.unary(writer, op, "clip", {"min_value": low, "max_value": high})


# FLOAT, FLOAT16, DOUBLE and BFLOAT16 of onnx.TensorProto; the integers and BOOL.
_FLOATS, _INTEGERS, _BOOL = (1, 10, 11, 16), (2, 3, 4, 5, 6, 7, 12, 13), 9


def _cast(writer: Writer, op: GraphOp) -> None:
    """Append a conversion; the rounding of floats is not modelled."""
    to = int(op.attributes.get("to", 1))
    if op.inputs[0] in writer.constants:
        if not writer.computed(op):
            raise UnknownFormError(op.kind)
    elif to in _FLOATS or (
        to in _INTEGERS and writer.graph.tensors[op.inputs[0]].dtype.kind in "iub"
    ):
        forms.same(writer, op)
    elif to in _INTEGERS:
        forms.unary(writer, op, "truncate")
    elif to == _BOOL:
        forms.unary(writer, op, "nonzero")
    else:
        raise UnknownFormError("a conversion")


def _expand(writer: Writer, op: GraphOp) -> None:
    filed, wanted = writer.filed(op.inputs[0]), writer.ints(op.inputs[1])
    if np.broadcast_shapes(filed, tuple(wanted)) == filed:
        forms.same(writer, op)
    else:
        writer.moved(op, op.inputs[0])


# Ops whose constants are used unchanged, since they determine the quantization.
_SAME = {"QuantizeLinear", "DequantizeLinear", "Cast", "Identity", "Dropout"}

# Ops that copy each element from one position of their first input.
_MOVES = {
    "Slice",
    "Split",
    "Gather",
    "Tile",
    "DepthToSpace",
    "SpaceToDepth",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
}


_WRITERS: dict[str, Write] = {
    **LINEAR,
    **DYNAMIC,
    "Cast": _cast,
    "Add": _operands("add"),
    "Sub": _operands("subtract"),
    "Mul": multiply,
    "Div": _operands("divide"),
    "Max": _operands("maximum"),
    "Min": _operands("minimum"),
    "Mean": _operands("average"),
    "Pow": _power,
    "Equal": _logic("equal"),
    "Greater": _logic("greater"),
    "GreaterOrEqual": _logic("greater_equal"),
    "Less": _logic("less"),
    "LessOrEqual": _logic("less_equal"),
    "And": _logic("multiply"),
    "Or": _logic("maximum"),
    "Where": _logic("select"),
    "Not": forms.function("logical_not"),
    "Relu": forms.function("relu"),
    "Clip": _clip,
    "LeakyRelu": _leaky,
    "PRelu": _prelu,
    "Elu": _elu,
    "Selu": _selu,
    "Gelu": _gelu,
    "Mish": forms.function("mish"),
    "Sigmoid": forms.function("sigmoid"),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": forms.function("hard_silu"),
    "Tanh": forms.function("tanh"),
    "Softplus": forms.function("softplus"),
    "Softsign": forms.function("softsign"),
    "Erf": forms.function("erf"),
    "Exp": forms.function("exp"),
    "Log": forms.function("log"),
    "Sqrt": forms.function("sqrt"),
    "Reciprocal": forms.function("reciprocal"),
    "Abs": forms.function("absolute"),
    "Neg": forms.function("negative"),
    "Sign": forms.function("sign"),
    "Floor": forms.function("floor"),
    "Ceil": forms.function("ceil"),
    "Round": forms.function("round"),
    "Sin": forms.function("sin"),
    "Cos": forms.function("cos"),
    "Atan": forms.function("atan"),
    "IsNaN": forms.function("is_nan"),
    "Softmax": _along("softmax"),
    "LogSoftmax": _along("log_softmax"),
    "ArgMax": _arg("argmax"),
    "ArgMin": _arg("argmin"),
    "ReduceMean": _reduce("reduce_mean"),
    "ReduceSum": _reduce("reduce_sum"),
    "ReduceMax": _reduce("reduce_max"),
    "ReduceMin": _reduce("reduce_min"),
    "ReduceProd": _reduce("reduce_prod"),
    "ReduceL1": _norm("absolute", 1),
    "ReduceL2": _norm("square", 0.5),
    "Reshape": _reshape,
    "Expand": _expand,
    "Gather": _gather,
    "Shape": _shape_of,
    "LSTM": onnx_recurrent,
    "GRU": onnx_recurrent,
    "Transpose": _transpose,
    "Concat": forms.concatenated,
    "Pad": _pad,
    "Identity": forms.same,
    "Dropout": forms.same,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": forms.same,
}
