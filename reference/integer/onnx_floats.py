"""Operators of .onnx files that a runtime computes in float32, between integers and integers.

Sums are exact, and functions are rounded once. A runtime's result may differ in its last bits,
which rounding to 8 bits hides unless it is next to a tie.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ...artifacts.graphs.base import GraphOp
from ..operators import OPERATORS
from ..operators.pooling import pooled_sums
from ..rounding.quantized import NotKnownError
from ..special_functions import erf, softmax
from .base import moved, quotient, together
from .onnx_moving import MOVING, Evaluate, Reader, axis_of, pads, parameters


def average_pooled(op: GraphOp, values: Reader) -> np.ndarray:
    """Return means over windows, which are computed in floats, window by window.

    Source: ONNX Runtime, `qlinear_pool.cc`.
    """
    x = values.array(op.inputs[0])
    merged = np.moveaxis(x.reshape(-1, *x.shape[2:]), 1, -1)
    size = op.attributes["kernel_shape"]
    strides = op.attributes.get("strides", [1] * len(size))
    padding = pads(op, merged.shape[1:-1], size, strides)
    if op.attributes.get("ceil_mode") or op.attributes.get("count_include_pad"):
        raise NotKnownError("an AveragePool of another form")
    framing = {"pool_size": size, "padding": padding, "strides": strides}
    sums, count = pooled_sums(merged, framing)
    means = np.moveaxis((sums / count).astype(np.float32), -1, 1)
    return np.asarray(means.reshape(*x.shape[:2], *means.shape[1:]))


def _function(compute: Callable[[np.ndarray, Any], Any]) -> Evaluate:
    """Return an op of one number, in float32."""

    def evaluate(op: GraphOp, values: Reader) -> np.ndarray:
        return np.asarray(compute(values.array(op.inputs[0]), op.attributes.get), np.float32)

    return evaluate


def _rounded(compute: Callable[[np.ndarray], Any]) -> Evaluate:
    """Return a function of one number, computed in float64 and rounded to float32."""
    return _function(lambda x, get: compute(x.astype(np.float64)))


def _inputs(op: GraphOp, values: Reader) -> list[np.ndarray]:
    """Return an op's inputs in equal rank."""
    return together([values.array(key) for key in op.inputs])


def _operation(compute: Any) -> Evaluate:
    """Return an op of several numbers, one after the other, in float32; a relation gives bool."""
    return lambda op, values: np.asarray(functools.reduce(compute, _inputs(op, values)))


def _chosen(op: GraphOp, values: Reader) -> np.ndarray:
    return np.where(*_inputs(op, values))


def _remainder(op: GraphOp, values: Reader) -> np.ndarray:
    compute = np.fmod if op.attributes.get("fmod") else np.mod
    return np.asarray(compute(*_inputs(op, values)))


def _reduced(combine: Any) -> Evaluate:
    """Return a reduction of numbers of float64, rounded to their own type."""

    def evaluate(op: GraphOp, values: Reader) -> np.ndarray:
        x, axes = values.array(op.inputs[0]), parameters(op, values, 1, "axes")
        chosen = tuple(axis_of(a, x.ndim) for a in axes) if axes else tuple(range(1, x.ndim))
        fine = x.astype(np.float64) if x.dtype.kind == "f" else x
        found = combine(fine, axis=chosen, keepdims=bool(op.attributes.get("keepdims", 1)))
        return np.asarray(found, x.dtype)

    return evaluate


def _norm(x: np.ndarray, **how: Any) -> np.ndarray:
    return np.sqrt(np.sum(np.square(x), **how))


def _log_of_sum(x: np.ndarray, **how: Any) -> np.ndarray:
    top = np.max(x, axis=how["axis"], keepdims=True)
    sums = np.log(np.sum(np.exp(x - top), **how))
    return np.asarray(sums + top.reshape(sums.shape))


def _along(compute: Callable[[np.ndarray, int], np.ndarray]) -> Evaluate:
    """Return a function along one axis, computed in float64 and rounded to float32."""

    def evaluate(op: GraphOp, values: Reader) -> np.ndarray:
        x = values.array(op.inputs[0])
        axis = axis_of(int(op.attributes.get("axis", -1)), x.ndim)
        return compute(x.astype(np.float64), axis).astype(np.float32)

    return evaluate


