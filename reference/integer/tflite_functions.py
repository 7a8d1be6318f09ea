"""Operators of .tflite files with kernels of their own: roots, relations, quotients, sums."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...artifacts.graphs.base import GraphOp
from ..rounding.arithmetic import Arithmetic, Finish, times_wide
from ..rounding.fixed_point import away_from_zero, inverse_root, multiplier, quotient
from ..rounding.quantized import Ints, NotKnownError, Quantized, aligned
from ..rounding.tables import tabled
from ..special_functions import rounded_once
from .base import IntegerOperator, Values
from .tflite_arithmetic import output_of, reduction

_Relation = Callable[[np.ndarray, np.ndarray], np.ndarray]

# Extra bits of the numbers that a relation compares, and of an inverse root.
_COMPARED_BITS, _ROOT_BITS = 8, 20

# The greatest shift of a 32-bit integer.
_MOST_SHIFT = 31

# The greatest exponent of a multiplier of 64-bit integers.
_MOST_LEFT = 14


def _logarithm(op: GraphOp, values: Values) -> Finish:
    """Read a LOG: a table in which the logarithm of zero is the least number.

    Source: TFLite, `kernels/elementwise.cc`, `LogLUTPrepare`.
    """
    output = values.output(op)
    least = np.float32(np.iinfo(output.steps.dtype).min - output.point) * output.scale[0]

    def logarithm(x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.where(x > 0, rounded_once(np.log)(x), least)

    return tabled(logarithm, values.quantized(op.inputs[0]), output)


def _root(op: GraphOp, values: Values) -> Finish:
    """Read a SQRT: in float32, rounded towards zero (`kernels/elementwise.cc`)."""
    x, output = values.quantized(op.inputs[0]), values.output(op)
    root = np.sqrt(x.scale[0] * x.centred.astype(np.float32)) / output.scale[0]
    found = output.saturated(np.trunc(root).astype(np.int64))
    return lambda rule: found


def _inverse_root(op: GraphOp, values: Values) -> Finish:
    """Read an RSQRT: in fixed point, or for 16 bits by a table.

    Source: TFLite, `kernels/elementwise.cc`; TFLite Micro's file of that name has no table.
    """
    x, output = values.quantized(op.inputs[0]), values.output(op)
    limit, tabled_root = np.iinfo(output.steps.dtype).max, None
    if x.bits == 16:
        most = np.float32(limit) * output.scale[0]

        def function(at: np.ndarray) -> np.ndarray:
            with np.errstate(all="ignore"):
                return np.where(at > 0, np.float32(1) / np.sqrt(at), most)

        tabled_root = tabled(function, x, output)
    m, e = inverse_root(x.centred)
    ratio = 1 / (np.sqrt(x.scale[0]) * output.scale[0]).astype(np.float64)
    of_steps, shift = multiplier(ratio)

    def finish(rule: Arithmetic) -> Ints:
        if tabled_root is not None and rule.tables_roots:
            return np.asarray(tabled_root(rule))
        fine = rule.times(np.ones_like(m), m, e + _ROOT_BITS)
        found = output.saturated(rule.times(fine, of_steps, shift - _ROOT_BITS))
        return np.where(x.centred == 0, limit, found)

    return finish


def _unit_length(op: GraphOp, values: Values) -> Finish:
    """Read an L2_NORMALIZATION, whose result has steps of 1/128.

    Source: TFLite, `reference/integer_ops/l2normalization.h`.
    """
    x, output = values.quantized(op.inputs[0]), output_of(op, values)
    if x.steps.dtype != np.int8:
        raise NotKnownError("an L2_NORMALIZATION of another type")
    m, e = inverse_root(np.square(x.centred).sum(axis=-1, keepdims=True))
    return lambda rule: output.saturated(rule.times(x.centred, m, e + 7))


def _relation(relation: _Relation, *, scaled: bool = False) -> IntegerOperator:
    """Return the reader of a relation: 8-bit integers are brought to common steps.

    Source: TFLite, `kernels/comparisons.cc`.

    Args:
        relation: The relation.
        scaled: Whether 16-bit integers are too; if not, they are compared as they are.
    """

    def prepare(op: GraphOp, values: Values) -> Finish:
        operands = aligned(*(values.quantized(key) for key in op.inputs))
        if operands[0].bits == 16 and not scaled:
            return lambda rule: relation(*(side.integers for side in operands))

        def finish(rule: Arithmetic) -> np.ndarray:
            return relation(*(_in_common_steps(side, rule) for side in operands))

        return finish

    return IntegerOperator(prepare)


def _in_common_steps(x: Quantized, rule: Arithmetic) -> Ints:
    return rule.times(x.centred << _COMPARED_BITS, *multiplier(float(x.scale[0])))


def _total(op: GraphOp, values: Values) -> Finish:
    """Read a SUM: scaled in float32.

    Source: TFLite, `reference/reduce.h`, `QuantizedMeanOrSum`.
    """
    x, output, places = values.quantized(op.inputs[0]), values.output(op), reduction(op, values)
    axes = places["axes"]
    sums = x.integers.sum(axis=axes, keepdims=places["keepdims"])
    count = int(np.prod([x.integers.shape[axis] for axis in axes]))
    ratio = x.scale[0] / output.scale[0]
    bias = np.float32(-x.point) * ratio * np.float32(count)
    found = output.saturated(away_from_zero(sums.astype(np.float32) * ratio + bias).astype(int))
    return lambda rule: found


def _product(op: GraphOp, values: Values) -> Finish:
    """Read a REDUCE_PROD: each factor multiplies the rounded product of those before it.

    Source: TFLite, `reference/reduce.h`, `QuantizedReduceProd`; `kernels/reduce.cc`.
    """
    x, output, places = values.quantized(op.inputs[0]), values.output(op), reduction(op, values)
    factors, axes = x.centred, places["axes"]
    kept = [axis for axis in range(factors.ndim) if axis not in axes]
    rows = np.transpose(factors, (*kept, *axes)).reshape(*(factors.shape[i] for i in kept), -1)
    m, e = multiplier(float(x.scale[0]) / float(output.scale[0]) ** (1 / rows.shape[-1]))
    if e > _MOST_LEFT:
        raise NotKnownError("a REDUCE_PROD with a shift beyond 15 bits")

    def scaled(product: Ints) -> Ints:
        return times_wide(product, m, e).astype(np.int32).astype(np.int64)

    product = rows[..., 0]
    for place in range(1, rows.shape[-1]):
        product = scaled(product * rows[..., place])
    found = output.saturated(scaled(product))
    if places["keepdims"]:
        found = np.expand_dims(found, axes)
    return lambda rule: found


def _divided(op: GraphOp, values: Values) -> Finish:
    """Read a DIV in fixed point. Source: TFLite, `reference/div.h`, `kernels/div.cc`.

    Raises:
        NotKnownError: A shift is beyond the type, which C leaves undefined: a quotient far below a
            step of the result.
    """
    a, b = aligned(*(values.quantized(key) for key in op.inputs))
    output = output_of(op, values)
    if output.bits != 8:
        raise NotKnownError("a DIV of another type")
    ratio = float(a.scale[0] / (b.scale[0] * output.scale[0]))
    found, right = quotient(a.centred, b.centred, *multiplier(ratio))
    if np.any((right < 0) | (right > _MOST_SHIFT)):
        raise NotKnownError("a DIV with a shift beyond 31 bits")
    results = output.saturated(found)
    return lambda rule: results


FUNCTION_OPS = {
    "LOG": IntegerOperator(_logarithm),
    "SQRT": IntegerOperator(_root, ruled=False),
    "RSQRT": IntegerOperator(_inverse_root),
    "L2_NORMALIZATION": IntegerOperator(_unit_length),
    "DIV": IntegerOperator(_divided, ruled=False),
    "SUM": IntegerOperator(_total, ruled=False),
    "REDUCE_PROD": IntegerOperator(_product, ruled=False),
    "EQUAL": _relation(np.equal, scaled=True),
    "NOT_EQUAL": _relation(np.not_equal, scaled=True),
    "GREATER": _relation(np.greater),
    "GREATER_EQUAL": _relation(np.greater_equal),
    "LESS": _relation(np.less),
    "LESS_EQUAL": _relation(np.less_equal),
}
