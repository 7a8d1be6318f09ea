"""Activation functions: exact value, steepest slope, and the relative error a kernel may have.

Runtimes compute exp, tanh, erf and their kin by polynomials and tables with an error of their own,
which no derivation from the unit roundoff gives. `ULPS` states it, in units of u·|y| (or u, where
the function saturates away from zero); docs/checks.md shows the measurements behind each number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import ROUNDING, Arrays, Attributes, Operator, Weights

Function = Callable[[np.ndarray, Attributes], np.ndarray]

# exp and what is made of it in a few operations: the runtimes' own statement of their kernels is
# "a few units in the last place"; 16 u is eight of them.
ULPS = 16.0

# Standard deviations that the error of one sample may have: `bounds.WORST_SAMPLE_LIMIT`.
REACH = 5.0

_erfc = np.frompyfunc(math.erfc, 1, 1)


def _sigmoid(x: np.ndarray, _: Attributes) -> np.ndarray:
    # exp of a negative number only, so that nothing overflows.
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def _relu(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    slope, threshold = attributes.get("negative_slope", 0.0), attributes.get("threshold", 0.0)
    y = (
        np.where(x >= threshold, x, slope * (x - threshold))
        if slope or threshold
        else (np.maximum(x, 0))
    )
    top = attributes.get("max_value")
    return y if top is None else np.minimum(y, np.asarray(top, x.dtype))


def _gelu(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    if attributes.get("approximate", False):
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return 0.5 * x * (1 + np.tanh(inner))
    # erfc keeps the tail, where 1 + erf cancels.
    return (0.5 * x * np.asarray(_erfc(-x / math.sqrt(2)), np.float64)).astype(x.dtype)


def _selu(x: np.ndarray, _: Attributes) -> np.ndarray:
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


@dataclass(frozen=True)
class Activation:
    """One element-wise function.

    Attributes:
        value: The function.
        slope: Its greatest slope: how much of an input's error reaches the output.
        ulps: Error of a kernel in units of u·scale; 0 for those that only select.
        scale: "value" where the kernel's error is relative to |y|, "one" where it is relative to 1
            (sums with a constant inside), "input" where relative to |x| + |y| (x times a gate).
    """

    value: Function
    slope: float
    ulps: float
    scale: str = "value"


_FUNCTIONS = {
    "linear": Activation(lambda x, a: x, 1, 0),
    "relu": Activation(_relu, 1, 2),
    "leaky_relu": Activation(lambda x, a: np.where(x >= 0, x, a["negative_slope"] * x), 1, 2),
    "elu": Activation(
        lambda x, a: np.where(x > 0, x, a.get("alpha", 1.0) * np.expm1(np.minimum(x, 0))),
        1,
        ULPS,
        "one",
    ),
    "selu": Activation(_selu, 1.7581, ULPS, "one"),
    "gelu": Activation(_gelu, 1.13, ULPS, "input"),
    "silu": Activation(lambda x, a: x * _sigmoid(x, a), 1.1, ULPS, "input"),
    "sigmoid": Activation(_sigmoid, 0.25, ULPS, "one"),
    "tanh": Activation(lambda x, a: np.tanh(x), 1, ULPS, "one"),
    "hard_sigmoid": Activation(lambda x, a: np.clip(x / 6 + 0.5, 0, 1), 1 / 6, 4, "one"),
    "hard_silu": Activation(lambda x, a: x * np.clip(x / 6 + 0.5, 0, 1), 1.5, 6, "input"),
    "softplus": Activation(
        lambda x, a: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))), 1, ULPS, "input"
    ),
    "softsign": Activation(lambda x, a: x / (1 + np.abs(x)), 1, 4),
    "mish": Activation(
        lambda x, a: x * np.tanh(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))),
        1.1,
        2 * ULPS,
        "input",
    ),
}

_SCALES: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "value": lambda x, y: np.abs(y),
    "one": lambda x, y: np.maximum(np.abs(y), 1),
    "input": lambda x, y: np.abs(x) + np.abs(y),
}


def _steepest(
    value: Function, x: np.ndarray, y: np.ndarray, deviation: np.ndarray, attributes: Attributes
) -> np.ndarray:
    """Return the square of the steepest secant within as many deviations as a sample may be off.

    Where a function is flat a small error vanishes, but one of k deviations may reach where it is
    steep. With this slope an error of k deviations changes the value by no more than k times the
    expected noise, for every k that is allowed at all.
    """
    found = np.zeros_like(y)
    for k in range(1, int(REACH) + 1):
        h = np.maximum(k * deviation, np.finfo(y.dtype).tiny)
        for moved in (x + h, x - h):
            secant = np.where(moved == x, 0.0, (value(moved, attributes) - y) / h)
            found = np.maximum(found, np.square(secant))
    return found


def _operator(activation: Activation) -> Operator:
    """Return the operator of an element-wise function."""

    def evaluate(inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        return activation.value(inputs[0], attributes)

    def error(
        inputs: Arrays,
        weights: Weights,
        attributes: Attributes,
        output: np.ndarray,
        errors: Arrays,
        unit: float,
    ) -> np.ndarray:
        slope = max(
            activation.slope,
            abs(attributes.get("negative_slope", 0.0)),
            abs(attributes.get("alpha", 0.0)),
        )
        own = activation.ulps * unit * _SCALES[activation.scale](inputs[0], output)
        # Constants such as a threshold are rounded to the type too.
        own = own + 2 * unit * abs(attributes.get("threshold", 0.0))
        return np.asarray(slope * errors[0] + own)

    def variance(
        inputs: Arrays,
        weights: Weights,
        attributes: Attributes,
        output: np.ndarray,
        variances: Arrays,
        unit: float,
    ) -> np.ndarray:
        value, squares = activation.value, variances[0]
        deviation = unit * np.sqrt(squares)
        step = np.maximum(2.0**-8 * (np.abs(inputs[0]) + 2.0**-8), deviation)
        sides = [np.square((value(inputs[0] + h, attributes) - output) / h) for h in (step, -step)]
        slope = (sides[0] + sides[1]) / 2
        if activation.scale == "one":
            slope = np.maximum(slope, _steepest(value, inputs[0], output, deviation, attributes))
        # A kernel's typical error is one unit in the last place where the bound allows ULPS.
        own = ROUNDING * min(activation.ulps, 2.0) ** 2
        own = own * np.square(_SCALES[activation.scale](inputs[0], output))
        return np.asarray(slope * squares + own)

    return Operator(evaluate, error, variance)


def _softmax(inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
    axis = attributes.get("axis", -1)
    raised = np.exp(inputs[0] - inputs[0].max(axis=axis, keepdims=True))
    return np.asarray(raised / raised.sum(axis=axis, keepdims=True))


def _softmax_error(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    errors: Arrays,
    unit: float,
) -> np.ndarray:
    """Relative: the rounding of x - max, exp's own error, a sum of n terms, and the inputs' errors.

    Where exp(x - max) is denormal in the type that is judged, a kernel may give zero: hence the
    least normal number as absolute part.
    """
    axis = attributes.get("axis", -1)
    n = inputs[0].shape[axis]
    away = np.abs(inputs[0] - inputs[0].max(axis=axis, keepdims=True))
    # exp(-x) below u has no influence on anything but itself, where its relative error is that of x
    relative = unit * (away + away.mean(axis=axis, keepdims=True) + n + 2 * ULPS)
    moved = 2 * errors[0].max(axis=axis, keepdims=True)
    return np.asarray(output * np.expm1(np.minimum(relative + moved, 700.0)) + 2.0**-126)


def _log_softmax(inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
    axis = attributes.get("axis", -1)
    x = inputs[0] - inputs[0].max(axis=axis, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=axis, keepdims=True)))


def _log_softmax_error(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    errors: Arrays,
    unit: float,
) -> np.ndarray:
    axis = attributes.get("axis", -1)
    n = inputs[0].shape[axis]
    moved = 2 * errors[0].max(axis=axis, keepdims=True)
    return np.asarray(moved + unit * (2 * np.abs(output) + n + ULPS))


def _prelu(inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
    return np.where(inputs[0] >= 0, inputs[0], weights["alpha"] * inputs[0])


def _prelu_error(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    errors: Arrays,
    unit: float,
) -> np.ndarray:
    slope = np.maximum(1, np.abs(weights["alpha"]))
    return np.asarray(slope * errors[0] + 2 * unit * np.abs(output))


def _softmax_variance(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    variances: Arrays,
    unit: float,
) -> np.ndarray:
    """Each y_i is the sigmoid of its log-odds d_i = x_i - log Σ_{j≠i} exp x_j.

    The variance of d_i is that of x_i plus Σ q_j² that of x_j, q being the softmax of the others;
    to first order this is dy_i = y_i (dx_i - Σ y_j dx_j). x - max, exp, sum and quotient are
    rounded.
    """
    axis = attributes.get("axis", -1)
    x, spread = (
        np.moveaxis(array.astype(np.float64), axis, -1) for array in (inputs[0], variances[0])
    )
    raised = np.exp(x - x.max(axis=-1, keepdims=True))
    others = _sum_of_others(raised)
    with np.errstate(divide="ignore", invalid="ignore"):
        shared = _sum_of_others(np.square(raised) * spread) / np.square(others)
        odds = np.log(raised / others)
    squares = np.where(others > 0, spread + shared, 0.0)
    y = np.moveaxis(output.astype(np.float64), axis, -1)
    # y (1 - y), the tangent, without cancellation.
    tangent = np.square(y * others / raised.sum(axis=-1, keepdims=True))
    reached = _steepest(_sigmoid, odds, _sigmoid(odds, {}), unit * np.sqrt(squares), {})
    slope = np.maximum(tangent, np.where(np.isfinite(odds), reached, 0.0))
    own = (
        np.square(y)
        * ROUNDING
        * (np.square(x - x.max(axis=-1, keepdims=True)) + 4 + x.shape[-1] / 2)
    )
    return np.moveaxis(slope * squares + own, -1, axis).astype(output.dtype)


def _sum_of_others(values: np.ndarray) -> np.ndarray:
    """Return for each element the sum of all others on the last axis; no large number cancels."""
    top = np.argmax(values, axis=-1, keepdims=True)
    rest = values.copy()
    np.put_along_axis(rest, top, 0.0, axis=-1)
    below = rest.sum(axis=-1, keepdims=True)
    total = below + np.take_along_axis(values, top, axis=-1)
    sums = np.broadcast_to(total, values.shape) - values
    np.put_along_axis(sums, top, below, axis=-1)
    return np.asarray(sums)


def _log_softmax_variance(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    variances: Arrays,
    unit: float,
) -> np.ndarray:
    axis = attributes.get("axis", -1)
    y = np.exp(output)
    shared = np.sum(np.square(y) * variances[0], axis=axis, keepdims=True)
    own = ROUNDING * (2 * np.square(output) + inputs[0].shape[axis] / 2)
    return np.asarray(variances[0] + shared + own)


def _prelu_variance(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    variances: Arrays,
    unit: float,
) -> np.ndarray:
    slope = np.where(inputs[0] >= 0, 1.0, weights["alpha"])
    return np.asarray(np.square(slope) * variances[0] + ROUNDING * np.square(output))


ACTIVATIONS = {
    **{name: _operator(activation) for name, activation in _FUNCTIONS.items()},
    "softmax": Operator(_softmax, _softmax_error, _softmax_variance),
    "log_softmax": Operator(_log_softmax, _log_softmax_error, _log_softmax_variance),
    "prelu": Operator(_prelu, _prelu_error, _prelu_variance),
}