def _log_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    return OPERATORS["log_softmax"].evaluate([x], {}, {"axis": axis})


def _place(extreme: Callable[..., np.ndarray]) -> Evaluate:
    """Return the reader of an ArgMax or ArgMin: the first of equal numbers."""

    def evaluate(op: GraphOp, values: Reader) -> np.ndarray:
        x, get = values.array(op.inputs[0]), op.attributes.get
        if get("select_last_index"):
            raise NotKnownError(f"an {op.kind} of the last of equal numbers")
        axis = axis_of(int(get("axis", 0)), x.ndim)
        return extreme(x, axis=axis, keepdims=bool(get("keepdims", 1))).astype(np.int64)

    return evaluate


def _top(op: GraphOp, values: Reader) -> list[np.ndarray]:
    """Return the greatest or least numbers in order, the first of equal ones first, with places."""
    x, counts = values.array(op.inputs[0]), parameters(op, values, 1, "k") or [1]
    axis = axis_of(int(op.attributes.get("axis", -1)), x.ndim)
    if not op.attributes.get("sorted", 1):
        raise NotKnownError("a TopK in any order")
    signed = -x if op.attributes.get("largest", 1) else x
    places = np.argsort(signed, axis=axis, kind="stable")
    places = np.take(places, np.arange(counts[0]), axis)
    return [np.take_along_axis(x, places, axis), places]


def _partial_sums(op: GraphOp, values: Reader) -> np.ndarray:
    x, axes = values.array(op.inputs[0]), parameters(op, values, 1) or [0]
    flags = {name: bool(op.attributes.get(name)) for name in ("exclusive", "reverse")}
    return moved("cumsum", x, axis=axis_of(axes[0], x.ndim), **flags)


def _one_hot(op: GraphOp, values: Reader) -> np.ndarray:
    index, (depth,) = values.array(op.inputs[0]), parameters(op, values, 1) or [0]
    off, on = values.array(op.inputs[2]).reshape(-1)
    axis = axis_of(int(op.attributes.get("axis", -1)), index.ndim + 1)
    counted = np.arange(depth).reshape(-1, *[1] * (index.ndim - axis))
    return np.where(np.expand_dims(index % depth, axis) == counted, on, off)


def _clipped(op: GraphOp, values: Reader) -> np.ndarray:
    x = values.array(op.inputs[0])
    limits = [op.attributes.get("min"), op.attributes.get("max")]
    for place in (1, 2):
        if len(op.inputs) > place and op.inputs[place]:
            limits[place - 1] = values.array(op.inputs[place]).reshape(-1)[0]
    return np.clip(x, *limits)


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x.astype(np.float64))


def _selu(x: np.ndarray, get: Any) -> np.ndarray:
    alpha, gamma = get("alpha", 1.67326319), get("gamma", 1.05070102)
    return gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _transposed_convolution(op: GraphOp, values: Reader) -> np.ndarray:
    """The exact sum, rounded once; the runtime's own depends on its order."""
    x, kernel = (values.array(key).astype(np.float64) for key in op.inputs[:2])
    get, kernel = op.attributes.get, kernel[0]
    rank = kernel.ndim - 2
    usual = int(get("group", 1)) == 1 and set(get("dilations", [1])) == {1}
    if not usual or "output_shape" in op.attributes or get("auto_pad", "NOTSET") != "NOTSET":
        raise NotKnownError("a ConvTranspose of another form")
    strides, given = get("strides", [1] * rank), get("pads", [0] * 2 * rank)
    merged = np.moveaxis(x.reshape(-1, *x.shape[2:]), 1, -1)
    sizes = zip(merged.shape[1:-1], strides, kernel.shape[2:], get("output_padding", [0] * rank))
    full = [(size - 1) * stride + span + extra for size, stride, span, extra in sizes]
    framing = {"strides": strides, "dilation": [1] * rank, "padding": "valid", "output_sizes": full}
    parts = {"kernel": np.transpose(kernel, (*range(2, rank + 2), 1, 0))}
    y = np.moveaxis(OPERATORS["conv_transpose"].evaluate([merged], parts, framing), -1, 1)
    cut = tuple(slice(a, size - b) for a, b, size in zip(given[:rank], given[rank:], full))
    y = y[(slice(None), slice(None), *cut)]
    if len(op.inputs) > 2 and op.inputs[2]:
        y = y + values.array(op.inputs[2]).astype(np.float64).reshape(-1, *[1] * rank)
    return y.reshape(*x.shape[:2], *y.shape[1:]).astype(np.float32)


