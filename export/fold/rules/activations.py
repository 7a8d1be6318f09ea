"""The rule of activations: a positive scale moves through positively homogeneous functions.

For an activation f, per channel:

    s > 0          f(s·x) = s·f(x)                   if f is positively homogeneous, such as relu
    s = 0          f(0·x + t) = 0·f(x) + f(t)        if f is the same function of every element
    s = 1, t = 0   f(x) = f(x)                       for every f

A shift does not move through any activation: it remains before it, as one ADD that fuses with a
relu. Nothing is assumed about a function that is not listed here, so nothing moves through it.
"""

# ruff: noqa: D102 - the base class documents the methods
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from ..affine import Affine
from ..graph import ActivationOp, Call, Extra, Kept
from ..keras_graph import kind_of
from ..plan import Plan, Refusal, Rule


@dataclass(frozen=True)
class Properties:
    """The known properties of an activation; by default none.

    Attributes:
        homogeneous: Whether ``f(s·x) = s·f(x)`` for every channel and every ``s > 0``.
        elementwise: Whether each element is mapped separately, and all by the same function.
    """

    homogeneous: bool = False
    elementwise: bool = False


_UNKNOWN = Properties()
_HOMOGENEOUS = Properties(homogeneous=True, elementwise=True)
_ELEMENTWISE = Properties(elementwise=True)
# The slope differs by channel, so a scale moves through, but a constant does not stay uniform.
_PRELU = Properties(homogeneous=True)

# Functions and operations of Keras and TensorFlow by name, without underscores: `leaky_relu` of
# `keras.activations`, `keras.ops` or `tf.nn`, and the operation `LeakyRelu`.
_BY_NAME = dict.fromkeys(("relu", "leakyrelu", "abs", "absolute"), _HOMOGENEOUS) | dict.fromkeys(
    (
        *("celu", "elu", "exp", "exponential", "gelu", "hardshrink", "hardsigmoid", "hardsilu"),
        *("hardswish", "hardtanh", "logsigmoid", "mish", "relu6", "selu", "sigmoid"),
        *("silu", "softplus", "softshrink", "softsign", "sparseplus", "sparsesigmoid"),
        *("squareplus", "swish", "tanh", "tanhshrink"),
    ),
    _ELEMENTWISE,
)


class Activation(Rule):
    """Scales move through relu and similar functions, constant channels through known ones."""

    def matches(self, op: Any) -> bool:
        return isinstance(op, ActivationOp) or (
            isinstance(op, Kept) and _of_operation(op.operation) != _UNKNOWN
        )

    def backward(self, plan: Plan, call: Call, affine: Affine) -> Refusal | None:
        constant = affine.scale == 0
        refusal = _refuses(call, affine, constant)
        if refusal:
            return refusal
        # The constant must be a fixed point of f: f(t) = t.
        if constant.any() and (constant & (_evaluate(call, affine.shift) != affine.shift)).any():
            return Refusal(f"{call.name!r} changes a constant channel")
        return plan.backward(call.inputs[0], affine, call)

    def forward(self, plan: Plan, call: Call, slot: int, affine: Affine) -> Refusal | None:
        constant = affine.scale == 0
        refusal = _refuses(call, affine, constant)
        if refusal:
            return refusal
        shift = affine.shift
        if constant.any():
            shift = np.where(constant, _evaluate(call, affine.shift), 0.0)
        return plan.forward(call.output, dataclasses.replace(affine, shift=shift))

    def provide(self, plan: Plan, call: Call, wanted: Extra) -> Extra | Refusal:
        if not _properties(call.op).elementwise:
            return super().provide(plan, call, wanted)
        extra = plan.provide(call.inputs[0], wanted, call)
        if isinstance(extra, Refusal):
            return extra
        result = _through(call, extra)
        if bool(result.constant) == bool(wanted.constant) and np.isfinite(result.constant):
            return result
        return Refusal(f"{call.name!r} turns the constant channel into {result.constant:g}")

    def ignore(self, plan: Plan, call: Call, slot: int, extra: Extra) -> Refusal | None:
        if not _properties(call.op).elementwise:
            return super().ignore(plan, call, slot, extra)
        return plan.ignore(call.output, _through(call, extra))


def stops_scales(op: ActivationOp | Kept) -> bool:
    """Return whether an operation is a known elementwise function that no scale moves through."""
    return _properties(op) == _ELEMENTWISE


def _refuses(call: Call, affine: Affine, constant: np.ndarray) -> Refusal | None:
    """Return why an affine cannot move through; channels in ``constant`` have a scale of 0."""
    properties = _properties(call.op)
    moved = ~constant & ((affine.scale != 1) | (affine.shift != 0))
    if constant.any() and not properties.elementwise:
        return Refusal(
            f"a constant channel cannot be moved through {call.name!r}, which may not be "
            "elementwise"
        )
    if moved.any() and not properties.homogeneous:
        return Refusal(
            f"the activation {call.name!r} is not linear, and a scale cannot be moved through it"
        )
    if (affine.shift[~constant] != 0).any():
        return Refusal(f"a shift cannot be moved through the activation {call.name!r}")
    negative = int((affine.scale < 0).sum())
    if negative:
        return Refusal(
            f"only positive scales can be moved through {call.name!r}, and {negative} of "
            f"{affine.size} are negative"
        )
    return None


def _through(call: Call, extra: Extra) -> Extra:
    """Return the constant channel after the activation."""
    (constant,) = _evaluate(call, np.array([extra.constant]))
    return dataclasses.replace(extra, constant=float(constant))


def _evaluate(call: Call, x: np.ndarray) -> np.ndarray:
    """Apply the activation to a vector in float64."""
    op = call.op
    function = op.function if isinstance(op, ActivationOp) else _function_of(op.operation)
    return np.asarray(keras.ops.convert_to_numpy(function(keras.ops.cast(x, "float64"))))


def _properties(op: Any) -> Properties:
    """Return the known properties of an activation."""
    if isinstance(op, ActivationOp):
        return _of_function(op.function)
    return _of_operation(op.operation)


def _of_function(function: Any) -> Properties:
    package = str(getattr(function, "__module__", "")).partition(".")[0]
    if package not in {"keras", "tensorflow"}:
        return _UNKNOWN
    return _by_name(getattr(function, "__name__", ""))


def _of_operation(operation: Any) -> Properties:
    """Return the known properties of a layer or an operation of keras.ops."""
    kind = type(operation)
    if kind is kl.Activation:
        return _of_function(operation.activation)
    if kind is kl.ReLU:
        plain = operation.max_value is None and operation.threshold == 0
        return _HOMOGENEOUS if plain else _ELEMENTWISE
    if kind is kl.LeakyReLU:
        return _HOMOGENEOUS
    if kind is kl.PReLU:
        return _PRELU
    if kind is kl.ELU:
        return _ELEMENTWISE
    return _UNKNOWN if isinstance(operation, keras.Layer) else _by_name(kind_of(operation))


def _by_name(name: str) -> Properties:
    return _BY_NAME.get(name.replace("_", "").lower(), _UNKNOWN)


def _function_of(operation: Any) -> Any:
    """Return a function that computes an elementwise operation in float64."""
    if isinstance(operation, kl.Activation):
        return operation.activation
    if isinstance(operation, keras.Layer):
        return type(operation).from_config({**operation.get_config(), "dtype": "float64"})
    return operation
