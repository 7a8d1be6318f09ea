"""Elementwise operations: functions of one value, arithmetic, comparison, selection."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from .values import (
    Builder,
    Computed,
    Known,
    Shape,
    Translation,
    UntranslatableError,
    Value,
    error_of,
    role_of,
    shape_of,
)


def _unary(operator: str, builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    return [apply(builder, operator, inputs[0])]


def apply(
    builder: Builder, operator: str, value: Value, attributes: dict[str, Any] | None = None
) -> Computed:
    """Append a function of one value, in its current shape."""
    assert isinstance(value, Computed)
    return builder.emit(operator, [value.name], value.shape, attributes)


def _with(
    operator: str, names: dict[str, str], builder: Builder, op: Any, inputs: list[Value]
) -> list[Value]:
    """Append a function whose attributes have other names in TensorFlow."""
    attributes = {own: float(op.get_attr(theirs)) for own, theirs in names.items()}
    return [apply(builder, operator, inputs[0], attributes)]


def _softmax(operator: str, builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    name, shape, _ = builder.framed(inputs[0], op.inputs[0], len(op.inputs[0].shape) - 1)
    return [builder.emit(operator, [name], shape, {"axis": -1})]


def _cast(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    before, after = op.inputs[0].dtype, op.outputs[0].dtype
    if after.is_bool and not before.is_bool:
        return [apply(builder, "nonzero", inputs[0])]
    if after.is_integer and before.is_floating:
        return [apply(builder, "truncate", inputs[0])]
    return [inputs[0]]


def _broadcast(tensors: Sequence[Any], shape: Shape) -> tuple[list[Shape], Shape]:
    """Return the shapes in which operands broadcast against samples, and the result's.

    Args:
        tensors: The traced operands.
        shape: The traced result's shape.
    """
    padded = [(1,) * (len(shape) - t.shape.rank) + shape_of(t) for t in tensors]
    if shape[:1] == (1,):
        return [each[1:] for each in padded], shape[1:]
    return padded, shape


def _bias_add(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    if op.get_attr("data_format") != b"NHWC":
        raise UntranslatableError("BiasAdd of NCHW")
    return nary("add", builder, op, inputs)


def nary(operator: str, builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    """Append a function of operands that broadcast; one constant stays a constant."""
    return [combine(builder, operator, inputs, op.inputs, shape_of(op.outputs[0]))]


def combine(
    builder: Builder, operator: str, inputs: Sequence[Value], tensors: Sequence[Any], traced: Shape
) -> Computed:
    """Append a function of operands that broadcast to a traced shape."""
    shapes, shape = _broadcast(tensors, traced)
    known = [index for index, value in enumerate(inputs) if isinstance(value, Known)]
    if len(inputs) != 2 or len(known) != 1:
        names = [builder.named(value, each) for value, each in zip(inputs, shapes, strict=True)]
        return builder.emit(operator, names, shape)
    (place,) = known
    constant, other = inputs[place], inputs[1 - place]
    assert isinstance(constant, Known)
    array = constant.array.reshape(shapes[place])
    return builder.emit(
        operator,
        [builder.named(other, shapes[1 - place])],
        shape,
        {"constant_first": place == 0, **error_of(constant)},
        **role_of(constant, "constant", constant.array.reshape(_trimmed(array.shape))),
    )


def _trimmed(shape: Shape) -> Shape:
    """Return a shape without leading axes of size one, which broadcasting adds again."""
    while shape[:1] == (1,):
        shape = shape[1:]
    return shape


def _squared_difference(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    difference = combine(builder, "subtract", inputs, op.inputs, shape_of(op.outputs[0]))
    return [apply(builder, "square", difference)]


def _relu6(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    return [apply(builder, "relu", inputs[0], {"max_value": 6.0})]


def _integer_division(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    whole = op.inputs[0].dtype.is_integer
    return nary("floor_divide" if whole else "divide", builder, op, inputs)


def _signs(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    """Translate the test for negative zeros, in which Keras reads the sign bit of a float."""
    before = op.inputs[0].op
    mask = next((value for value in inputs if isinstance(value, Known)), None)
    bits = {"Bitcast"} & {before.type, op.inputs[1].op.type}
    (value,) = (value for value in inputs if isinstance(value, Computed))
    if mask is None or not bits or mask.array.size != 1 or int(mask.array) >= 0:
        return nary("bitwise_and", builder, op, inputs)  # No operator: the layer stays opaque.
    return [apply(builder, "negative", apply(builder, "sign_bit", value))]


def _zeros_like(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    fill = float(op.type == "OnesLike")
    return [Known(np.full(shape_of(op.outputs[0]), fill))]


def _clip(builder: Builder, op: Any, inputs: list[Value]) -> list[Value]:
    shape = shape_of(op.outputs[0])
    low = combine(builder, "maximum", [inputs[0], inputs[1]], op.inputs[:2], shape)
    return [combine(builder, "minimum", [low, inputs[2]], [op.outputs[0], op.inputs[2]], shape)]


_UNARY = {
    "Abs": "absolute",
    "Neg": "negative",
    "Square": "square",
    "Sqrt": "sqrt",
    "Rsqrt": "rsqrt",
    "Reciprocal": "reciprocal",
    "Inv": "reciprocal",
    "Exp": "exp",
    "Expm1": "expm1",
    "Log": "log",
    "Log1p": "log1p",
    "Sin": "sin",
    "Cos": "cos",
    "Atan": "atan",
    "Erf": "erf",
    "Erfc": "erfc",
    "Floor": "floor",
    "Ceil": "ceil",
    "Round": "round",
    "Rint": "round",
    "Sign": "sign",
    "LogicalNot": "logical_not",
    "IsNan": "is_nan",
    "IsFinite": "is_finite",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Relu": "relu",
    "Elu": "elu",
    "Selu": "selu",
    "Softplus": "softplus",
    "Softsign": "softsign",
}

_NARY = {
    "Add": "add",
    "AddV2": "add",
    "AddN": "add",
    "Sub": "subtract",
    "Mul": "multiply",
    "RealDiv": "divide",
    "DivNoNan": "divide_no_nan",
    "FloorDiv": "floor_divide",
    "FloorMod": "remainder",
    "Pow": "power",
    "Atan2": "atan2",
    "Maximum": "maximum",
    "Minimum": "minimum",
    "Greater": "greater",
    "GreaterEqual": "greater_equal",
    "Less": "less",
    "LessEqual": "less_equal",
    "Equal": "equal",
    "NotEqual": "not_equal",
    # Truth values are 0 and 1.
    "LogicalAnd": "minimum",
    "LogicalOr": "maximum",
    "SelectV2": "select",
    "Select": "select",
}

ARITHMETIC: dict[str, Translation] = {
    **{name: functools.partial(_unary, operator) for name, operator in _UNARY.items()},
    **{name: functools.partial(nary, operator) for name, operator in _NARY.items()},
    "Relu6": _relu6,
    "LeakyRelu": functools.partial(_with, "leaky_relu", {"negative_slope": "alpha"}),
    "Softmax": functools.partial(_softmax, "softmax"),
    "LogSoftmax": functools.partial(_softmax, "log_softmax"),
    "BiasAdd": _bias_add,
    "Cast": _cast,
    "Div": _integer_division,
    "SquaredDifference": _squared_difference,
    "BitwiseAnd": _signs,
    "ZerosLike": _zeros_like,
    "OnesLike": _zeros_like,
    "ClipByValue": _clip,
}