def _resized(op: GraphOp, values: Reader) -> np.ndarray:
    """Stretch the axes of places: nearest, or the last two linearly.

    Source: ONNX Runtime, `upsample.cc`.
    """
    x, get = values.array(op.inputs[0]), op.attributes.get
    sizes = parameters(op, values, 3)
    if sizes is None:
        scales = values.array(op.inputs[2]).reshape(-1).astype(np.float32)
        sizes = [int(np.floor(size * scale)) for size, scale in zip(x.shape[1:], scales)]
    else:
        scales = np.divide(sizes, x.shape[1:], dtype=np.float32)
    mode = get("coordinate_transformation_mode", "half_pixel")
    places = [_places(*given, mode) for given in zip(x.shape[1:], sizes, scales)]
    if get("mode", "nearest") == "nearest":
        for axis, at in enumerate(places, start=1):
            if sizes[axis - 1] != x.shape[axis]:
                x = _nearest(x, axis, at, get("nearest_mode", "round_prefer_floor"))
        return x
    if get("mode") != "linear" or x.ndim != 5 or tuple(sizes[:2]) != x.shape[1:3]:
        raise NotKnownError(f"a Resize by {get('mode')}")
    (top, bottom, far_y, near_y), (left, right, far_x, near_x) = (
        _between(n, at) for n, at in zip(x.shape[3:], places[2:])
    )
    far_y, near_y = far_y[:, None], near_y[:, None]
    upper, lower = x[..., top, :], x[..., bottom, :]
    total = (near_x * near_y) * upper[..., left]
    total = total + (far_x * near_y) * upper[..., right]
    total = total + (near_x * far_y) * lower[..., left]
    return np.asarray(total + (far_x * far_y) * lower[..., right])


