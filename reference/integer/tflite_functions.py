"""Operators of .tflite files with kernels of their own: roots, relations, quotients, sums.

Operators that the converter leaves in float32 are computed too if they are rounded once, which
makes their results equal on all runtimes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np

from ...artifacts.graphs.base import GraphOp
from ..rounding.arithmetic import Arithmetic, Finish, times_wide
from ..rounding.fixed_point import away_from_zero, inverse_root, multiplier, quotient
from ..rounding.quantized import Ints, NotKnownError, Quantized, aligned
from ..rounding.tables import tabled
from .base import IntegerOperator, Values, moved
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
            return np.where(x > 0, np.log(x), least)

    return tabled(logarithm, values.quantized(op.inputs[0]), output)


def _root(op: GraphOp, values: Values) -> Finish:
    """Read a SQRT: in float32, rounded towards zero (`kernels/elementwise.cc`)."""
    x, output = values.quantized(op.inputs[0]), values.output(op)
    root = np.sqrt(x.scale[0] * x.centred.astype(np.float32)) / output.scale[0]
    found = output.saturated(np.trunc(root).astype(np.int64))
    return lambda rule: found


def _inverse_root(op: GraphOp, values: Values) -> Finish:
    """Read an RSQRT: in fixed point, or for 16 bits by a table (`kernels/elementwise.cc`)."""
    x, output = values.quantized(op.inputs[0]), values.output(op)
    limit = np.iinfo(output.steps.dtype).max
    if x.bits == 16:
        most = np.float32(limit) * output.scale[0]

        def function(at: np.ndarray) -> np.ndarray:
            with np.errstate(all="ignore"):
                return np.where(at > 0, np.float32(1) / np.sqrt(at), most)

        return tabled(function, x, output)
    m, e = inverse_root(x.centred)
    ratio = 1 / (np.sqrt(x.scale[0]) * output.scale[0]).astype(np.float64)
    of_steps, shift = multiplier(ratio)

    def finish(rule: Arithmetic) -> Ints:
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
        if values.array(op.inputs[0]).dtype.kind == "f":
            floats = _together([values.floats(key) for key in op.inputs])
            return lambda rule: relation(*floats)
        operands = aligned(*(values.quantized(key) for key in op.inputs))
        if operands[0].bits == 16 and not scaled:
            return lambda rule: relation(*(side.integers for side in operands))

        def finish(rule: Arithmetic) -> np.ndarray:
            return relation(*(_in_common_steps(side, rule) for side in operands))

        return finish

    return IntegerOperator(prepare)


def _in_common_steps(x: Quantized, rule: Arithmetic) -> Ints:
    return rule.times(x.centred << _COMPARED_BITS, *multiplier(float(x.scale[0])))


def _select(op: GraphOp, values: Values) -> Finish:
    """Read a SELECT: integers as they are, whatever their steps."""
    condition, *sides = (values.array(key) for key in op.inputs)
    if op.kind == "SELECT" and condition.ndim == 2:  # a vector selects rows
        rank = max(side.ndim for side in sides)
        condition = condition.reshape(*condition.shape, *[1] * (rank - 2))
    found = np.where(*_together([condition, *sides]))
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


def _one_hot(op: GraphOp, values: Values) -> Finish:
    """Read a ONE_HOT of numbers or integers."""
    index = values.integers(op.inputs[0])
    depth, on, off = (values.constant(key).reshape(-1)[0] for key in op.inputs[1:4])
    axis = int(op.attributes.get("axis", -1))
    hit = np.expand_dims(index, axis + 1 if axis >= 0 else -1)
    counted = np.arange(int(depth)).reshape(-1, *[1] * (0 if axis < 0 else index.ndim - axis - 1))
    found = np.where(hit == counted, on, off)
    return lambda rule: found


def _partial_sums(op: GraphOp, values: Values) -> Finish:
    """Read a CUMSUM, which has no kernel for 8 or 16 bits: of float32 in order, or of integers."""
    axis = int(values.constant(op.inputs[1]).reshape(-1)[0])
    flags = {name: bool(op.attributes.get(name)) for name in ("exclusive", "reverse")}
    x = values.array(op.inputs[0])
    found = moved("cumsum", x, axis=axis + 1 if axis >= 0 else axis, **flags)
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


def _together(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Return arrays of equal rank, with axes of size one inserted after that of the samples."""
    rank = max(array.ndim for array in arrays)
    return [x.reshape(len(x), *[1] * (rank - x.ndim), *x.shape[1:]) for x in arrays]


