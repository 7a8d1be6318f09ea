"""A positive scale passes through activations that are positively homogeneous.

For f in {relu, leaky_relu, prelu}, per channel:

    s > 0          f(s·x) = s·f(x)
    s = 0          f(0·x + t) = 0·f(x) + f(t)        for every element-wise f
    s = 1, t = 0   nothing is asked

A shift passes through none of them: it is left in front, as one ADD that fuses with the relu.
"""

# ruff: noqa: D102 - the base class documents the methods
from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import activations
from keras import layers as kl

from ..affine import Affine
from ..graph import ActivationOp, Call, Extra, Kept
from ..keras_graph import kind_of
from ..plan import Plan, Refusal
from .rule import Rule

# Functions that act on each element alone, so that a constant channel stays a constant one.
_ELEMENTWISE = {
    activations.elu,
    activations.exponential,
    activations.gelu,
    activations.hard_sigmoid,
    activations.hard_silu,
    activations.hard_tanh,
    activations.leaky_relu,
    activations.linear,
    activations.mish,
    activations.relu,
    activations.relu6,
    activations.selu,
    activations.sigmoid,
    activations.silu,
    activations.softplus,
    activations.softsign,
    activations.tanh,
}
_HOMOGENEOUS = {activations.relu, activations.leaky_relu}
# The same as operations of keras.ops.
_HOMOGENEOUS_OPS = {"Relu", "LeakyRelu"}
_ELEMENTWISE_OPS = {"Relu6", "Sigmoid", "Silu", "Softplus", "Tanh", "HardSigmoid", "HardSilu"}


class Activation(Rule):
    """Scales pass through relu and its kind; constant channels through every activation."""

    def matches(self, op: Any) -> bool:
        return isinstance(op, ActivationOp) or (
            isinstance(op, Kept) and _family(op.operation) != "unknown"
        )

    def backward(self, plan: Plan, call: Call, affine: Affine) -> Refusal | None:
        constant = affine.scale == 0
        refusal = self.judge(call, affine, constant)
        if refusal:
            return refusal
        if constant.any():
            # The constant must be a value that f takes where it maps it to itself: f(t) = t.
            kept = constant & (self.evaluate(call, affine.shift) != affine.shift)
            if kept.any():
                return Refusal(f"{call.name!r} does not return every constant it is given")
        return plan.backward(call.inputs[0], affine, call)

    def forward(self, plan: Plan, call: Call, slot: int, affine: Affine) -> Refusal | None:
        constant = affine.scale == 0
        refusal = self.judge(call, affine, constant)
        if refusal:
            return refusal
        shift = affine.shift
        if constant.any():
            shift = np.where(constant, self.evaluate(call, affine.shift), 0.0)
        return plan.forward(call.output, Affine(affine.scale, shift, affine.axis))

    def provide(self, plan: Plan, call: Call, axis: int, fill: float) -> Extra | Refusal:
        if self.family(call) == "prelu":
            return super().provide(plan, call, axis, fill)
        extra = plan.provide(call.inputs[0], axis, fill, call)
        if isinstance(extra, Refusal):
            return extra
        result = self._through(call, extra)
        if bool(result.constant) == bool(fill) and np.isfinite(result.constant):
            return result
        return Refusal(f"{call.name!r} makes {result.constant:g} of a constant channel")

    def ignore(self, plan: Plan, call: Call, slot: int, extra: Extra) -> Refusal | None:
        if self.family(call) == "prelu":
            return super().ignore(plan, call, slot, extra)
        return plan.ignore(call.output, self._through(call, extra))

    def _through(self, call: Call, extra: Extra) -> Extra:
        """Return the constant channel behind the activation."""
        (constant,) = self.evaluate(call, np.array([extra.constant]))
        return Extra(extra.axis, float(constant), extra.padded)

    def judge(self, call: Call, affine: Affine, constant: np.ndarray) -> Refusal | None:
        """Say why an affine does not pass, its constant channels apart."""
        family = self.family(call)
        moved = ~constant & ((affine.scale != 1) | (affine.shift != 0))
        if family == "prelu" and constant.any():
            return Refusal(f"{call.name!r} has slopes of its own, so no constant passes through it")
        if family == "elementwise" and moved.any():
            return Refusal(f"no scale or shift passes through the activation {call.name!r}")
        if (affine.shift[~constant] != 0).any():
            return Refusal(f"no shift passes through the activation {call.name!r}")
        if (affine.scale < 0).any():
            count = int((affine.scale < 0).sum())
            return Refusal(
                f"only positive scales pass through {call.name!r}, {count} of "
                f"{affine.size} are negative"
            )
        return None

    @staticmethod
    def family(call: Call) -> str:
        """Return what is known of a call's activation."""
        if isinstance(call.op, ActivationOp):
            return _function_family(call.op.function)
        return _family(call.op.operation)

    @staticmethod
    def evaluate(call: Call, x: np.ndarray) -> np.ndarray:
        """Compute the activation of a vector in float64."""
        op = call.op
        function = op.function if isinstance(op, ActivationOp) else _function_of(op.operation)
        return np.asarray(keras.ops.convert_to_numpy(function(keras.ops.cast(x, "float64"))))


def _function_family(function: Any) -> str:
    if function in _HOMOGENEOUS:
        return "homogeneous"
    return "elementwise" if function in _ELEMENTWISE else "unknown"


def _family(operation: Any) -> str:
    """Return "homogeneous", "prelu", "elementwise" or, for anything else, "unknown"."""
    kind = type(operation)
    if kind is kl.Activation:
        return _function_family(operation.activation)
    if kind is kl.ReLU:
        plain = operation.max_value is None and operation.threshold == 0
        return "homogeneous" if plain else "elementwise"
    if kind is kl.LeakyReLU:
        return "homogeneous"
    if kind is kl.PReLU:
        return "prelu"
    if kind is kl.ELU:
        return "elementwise"
    name = kind_of(operation)
    if name in _HOMOGENEOUS_OPS:
        return "homogeneous"
    return "elementwise" if name in _ELEMENTWISE_OPS else "unknown"


def _function_of(operation: Any) -> Any:
    """Return a function that computes an element-wise operation in float64."""
    if isinstance(operation, kl.Activation):
        return operation.activation
    if isinstance(operation, keras.Layer):
        return type(operation).from_config({**operation.get_config(), "dtype": "float64"})
    return operation