def _between(size: int, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the two numbers on either side, and the shares of the second and the first."""
    at = np.clip(at, np.float32(0), np.float32(size - 1))
    low = at.astype(int)
    high = np.minimum(low + 1, size - 1)
    same = low == high
    far, near = np.abs(at - low.astype(np.float32)), np.abs(at - high.astype(np.float32))
    half = np.float32(0.5)
    return low, high, np.where(same, half, far), np.where(same, half, near)


def _places(size: int, wanted: int, scale: np.float32, mode: str) -> np.ndarray:
    """Return where on an axis the numbers of the stretched one are read, in float32."""
    index = np.arange(wanted, dtype=np.float32)
    if mode == "half_pixel":
        return np.asarray((index + np.float32(0.5)) / scale - np.float32(0.5))
    if mode == "asymmetric":
        return np.asarray(index / scale)
    if mode == "align_corners" and wanted > 1:
        return np.asarray(index * np.float32(size - 1) / np.float32(wanted - 1))
    raise NotKnownError(f"a Resize with {mode}")


def _nearest(x: np.ndarray, axis: int, at: np.ndarray, mode: str) -> np.ndarray:
    rounded = {
        "round_prefer_floor": np.ceil(at - 0.5),
        "round_prefer_ceil": np.floor(at + 0.5),
        "floor": np.floor(at),
        "ceil": np.ceil(at),
    }[mode]
    return np.take(x, np.clip(rounded, 0, x.shape[axis] - 1).astype(int), axis)


_TRIGONOMETRY: dict[str, Callable[[np.ndarray], Any]] = {
    "Sin": np.sin, "Cos": np.cos, "Tan": np.tan, "Asin": np.arcsin, "Acos": np.arccos,
    "Atan": np.arctan, "Sinh": np.sinh, "Cosh": np.cosh, "Asinh": np.arcsinh,
    "Acosh": np.arccosh, "Atanh": np.arctanh,
}  # fmt: skip

FLOATS: dict[str, Evaluate] = {
    "AveragePool": average_pooled,
    "ConvTranspose": _transposed_convolution,
    "Resize": _resized,
    "Relu": _function(lambda x, get: np.maximum(x, 0)),
    "LeakyRelu": _function(lambda x, get: np.where(x >= 0, x, np.float32(get("alpha", 0.01)) * x)),
    "ThresholdedRelu": _function(lambda x, get: np.where(x > get("alpha", 1.0), x, 0)),
    "Elu": _function(
        lambda x, get: np.where(x > 0, x, get("alpha", 1.0) * np.expm1(np.minimum(x, 0)))
    ),
    "Selu": _function(_selu),
    "Sigmoid": _rounded(lambda x: 1 / (1 + np.exp(-x))),
    "HardSigmoid": _function(
        lambda x, get: np.clip(
            np.float32(get("alpha", 0.2)) * x + np.float32(get("beta", 0.5)), 0, 1
        )
    ),
    "HardSwish": _function(lambda x, get: x * np.clip(x / np.float32(6) + np.float32(0.5), 0, 1)),
    "Tanh": _rounded(np.tanh),
    "Erf": _rounded(erf),
    "Exp": _rounded(np.exp),
    "Log": _rounded(np.log),
    **{name: _rounded(function) for name, function in _TRIGONOMETRY.items()},
    "Sqrt": _function(lambda x, get: np.sqrt(x)),
    "Reciprocal": _function(lambda x, get: np.float32(1) / x),
    "Abs": _function(lambda x, get: np.abs(x)),
    "Sign": _function(lambda x, get: np.sign(x)),
    "Neg": _function(lambda x, get: -x),
    "Ceil": _function(lambda x, get: np.ceil(x)),
    "Floor": _function(lambda x, get: np.floor(x)),
    "Round": _function(lambda x, get: np.rint(x)),
    "IsNaN": lambda op, values: np.isnan(values.array(op.inputs[0])),
    "IsInf": lambda op, values: np.isinf(values.array(op.inputs[0])),
    "Not": lambda op, values: ~values.array(op.inputs[0]),
    "Softplus": _function(lambda x, get: _softplus(x)),
    "Softsign": _function(lambda x, get: x / (1 + np.abs(x))),
    "Mish": _function(lambda x, get: x * np.tanh(_softplus(x))),
    "Clip": _clipped,
    "Add": _operation(np.add),
    "Sub": _operation(np.subtract),
    "Mul": _operation(np.multiply),
    "Div": _operation(quotient),
    "Pow": _operation(np.power),
    "Mod": _remainder,
    "Sum": _operation(np.add),
    "Max": _operation(np.maximum),
    "Min": _operation(np.minimum),
    "Less": _operation(np.less),
    "LessOrEqual": _operation(np.less_equal),
    "Greater": _operation(np.greater),
    "GreaterOrEqual": _operation(np.greater_equal),
    "Equal": _operation(np.equal),
    "And": _operation(np.logical_and),
    "Or": _operation(np.logical_or),
    "Xor": _operation(np.logical_xor),
    "Where": _chosen,
    "PRelu": _operation(lambda x, slope: np.where(x >= 0, x, x * slope)),
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
    "ReduceMean": _reduced(np.mean),
    "ReduceSum": _reduced(np.sum),
    "ReduceProd": _reduced(np.prod),
    "ReduceL1": _reduced(lambda x, **how: np.sum(np.abs(x), **how)),
    "ReduceL2": _reduced(_norm),
    "ReduceSumSquare": _reduced(lambda x, **how: np.sum(np.square(x), **how)),
    "ReduceLogSumExp": _reduced(_log_of_sum),
    "Softmax": _along(softmax),
    "LogSoftmax": _along(_log_softmax),
    "ArgMax": _place(np.argmax),
    "ArgMin": _place(np.argmin),
    "TopK": _top,
    "CumSum": _partial_sums,
    "OneHot": _one_hot,
}

# Ops whose results are the same on every runtime: one rounding, or none, or a few in a known order.
EXACT = frozenset(
    {
        *("Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Clip", "Abs", "Sign", "Neg", "Sqrt"),
        *("Reciprocal", "Ceil", "Floor", "Round", "IsNaN", "IsInf", "Not", "And", "Or", "Xor"),
        *("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal", "Where", "Max", "Min"),
        *("Add", "Sub", "Mul", "Div", "Mod", "ReduceMax", "ReduceMin", "ArgMax", "ArgMin", "TopK"),
        *("OneHot", "Resize", "AveragePool", *MOVING),
    }
)
