"""Operators of .tflite files that choose numbers, or compute on numbers without steps.

Such numbers are float32, integers such as indices, and bool. Float operators that are rounded once
have the same results on all runtimes. Functions that runtimes compute by polynomials are rounded
once here. Runtimes may err by a few units in the last place, which rounding to integers hides
unless the result is next to a tie. Of the steps of 16 bits, about one in a hundred is that near.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp
from ..operators import OPERATORS
from ..rounding.arithmetic import Arithmetic, Finish
from ..rounding.quantized import Ints, NotKnownError
from .base import IntegerOperator, Values, moved, quotient, together
from .tflite_arithmetic import gelu, output_of, reduction, scaled_softmax

_Evaluate = Callable[[GraphOp, Values], np.ndarray]


def _select(op: GraphOp, values: Values) -> Finish:
    """Read a SELECT: integers as they are, whatever their steps."""
    condition, *sides = (values.array(key) for key in op.inputs)
    if op.kind == "SELECT" and condition.ndim == 2:  # a vector selects rows
        rank = max(side.ndim for side in sides)
        condition = condition.reshape(*condition.shape, *[1] * (rank - 2))
    found = np.where(*together([condition, *sides]))
    return lambda rule: found


def _place(extreme: Callable[..., np.ndarray]) -> IntegerOperator:
    """Return the reader of an ARG_MAX or ARG_MIN: the first of equal numbers."""

    def prepare(op: GraphOp, values: Values) -> Finish:
        x, axis = values.array(op.inputs[0]), int(values.constant(op.inputs[1]).reshape(-1)[0])
        found = extreme(x, axis=axis + 1 if axis >= 0 else axis)
        found = found.astype(values.graph.tensors[op.outputs[0]].dtype)
        return lambda rule: found

    return IntegerOperator(prepare, ruled=False)


def _greatest(op: GraphOp, values: Values) -> Finish:
    """Read a TOPK_V2: the greatest numbers, the first of equal ones first, and their places."""
    x, count = values.array(op.inputs[0]), int(values.constant(op.inputs[1]).reshape(-1)[0])
    signed = x.astype(np.int64) if x.dtype.kind in "iu" else x
    places = np.argsort(-signed, axis=-1, kind="stable")[..., :count]
    found = [np.take_along_axis(x, places, -1), places.astype(np.int32)]
    return lambda rule: found


def _cast(op: GraphOp, values: Values) -> Finish:
    """Read a CAST; one of floats to integers cuts the fraction off."""
    x, dtype = values.array(op.inputs[0]), values.graph.tensors[op.outputs[0]].dtype
    found = x.astype(dtype)
    return lambda rule: found


def _one_hot(op: GraphOp, values: Values) -> Finish:
    """Read a ONE_HOT of numbers or integers."""
    index = values.integers(op.inputs[0])
    depth, on, off = (values.constant(key).reshape(-1)[0] for key in op.inputs[1:4])
    axis = int(op.attributes.get("axis", -1))
    hit = np.expand_dims(index, axis + 1 if axis >= 0 else -1)
    counted = np.arange(int(depth)).reshape(-1, *[1] * (0 if axis < 0 else index.ndim - axis - 1))
    found = np.where(hit == counted, on, off)
    return lambda rule: found


def _quantize(op: GraphOp, values: Values) -> Finish:
    """Read a QUANTIZE, from floats or from integers of other steps."""
    output = output_of(op, values)
    if values.array(op.inputs[0]).dtype.kind == "f":
        floats, exact = values.floats(op.inputs[0]), _exact_floats(values.graph, op.inputs[0])

        def finish(rule: Arithmetic) -> Ints:
            near = floats if exact else rule.moved(floats).astype(np.float32)
            return output.saturated(rule.quantized(near, output.scale))

        return finish
    x = values.quantized(op.inputs[0])
    return lambda rule: output.saturated(rule.requantized(x.centred, x.scale, output.scale))


def _exact_floats(graph: ArtifactGraph, key: str) -> bool:
    """Return whether floats have the same bits on all runtimes that give them the same inputs."""
    waiting, seen = [key], {key}
    while waiting:
        op = graph.producer(waiting.pop())
        if op is None or op.kind == "DEQUANTIZE":
            continue
        if op.kind in _INEXACT:
            return False
        before = set(op.inputs) - seen
        seen |= before
        waiting += before
    return True


def _scattered(op: GraphOp, values: Values) -> Finish:
    """Read a SCATTER_ND: numbers, integers as they are, are added to zeros.

    Source: TFLite, `reference/reference_ops.h`, `ScatterNd`; sums of integers overflow.
    """
    places, x = values.integers(op.inputs[0]), values.array(op.inputs[1])
    sizes = [int(size) for size in values.constant(op.inputs[2]).reshape(-1)]
    found = np.zeros((len(x), *sizes), x.dtype)
    for sample, part in enumerate(x):
        index = places[sample % len(places)]
        np.add.at(found[sample], tuple(np.moveaxis(index, -1, 0)), part)
    return lambda rule: found


CHOOSING_OPS = {
    "SCATTER_ND": IntegerOperator(_scattered, ruled=False),
    "QUANTIZE": IntegerOperator(_quantize),
    "SELECT": IntegerOperator(_select, ruled=False),
    "SELECT_V2": IntegerOperator(_select, ruled=False),
    "ARG_MAX": _place(np.argmax),
    "ARG_MIN": _place(np.argmin),
    "TOPK_V2": IntegerOperator(_greatest, ruled=False),
    "CAST": IntegerOperator(_cast, ruled=False),
    "ONE_HOT": IntegerOperator(_one_hot, ruled=False),
}


def _exact(function: Callable[..., Any]) -> _Evaluate:
    """Return an elementwise op, rounded once in the type of its numbers."""

    def evaluate(op: GraphOp, values: Values) -> np.ndarray:
        if op.attributes.get("fusedActivationFunction"):
            raise NotKnownError("a fused activation in float32")
        return np.asarray(function(*together([values.array(key) for key in op.inputs])))

    return evaluate


def _reduced(function: np.ufunc) -> _Evaluate:
    """Return a reduction that is exact in the type of its numbers."""

    def evaluate(op: GraphOp, values: Values) -> np.ndarray:
        x, places = values.array(op.inputs[0]), reduction(op, values)
        how = {"axis": places["axes"], "keepdims": places["keepdims"]}
        return np.asarray(function.reduce(x, dtype=x.dtype, **how))

    return evaluate


def _rounded(operator: str, read: Callable[..., Mapping[str, Any]] | None = None) -> _Evaluate:
    """Return an op of float32 numbers, computed in float64 and rounded once.

    Args:
        operator: Key of `OPERATORS`.
        read: Returns the operator's attributes; None if there are none to read.
    """

    def evaluate(op: GraphOp, values: Values) -> np.ndarray:
        keys = op.inputs if operator in ("power", "atan2") else op.inputs[:1]
        floats = together([values.floats(key).astype(np.float64) for key in keys])
        attributes = {} if read is None else read(op, values)
        return OPERATORS[operator].evaluate(floats, {}, attributes).astype(np.float32)

    return evaluate


def _total(op: GraphOp, values: Values) -> np.ndarray:
    """Read a SUM: exact of integers."""
    floats = values.array(op.inputs[0]).dtype.kind == "f"
    return (_rounded("reduce_sum", reduction) if floats else _reduced(np.add))(op, values)


def _partial_sums(op: GraphOp, values: Values) -> np.ndarray:
    """Read a CUMSUM: of float32 in order, or of integers."""
    axis = int(values.constant(op.inputs[1]).reshape(-1)[0])
    flags = {name: bool(op.attributes.get(name)) for name in ("exclusive", "reverse")}
    x = values.array(op.inputs[0])
    return moved("cumsum", x, axis=axis + 1 if axis >= 0 else axis, **flags)


def _by_segment(combine: np.ufunc, start: Callable[[np.dtype[Any]], float]) -> _Evaluate:
    """Return a reduction of rows by segment, in order; a row of a negative segment is left out."""

    def evaluate(op: GraphOp, values: Values) -> np.ndarray:
        x, segments = values.array(op.inputs[0]), values.integers(op.inputs[1])
        count, rank = int(values.constant(op.inputs[2]).reshape(-1)[0]), segments.ndim - 1
        found = np.full((len(x), count, *x.shape[1 + rank :]), start(x.dtype), x.dtype)
        for sample, part in enumerate(x):
            index = segments[sample % len(segments)].reshape(-1)
            rows = part.reshape(len(index), *x.shape[1 + rank :])
            combine.at(found[sample], index[index >= 0], rows[index >= 0])
        return found

    return evaluate


def _convolved(op: GraphOp, values: Values) -> np.ndarray:
    """Read a CONV_3D, which has no kernel of integers."""
    x, kernel = (values.floats(key).astype(np.float64) for key in op.inputs[:2])
    weights, options = {"kernel": kernel[0]}, op.attributes
    if len(op.inputs) > 2 and op.inputs[2]:
        weights["bias"] = values.floats(op.inputs[2])[0].astype(np.float64)
    activation = options.get("fusedActivationFunction", 0)
    if activation not in (0, 1):
        raise NotKnownError(f"fused activation {activation}")
    framing = {
        "strides": [options.get(f"stride{axis}", 1) for axis in "DHW"],
        "dilation": [options.get(f"dilation{axis}Factor", 1) for axis in "DHW"],
        "padding": "valid" if options.get("padding") else "same",
        "groups": x.shape[-1] // kernel.shape[-2],
    }
    y = OPERATORS["conv"].evaluate([x.reshape(-1, *x.shape[2:])], weights, framing)
    y = y.reshape(*x.shape[:2], *y.shape[1:]).astype(np.float32)
    return np.maximum(y, np.float32(0)) if activation else y


# Elementwise functions that are rounded once in the type of their numbers, and sums, in order.
_ELEMENTWISE: Mapping[str, Callable[..., Any]] = {
    "ABS": np.abs, "ADD": np.add, "ADD_N": lambda *x: functools.reduce(np.add, x),
    "CEIL": np.ceil, "DIV": quotient, "FLOOR": np.floor,
    "FLOOR_DIV": lambda a, b: np.floor(np.divide(a, b)).astype(a.dtype),
    "FLOOR_MOD": np.mod, "MAXIMUM": np.maximum, "MINIMUM": np.minimum, "MUL": np.multiply,
    "NEG": np.negative, "RELU": lambda x: np.maximum(x, np.float32(0)), "ROUND": np.rint,
    "SIGN": np.sign, "SQUARE": np.square, "SUB": np.subtract, "ZEROS_LIKE": np.zeros_like,
    "EQUAL": np.equal, "NOT_EQUAL": np.not_equal, "GREATER": np.greater,
    "GREATER_EQUAL": np.greater_equal, "LESS": np.less, "LESS_EQUAL": np.less_equal,
    "LOGICAL_AND": np.logical_and, "LOGICAL_OR": np.logical_or, "LOGICAL_NOT": np.logical_not,
}  # fmt: skip

_PLAIN: Mapping[str, _Evaluate] = {
    **{kind: _exact(function) for kind, function in _ELEMENTWISE.items()},
    "REDUCE_ANY": _reduced(np.logical_or),
    "REDUCE_ALL": _reduced(np.logical_and),
    "REDUCE_MAX": _reduced(np.maximum),
    "REDUCE_MIN": _reduced(np.minimum),
    "CUMSUM": _partial_sums,
    "UNSORTED_SEGMENT_SUM": _by_segment(np.add, lambda dtype: 0),
    "UNSORTED_SEGMENT_PROD": _by_segment(np.multiply, lambda dtype: 1),
    "UNSORTED_SEGMENT_MAX": _by_segment(np.maximum, lambda dtype: float(np.finfo(dtype).min)),
    "UNSORTED_SEGMENT_MIN": _by_segment(np.minimum, lambda dtype: float(np.finfo(dtype).max)),
}

# Functions computed by polynomials, and sums in any order.
_ROUNDED: Mapping[str, _Evaluate] = {
    "CONV_3D": _convolved,
    "SUM": _total,
    "ELU": _rounded("elu"),
    "SIN": _rounded("sin"),
    "COS": _rounded("cos"),
    "EXP": _rounded("exp"),
    "LOG": _rounded("log"),
    "SQRT": _rounded("sqrt"),
    "RSQRT": _rounded("rsqrt"),
    "TANH": _rounded("tanh"),
    "LOGISTIC": _rounded("sigmoid"),
    "HARD_SWISH": _rounded("hard_silu"),
    "GELU": _rounded("gelu", gelu),
    "POW": _rounded("power"),
    "ATAN2": _rounded("atan2"),
    "SOFTMAX": _rounded("softmax", scaled_softmax),
    "LOG_SOFTMAX": _rounded("log_softmax"),
    "MEAN": _rounded("reduce_mean", reduction),
}
_INEXACT = frozenset(_ROUNDED)


def _unknown(op: GraphOp, values: Values) -> Finish:
    raise NotKnownError(f"{op.kind} of integers")


def with_plain(readers: Mapping[str, IntegerOperator]) -> dict[str, IntegerOperator]:
    """Return readers of operators that may also have numbers without steps."""
    none = IntegerOperator(_unknown, ruled=False)
    found = {**_PLAIN, **_ROUNDED}
    plain = {kind: _either(found[kind], readers.get(kind, none)) for kind in found}
    return {**readers, **plain}


def _either(plain: _Evaluate, integers: IntegerOperator) -> IntegerOperator:
    """Return the reader of an op whose numbers may have steps."""

    def prepare(op: GraphOp, values: Values) -> Finish:
        keys = [key for key in op.inputs if key]
        steps = [values.graph.tensors[key].quantization for key in keys]
        types = [values.array(key).dtype.kind for key in keys]
        # The file may have steps for the floats of an op that stayed in float32.
        if any(kind in "iu" and entry is not None for kind, entry in zip(types, steps)):
            return integers.prepare(op, values)
        with np.errstate(all="ignore"):
            found = plain(op, values)
        return lambda rule: found

    return IntegerOperator(prepare, integers.ruled)
