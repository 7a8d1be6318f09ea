"""Softmax and its logarithm."""

from __future__ import annotations

import numpy as np

from ..rounding.arithmetic import Arithmetic, Finish
from ..rounding.quantized import Ints, NotKnownError
from ..rounding.tables import wide_softmax
from ..special_functions import softmax
from .base import (
    ROUNDING,
    Arrays,
    Attributes,
    Evaluated,
    Integers,
    Operator,
    Weights,
    steepest_secant,
)

# exp(-x) of a greater number is below the smallest normal number of float32.
_NOTHING = 88.0


def sigmoid(x: np.ndarray, _: Attributes) -> np.ndarray:
    """Return 1 / (1 + exp(-x)), taking exp of negative numbers only to avoid overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def _axis(attributes: Attributes) -> int:
    return int(attributes.get("axis", -1))


class Softmax(Operator):
    """exp(x) / Σ exp(x) along an axis.

    Args:
        ulps: Error of exp in units of u·|y|.
    """

    def __init__(self, ulps: float) -> None:
        self._ulps = ulps

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        return softmax(inputs[0], _axis(attributes))

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """See the base class.

        The relative error comes from the rounding of x - max, the error of exp, a sum of n terms
        and the errors of the inputs. Where exp(x - max) is denormal in float32, a kernel may return
        zero; the least normal number is therefore added as an absolute error.
        """
        x, axis = at.inputs[0], _axis(at.attributes)
        away = np.abs(x - x.max(axis=axis, keepdims=True))
        # Masked elements, however small, are zero and change no other one.
        kept = away <= _NOTHING + 2 * errors[0]
        away = np.where(kept, away, 0.0)
        count = np.maximum(kept.sum(axis=axis, keepdims=True), 1)
        # exp(-x) below u affects only its own output, whose relative error is that of x.
        relative = unit * (away + away.sum(axis=axis, keepdims=True) / count + x.shape[axis])
        relative = relative + unit * 2 * self._ulps
        moved = 2 * np.where(kept, errors[0], 0.0).max(axis=axis, keepdims=True)
        return np.asarray(at.output * np.expm1(np.minimum(relative + moved, 700.0)) + 2.0**-126)

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """Each y_i is the sigmoid of its log-odds d_i = x_i - log Σ_{j≠i} exp x_j.

        The variance of d_i is that of x_i plus Σ q_j² that of x_j, q being the softmax of the
        others; to first order this is dy_i = y_i (dx_i - Σ y_j dx_j). x - max, exp, sum and
        quotient are rounded.
        """
        axis = _axis(at.attributes)
        x, spread, y = (
            np.moveaxis(array.astype(np.float64), axis, -1)
            for array in (at.inputs[0], variances[0], at.output)
        )
        raised = np.exp(x - x.max(axis=-1, keepdims=True))
        others = _sum_of_others(raised)
        # What is masked, by minus infinity too, has no share in any result.
        spread = np.where(raised > 0, spread, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            shared = _sum_of_others(np.square(raised) * spread) / np.square(others)
            odds = np.log(raised / others)
        # Squares of small shares vanish: Σ q_j² s_j is at most the greatest s_j.
        greatest = spread.max(axis=-1, keepdims=True)
        shared = np.where(np.square(others) > 0, shared, greatest)
        squares = np.where(others > 0, spread + shared, 0.0)
        # y (1 - y), the tangent, without cancellation.
        tangent = np.square(y * others / raised.sum(axis=-1, keepdims=True))
        reached = steepest_secant(sigmoid, odds, sigmoid(odds, {}), unit * np.sqrt(squares), {})
        slope = np.maximum(tangent, np.where(np.isfinite(odds), reached, 0.0))
        away = np.where(y > 0, np.square(x - x.max(axis=-1, keepdims=True)), 0.0)
        own = np.square(y) * ROUNDING * (away + 4 + x.shape[-1] / 2)
        return np.moveaxis(slope * squares + own, -1, axis).astype(at.output.dtype)

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        mean = np.sum(gradient * at.output, axis=_axis(at.attributes), keepdims=True)
        return [at.output * (gradient - mean)]

    def integer(self, at: Integers) -> Finish:
        """See the base class; only for the last axis."""
        x, beta = at.operands[0], np.float32(at.attributes.get("beta", 1.0))
        if _axis(at.attributes) not in (-1, x.integers.ndim - 1):
            raise NotKnownError("a softmax over an axis other than the last")
        if at.output.bits == 16:
            found = wide_softmax(x.integers, x.scale[0], beta)
            return lambda rule: found

        def finish(rule: Arithmetic) -> Ints:
            return at.output.saturated(rule.shares(x.centred, x.scale[0], beta, at.output.scale))

        return finish


class LogSoftmax(Operator):
    """x - log Σ exp(x) along an axis.

    Args:
        ulps: Error of exp and log in units of u.
    """

    def __init__(self, ulps: float) -> None:
        self._ulps = ulps

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        axis = _axis(attributes)
        x = inputs[0] - inputs[0].max(axis=axis, keepdims=True)
        return np.asarray(x - np.log(np.exp(x).sum(axis=axis, keepdims=True)))

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        axis = _axis(at.attributes)
        moved = 2 * errors[0].max(axis=axis, keepdims=True)
        own = 2 * np.abs(at.output) + at.output.shape[axis] + self._ulps
        return np.asarray(moved + unit * own)

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        axis = _axis(at.attributes)
        shares = np.square(np.exp(at.output))
        squares = np.where(shares > 0, shares * variances[0], 0.0)
        own = ROUNDING * (2 * np.square(at.output) + at.output.shape[axis] / 2)
        return np.asarray(variances[0] + np.sum(squares, axis=axis, keepdims=True) + own)

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        total = np.sum(gradient, axis=_axis(at.attributes), keepdims=True)
        return [gradient - np.exp(at.output) * total]

    def integer(self, at: Integers) -> Finish:
        """See the base class; only for 8 bits and the last axis, in steps of 1/16 from 127 down."""
        x = at.operands[0]
        if x.steps.dtype != np.int8:
            raise NotKnownError("a logarithm of a softmax of another type")
        return lambda rule: at.output.saturated(rule.log_shares(x.integers, x.scale[0]))


def _sum_of_others(values: np.ndarray) -> np.ndarray:
    """Return for each element the sum of all others on the last axis, without cancellation."""
    top = np.argmax(values, axis=-1, keepdims=True)
    rest = values.copy()
    np.put_along_axis(rest, top, 0.0, axis=-1)
    below = rest.sum(axis=-1, keepdims=True)
    total = below + np.take_along_axis(values, top, axis=-1)
    sums = np.broadcast_to(total, values.shape) - values
    np.put_along_axis(sums, top, below, axis=-1)
    return np.asarray(sums)
