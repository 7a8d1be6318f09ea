"""The interface of an operator: value, error bound, variance, gradient and integer form.

Every value is an array of floats with the samples on its first axis. Booleans are 0 or 1; integers
are floats without a fraction.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..rounding.arithmetic import Finish
from ..rounding.quantized import NotKnownError, Output, Quantized

Arrays = list[np.ndarray]
Weights = Mapping[str, np.ndarray]
Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of an operator.

    Attributes:
        inputs: Its inputs.
        weights: Its weights and constants by role, in the inputs' type.
        attributes: Strides, padding and the like.
        output: Its value.
    """

    inputs: Arrays
    weights: Weights
    attributes: Attributes
    output: np.ndarray


@dataclass(frozen=True)
class Integers:
    """The arguments of the integer form of an operator.

    Attributes:
        operands: The inputs, (P, …).
        output: The steps of the output.
        weights: Constants by role; a kernel and a bias as exact float64 integers.
        attributes: As for `Operator.evaluate`; axis numbers include the axis of samples.
    """

    operands: Sequence[Quantized]
    output: Output
    weights: Mapping[str, Quantized]
    attributes: Attributes


class Operator(abc.ABC):
    """One kind of operation."""

    @abc.abstractmethod
    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """Return the value, in the inputs' type."""

    @abc.abstractmethod
    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """Return a bound on the absolute error of each output element.

        Args:
            at: The operator's inputs and output.
            errors: Bound on the error of each input.
            unit: Unit roundoff of the operator's own arithmetic.

        Returns:
            The propagated errors of the inputs, plus the bound on rounding.
        """

    @abc.abstractmethod
    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """Return the expected variance of rounding errors, in units of the unit roundoff squared.

        Args:
            at: The operator's inputs and output.
            variances: Variance of each input's error.
            unit: The unit roundoff; needed only by functions whose slope changes within an error.

        Returns:
            The propagated variances of the inputs, plus those of the operator's own roundings.
        """

    @abc.abstractmethod
    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """Return the gradients with respect to the inputs, given that of the output."""

    def integer(self, at: Integers) -> Finish:
        """Return a function that computes the output's integers by a given rounding rule.

        Raises:
            NotKnownError: The operator has no integer form.
        """
        raise NotKnownError(f"{type(self).__name__} in integers")


# Variance of a rounding error, assumed uniform between -u and u times the number that is rounded.
ROUNDING = 1 / 3

# Greatest error of one sample, in standard deviations: `precisions.WORST_SAMPLE_LIMIT`.
REACH = 5.0

Function = Callable[[np.ndarray, Attributes], np.ndarray]


def greatest_error(variance: np.ndarray, unit: float) -> np.ndarray:
    """Return the greatest error that a sample may have, for a variance in units of unit²."""
    return np.asarray(REACH * unit * np.sqrt(variance))


def gamma(terms: float, unit: float) -> float:
    """Return the constant of a sum of ``terms`` products.

    γ_n = n u / (1 - n u), Higham, Accuracy and Stability of Numerical Algorithms, lemma 3.1; it
    holds for any order of summation, with or without fused multiply-add.
    """
    return terms * unit / (1 - terms * unit)


def steepest_secant(
    value: Function, x: np.ndarray, y: np.ndarray, deviation: np.ndarray, attributes: Attributes
) -> np.ndarray:
    """Return the square of the steepest secant within the allowed error of a sample.

    Where a function is flat a small error vanishes, but an error of k deviations may reach a steep
    part. With this slope, an error of k deviations changes the value by at most k times the
    expected noise, for every allowed k.
    """
    found = np.zeros_like(y)
    for k in range(1, int(REACH) + 1):
        h = np.maximum(k * deviation, np.finfo(y.dtype).tiny)
        for moved in (x + h, x - h):
            secant = np.where(moved == x, 0.0, (value(moved, attributes) - y) / h)
            found = np.fmax(found, np.square(secant))
    return found


def summed(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum over the axes along which an operand of a given shape was repeated."""
    extra = tuple(range(array.ndim - len(shape)))
    repeated = tuple(
        axis for axis, size in enumerate(shape, len(extra)) if size == 1 and array.shape[axis] != 1
    )
    return array.sum(axis=extra + repeated).reshape(shape)


def operands_of(inputs: Arrays, weights: Weights, attributes: Attributes) -> tuple[Arrays, int]:
    """Return all operands in order, and the position of the first that is not constant.

    A constant operand is the weight "constant"; it comes last unless `constant_first` is set.
    """
    if "constant" not in weights:
        return inputs, 0
    if attributes.get("constant_first", False):
        return [weights["constant"], *inputs], 1
    return [*inputs, weights["constant"]], 0


def with_constant(at: Evaluated, each: Arrays, own: float) -> Arrays:
    """Return one array for each operand: those of the inputs, and ``own`` for the constant."""
    if "constant" not in at.weights:
        return each
    constant = np.full(1, own, at.output.dtype)
    return [constant, *each] if at.attributes.get("constant_first", False) else [*each, constant]


def constant_error(attributes: Attributes) -> float:
    """Return a bound on the error of a constant that a converter computes in float32."""
    return float(attributes.get("constant_error", 0.0))


def constant_variance(attributes: Attributes, unit: float) -> float:
    """Return the variance of that error, in units of the unit roundoff squared."""
    return ROUNDING * (constant_error(attributes) / unit) ** 2


def channels_last(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    """Return a value of any data format, with or without a time axis, as (M, *S, C)."""
    if attributes.get("time_distributed", False):
        x = x.reshape(-1, *x.shape[2:])
    return np.moveaxis(x, 1, -1) if attributes.get("data_format") == "channels_first" else x


def as_given(y: np.ndarray, attributes: Attributes, samples: tuple[int, ...]) -> np.ndarray:
    """Return (M, *S, C) in the layout of a value that starts with the axes ``samples``."""
    if attributes.get("data_format") == "channels_first":
        y = np.moveaxis(y, -1, 1)
    return y.reshape(*samples[:2], *y.shape[1:]) if attributes.get("time_distributed") else y