def _in_floats(function: Callable[..., np.ndarray], integers: IntegerOperator) -> IntegerOperator:
    """Return the reader of an op that is rounded once if it is computed in float32."""

    def prepare(op: GraphOp, values: Values) -> Finish:
        if any(values.array(key).dtype.kind != "f" for key in op.inputs):
            return integers.prepare(op, values)
        if op.attributes.get("fusedActivationFunction"):
            raise NotKnownError("a fused activation in float32")
        with np.errstate(all="ignore"):
            found = function(*_together([values.floats(key) for key in op.inputs]))
        return lambda rule: found

    return IntegerOperator(prepare, integers.ruled)


def _no_integers(op: GraphOp, values: Values) -> Finish:
    raise NotKnownError(f"{op.kind} of integers")


_NONE = IntegerOperator(_no_integers, ruled=False)

# Functions of float32 numbers that are rounded once, and sums, in order. XNNPACK's square root is
# not rounded once.
_FLOATS: Mapping[str, Callable[..., np.ndarray]] = {
    "ABS": np.abs, "ADD": np.add, "ADD_N": lambda *x: functools.reduce(np.add, x),
    "CEIL": np.ceil, "DIV": np.divide, "FLOOR": np.floor,
    "FLOOR_DIV": lambda a, b: np.floor(np.divide(a, b)),
    "MAXIMUM": np.maximum, "MINIMUM": np.minimum, "MUL": np.multiply, "NEG": np.negative,
    "RELU": functools.partial(np.maximum, np.float32(0)), "ROUND": np.rint, "SIGN": np.sign,
    "SQUARE": np.square, "SUB": np.subtract,
}  # fmt: skip

FUNCTION_OPS = {
    "LOG": IntegerOperator(_logarithm),
    "SQRT": IntegerOperator(_root, ruled=False),
    "RSQRT": IntegerOperator(_inverse_root),
    "L2_NORMALIZATION": IntegerOperator(_unit_length),
    "DIV": IntegerOperator(_divided, ruled=False),
    "ARG_MAX": _place(np.argmax),
    "ARG_MIN": _place(np.argmin),
    "TOPK_V2": IntegerOperator(_greatest, ruled=False),
    "CAST": IntegerOperator(_cast, ruled=False),
    "SUM": IntegerOperator(_total, ruled=False),
    "REDUCE_PROD": IntegerOperator(_product, ruled=False),
    "CUMSUM": IntegerOperator(_partial_sums, ruled=False),
    "ONE_HOT": IntegerOperator(_one_hot, ruled=False),
    "EQUAL": _relation(np.equal, scaled=True),
    "NOT_EQUAL": _relation(np.not_equal, scaled=True),
    "GREATER": _relation(np.greater),
    "GREATER_EQUAL": _relation(np.greater_equal),
    "LESS": _relation(np.less),
    "LESS_EQUAL": _relation(np.less_equal),
    "SELECT": IntegerOperator(_select, ruled=False),
    "SELECT_V2": IntegerOperator(_select, ruled=False),
}


def with_floats(readers: Mapping[str, IntegerOperator]) -> dict[str, IntegerOperator]:
    """Return readers of operators that may also be computed in float32."""
    found = dict(readers)
    for kind, function in _FLOATS.items():
        found[kind] = _in_floats(function, readers.get(kind, _NONE))
    return found
