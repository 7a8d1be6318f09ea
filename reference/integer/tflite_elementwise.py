"""Ops of .tflite files that treat every number by itself, sums, means and changes of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...artifacts.graphs.base import GraphOp
from ..operators.pooling import POOLING, pooled_sums
from .arithmetic import Arithmetic, Ints
from .base import Finish, IntegerOperator, Values, aligned, saturated
from .tflite_linear import clipped, framing


def _operands(op: GraphOp, values: Values) -> list[Ints]:
    """Return both operands less their zero points, axes in line."""
    return aligned(*(values.centred(key) for key in op.inputs))


def _bits(op: GraphOp, values: Values) -> int:
    return 8 * values.steps(op.outputs[0]).dtype.itemsize


def _sum(sign: int) -> Callable[[GraphOp, Values], Finish]:
    """Return the preparation of ADD or SUB."""

    def prepare(op: GraphOp, values: Values) -> Finish:
        left, right = _operands(op, values)
        a, b, y = (values.scale(key)[0] for key in (*op.inputs, op.outputs[0]))
        bits = _bits(op, values)

        def finish(rule: Arithmetic) -> Ints:
            return clipped(op, values, rule.added(left, sign * right, (a, b, y), bits))

        return finish

    return prepare


def _product(op: GraphOp, values: Values) -> Finish:
    """Prepare a MUL; the ratio of scales is a float32 number. Source: `kernels/mul.cc`."""
    left, right = _operands(op, values)
    a, b, y = (values.scale(key)[0] for key in (*op.inputs, op.outputs[0]))
    return lambda rule: clipped(op, values, rule.scaled(left * right, float(a * b / y)))


def _squared_difference(op: GraphOp, values: Values) -> Finish:
    """Prepare a SQUARED_DIFFERENCE: operands as in a sum, then squared.

    Source: TFLite, `kernels/squared_difference.cc`.
    """
    left, right = _operands(op, values)
    a, b, y = (float(values.scale(key)[0]) for key in (*op.inputs, op.outputs[0]))
    twice, shift = 2 * max(a, b), 7

    def finish(rule: Arithmetic) -> Ints:
        parts = [
            rule.scaled(side << shift, scale / twice) for side, scale in ((left, a), (right, b))
        ]
        squares = np.square(parts[0] - parts[1])
        return clipped(op, values, rule.scaled(squares, twice**2 / ((1 << 2 * shift) * y)))

    return finish


def _extreme(choose: Any) -> Callable[[GraphOp, Values], Finish]:
    """Return the preparation of MAXIMUM or MINIMUM of integers of the same steps."""

    def prepare(op: GraphOp, values: Values) -> Finish:
        values.same_steps(*op.inputs, op.outputs[0])
        left, right = aligned(*(values.integers(key) for key in op.inputs))
        return lambda rule: choose(left, right)

    return prepare


def _clipping(low: float, high: float) -> Callable[[GraphOp, Values], Finish]:
    """Return the preparation of RELU and its kin: other steps, then limits."""

    def prepare(op: GraphOp, values: Values) -> Finish:
        x, steps = values.centred(op.inputs[0]), values.steps(op.outputs[0])
        ratio = float(values.scale(op.inputs[0])[0] / values.scale(op.outputs[0])[0])
        return lambda rule: saturated(rule.scaled(x, ratio), steps, low, high)

    return prepare


def _leaky(op: GraphOp, values: Values) -> Finish:
    """Prepare a LEAKY_RELU: one ratio for each sign. Source: `reference/leaky_relu.h`."""
    x, steps = values.centred(op.inputs[0]), values.steps(op.outputs[0])
    scale, y = values.scale(op.inputs[0])[0], values.scale(op.outputs[0])[0]
    slope = np.float32(op.attributes.get("alpha", 0.0))
    ratios = float(scale / y), float(scale * slope / y)
    return lambda rule: saturated(rule.leaky(x, *ratios), steps)


def _prelu(op: GraphOp, values: Values) -> Finish:
    """Prepare a PRELU: the negative side is a product. Source: `reference/prelu.h`."""
    x, slopes = aligned(values.centred(op.inputs[0]), values.centred(op.inputs[1]))
    scale, slope, y = (values.scale(key)[0] for key in (*op.inputs, op.outputs[0]))
    ratios = float(scale / y), float(scale * slope / y)
    steps = values.steps(op.outputs[0])

    def finish(rule: Arithmetic) -> Ints:
        sides = rule.scaled(x, ratios[0]), rule.scaled(x * slopes, ratios[1])
        return saturated(np.where(x >= 0, *sides), steps)

    return finish


def _reduced_axes(op: GraphOp, values: Values, rank: int) -> tuple[int, ...]:
    """Return the axes that an op reduces, counted with that of the samples."""
    axes = values.constant(op.inputs[1]).reshape(-1)
    return tuple(sorted({int(axis) % (rank - 1) + 1 for axis in axes}))


def _mean(op: GraphOp, values: Values) -> Finish:
    """Prepare a MEAN."""
    x = values.centred(op.inputs[0])
    axes = _reduced_axes(op, values, x.ndim)
    sums = x.sum(axis=axes, keepdims=bool(op.attributes.get("keepDims")))
    count = int(np.prod([x.shape[axis] for axis in axes]))
    scales = values.scale(op.inputs[0])[0], values.scale(op.outputs[0])[0]
    point = int(values.steps(op.inputs[0]).zero_points[0])
    places = x.ndim == 5 and axes == (2, 3) and op.attributes.get("keepDims")

    def finish(rule: Arithmetic) -> Ints:
        if places and _bits(op, values) == 8:
            return clipped(op, values, rule.averaged_places(sums, count, point, *scales))
        return clipped(op, values, rule.averaged(sums, count, *scales))

    return finish


def _reduced(combine: Any) -> Callable[[GraphOp, Values], Finish]:
    """Return the preparation of REDUCE_MAX or REDUCE_MIN."""

    def prepare(op: GraphOp, values: Values) -> Finish:
        values.same_steps(op.inputs[0], op.outputs[0])
        x = values.integers(op.inputs[0])
        axes = _reduced_axes(op, values, x.ndim)
        found = combine(x, axis=axes, keepdims=bool(op.attributes.get("keepDims")))
        return lambda rule: found

    return prepare


def _pool(op: GraphOp, x: Ints) -> tuple[Ints, dict[str, Any]]:
    size = [op.attributes["filterHeight"], op.attributes["filterWidth"]]
    return x.reshape(-1, *x.shape[2:]), {**framing(op), "pool_size": size}


def _average_pool(op: GraphOp, values: Values) -> Finish:
    """Prepare an AVERAGE_POOL_2D: a mean of the integers, half away from zero."""
    values.same_steps(op.inputs[0], op.outputs[0])
    x = values.integers(op.inputs[0])
    sums, count = pooled_sums(*_pool(op, x))
    count = count.astype(np.int64)
    away = np.sign(sums) * ((np.abs(sums) + count // 2) // count)
    away = away.reshape(*x.shape[:2], *away.shape[1:]).astype(np.int64)
    point = int(values.steps(op.inputs[0]).zero_points[0])
    return lambda rule: clipped(op, values, away - point)


def _max_pool(op: GraphOp, values: Values) -> Finish:
    """Prepare a MAX_POOL_2D; padding never wins."""
    values.same_steps(op.inputs[0], op.outputs[0])
    x = values.integers(op.inputs[0])
    merged, attributes = _pool(op, x)
    largest = POOLING["max_pool"].evaluate([merged.astype(np.float64)], {}, attributes)
    found = largest.astype(np.int64)
    found = found.reshape(*x.shape[:2], *found.shape[1:])
    point = int(values.steps(op.inputs[0]).zero_points[0])
    return lambda rule: clipped(op, values, found - point)


def _quantize(op: GraphOp, values: Values) -> Finish:
    """Prepare a QUANTIZE, from floats or from integers of other steps."""
    y, steps = values.scale(op.outputs[0]), values.steps(op.outputs[0])
    if values.array(op.inputs[0]).dtype.kind == "f":
        floats = values.floats(op.inputs[0])
        return lambda rule: saturated(rule.quantized(floats, y), steps)
    x, scale = values.centred(op.inputs[0]), values.scale(op.inputs[0])
    return lambda rule: saturated(rule.requantized(x, scale, y), steps)


def _dequantize(op: GraphOp, values: Values) -> Finish:
    """Prepare a DEQUANTIZE."""
    x, scale = values.integers(op.inputs[0]), values.scale(op.inputs[0])
    point = int(values.steps(op.inputs[0]).zero_points[0])
    return lambda rule: rule.dequantized(x, point, scale)


def _absolute(op: GraphOp, values: Values) -> Finish:
    """Prepare an ABS: the size, in other steps. Source: `kernels/elementwise.cc`, `AbsInt8`."""
    x, steps = np.abs(values.centred(op.inputs[0])), values.steps(op.outputs[0])
    ratio = float(values.scale(op.inputs[0])[0] / values.scale(op.outputs[0])[0])
    if ratio == 1:
        return lambda rule: saturated(x, steps)
    return lambda rule: saturated(rule.scaled(x, ratio), steps)


ELEMENTWISE_OPS = {
    "ADD": IntegerOperator(_sum(1)),
    "SUB": IntegerOperator(_sum(-1)),
    "MUL": IntegerOperator(_product),
    "SQUARED_DIFFERENCE": IntegerOperator(_squared_difference),
    "MAXIMUM": IntegerOperator(_extreme(np.maximum), ruled=False),
    "MINIMUM": IntegerOperator(_extreme(np.minimum), ruled=False),
    "RELU": IntegerOperator(_clipping(0.0, np.inf)),
    "RELU6": IntegerOperator(_clipping(0.0, 6.0)),
    "RELU_N1_TO_1": IntegerOperator(_clipping(-1.0, 1.0)),
    "RELU_0_TO_1": IntegerOperator(_clipping(0.0, 1.0)),
    "LEAKY_RELU": IntegerOperator(_leaky),
    "PRELU": IntegerOperator(_prelu),
    "MEAN": IntegerOperator(_mean),
    "REDUCE_MAX": IntegerOperator(_reduced(np.max), ruled=False),
    "REDUCE_MIN": IntegerOperator(_reduced(np.min), ruled=False),
    "AVERAGE_POOL_2D": IntegerOperator(_average_pool, ruled=False),
    "MAX_POOL_2D": IntegerOperator(_max_pool, ruled=False),
    "QUANTIZE": IntegerOperator(_quantize),
    "DEQUANTIZE": IntegerOperator(_dequantize),
    "ABS": IntegerOperator(_absolute),
}
