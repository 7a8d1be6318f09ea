"""Sums, means, products, extremes and indices of extremes along axes."""

from __future__ import annotations

import math

import numpy as np

from ..rounding.arithmetic import Arithmetic, Finish
from ..rounding.quantized import Ints, NotKnownError, Output, Quantized
from .base import (
    ROUNDING,
    Arrays,
    Attributes,
    Evaluated,
    Integers,
    Operator,
    Weights,
    gamma,
    greatest_error,
)
from .pooling import coherent_mean_variance


class Reduction(Operator):
    """Reduces the elements along `axes`; with `keepdims` these axes remain with size one."""

    def _axes(self, attributes: Attributes) -> tuple[int, ...]:
        return tuple(attributes["axes"])

    def _shape(self, x: np.ndarray, attributes: Attributes) -> tuple[int, ...]:
        """Return the output's shape with the reduced axes kept."""
        axes = self._axes(attributes)
        return tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))

    def _terms(self, x: np.ndarray, attributes: Attributes) -> int:
        return math.prod(x.shape[axis] for axis in self._axes(attributes))

    def _rows(self, x: np.ndarray, attributes: Attributes) -> np.ndarray:
        """Return (R, K): the K input elements of each of R output elements."""
        axes = self._axes(attributes)
        kept = [axis for axis in range(x.ndim) if axis not in axes]
        return np.transpose(x, (*kept, *axes)).reshape(-1, self._terms(x, attributes))

    def _reduced(self, function: np.ufunc, x: np.ndarray, attributes: Attributes) -> np.ndarray:
        keepdims = attributes.get("keepdims", False)
        return np.asarray(function.reduce(x, axis=self._axes(attributes), keepdims=keepdims))


class SumOver(Reduction):
    """The sum, or the mean.

    Args:
        mean: Whether the sum is divided by the number of terms.
    """

    def __init__(self, *, mean: bool) -> None:
        self._mean = mean

    def _divisor(self, x: np.ndarray, attributes: Attributes) -> int:
        return self._terms(x, attributes) if self._mean else 1

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        total = self._reduced(np.add, inputs[0], attributes)
        return np.asarray(total / self._divisor(inputs[0], attributes)).astype(inputs[0].dtype)

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        size = np.abs(at.inputs[0]) + errors[0]
        passed = self.evaluate(errors, {}, at.attributes)
        terms = self._terms(at.inputs[0], at.attributes)
        return passed + gamma(terms + 1, unit) * self.evaluate([size], {}, at.attributes)

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """See the base class; equal values have equal errors (`pooling.coherent_mean_variance`)."""
        x, shape = at.inputs[0], at.output.shape
        terms, divisor = self._terms(x, at.attributes), self._divisor(x, at.attributes)
        rows, spread = (self._rows(array, at.attributes) for array in (x, variances[0]))
        coherent = coherent_mean_variance(rows, spread) * (terms / divisor) ** 2
        # Partial sums, as `linear.Linear` derives.
        added = ROUNDING / 2 * terms * np.square(rows).sum(axis=1) / divisor**2
        own = ROUNDING * (terms / 3 + 1) * np.square(at.output)
        return np.asarray((coherent + added).reshape(shape) + own)

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        x = at.inputs[0]
        spread = gradient.reshape(self._shape(x, at.attributes))
        return [np.broadcast_to(spread / self._divisor(x, at.attributes), x.shape)]

    def integer(self, at: Integers) -> Finish:
        """See the base class; only the mean has an integer form."""
        if not self._mean:
            raise NotKnownError("a sum over axes in integers")
        x, axes = at.operands[0], self._axes(at.attributes)
        sums = self._reduced(np.add, x.centred, at.attributes)
        count = self._terms(x.integers, at.attributes)
        # Kernels treat the mean of (P, B, H, W, C) over both spatial axes separately.
        places = (x.integers.ndim, axes) == (5, (2, 3)) and at.attributes.get("keepdims", False)
        return lambda rule: at.output.saturated(averaged(rule, sums, count, x, at.output, places))


def averaged(
    rule: Arithmetic, sums: Ints, count: int, x: Quantized, output: Output, places: bool
) -> Ints:
    """Return means in the steps of the output, before they are saturated.

    Args:
        rule: The rule.
        sums: Sums of integers minus the zero point.
        count: Number of integers in each sum.
        x: The integers; only their steps are used.
        output: The steps of the output.
        places: Whether the mean is over both spatial axes and keeps them.
    """
    if places and output.bits == 8:
        return rule.averaged_places(sums, count, x.point, x.scale[0], output.scale[0])
    return rule.averaged(sums, count, x.scale[0], output.scale[0])


class ExtremeOver(Reduction):
    """The greatest or the least element."""

    def __init__(self, function: np.ufunc) -> None:
        self._function = function

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        return self._reduced(self._function, inputs[0], attributes)

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        return self._reduced(np.maximum, errors[0], at.attributes)

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """Return the greatest variance among the elements."""
        return self._reduced(np.maximum, variances[0], at.attributes)

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        shape = self._shape(at.inputs[0], at.attributes)
        chosen = at.inputs[0] == at.output.reshape(shape)
        return [np.where(chosen, gradient.reshape(shape), 0.0)]

    def integer(self, at: Integers) -> Finish:
        """See the base class: the integers themselves."""
        at.operands[0].same_steps(at.output)
        found = self._reduced(self._function, at.operands[0].integers, at.attributes)
        return lambda rule: found


class ProductOver(Reduction):
    """The product."""

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        return self._reduced(np.multiply, inputs[0], attributes)

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """Π (|x| + e) - Π |x|, rounded once for each multiplication."""
        most = self._reduced(np.multiply, np.abs(at.inputs[0]) + errors[0], at.attributes)
        terms = self._terms(at.inputs[0], at.attributes)
        return np.asarray(most - np.abs(at.output) + gamma(terms, unit) * most)

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        slopes = self._slopes(at)
        terms = self._terms(at.inputs[0], at.attributes)
        passed = self._reduced(np.add, np.square(slopes) * variances[0], at.attributes)
        return np.asarray(passed + ROUNDING * terms * np.square(at.output))

    def _slopes(self, at: Evaluated) -> np.ndarray:
        """Return for each element the product of the others."""
        x = at.inputs[0]
        shape = self._shape(x, at.attributes)
        zeros = (x == 0).sum(axis=self._axes(at.attributes), keepdims=True)
        others = self._reduced(np.multiply, np.where(x == 0, 1.0, x), at.attributes).reshape(shape)
        alone = np.where(x == 0, zeros == 1, zeros == 0)
        return np.where(alone, others / np.where(x == 0, 1.0, x), 0.0)

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        return [gradient.reshape(self._shape(at.inputs[0], at.attributes)) * self._slopes(at)]


class ArgExtreme(Operator):
    """The index of the greatest element along `axis`, the first of equal ones."""

    def __init__(self, sign: float) -> None:
        self._sign = sign

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        found = np.argmax(self._sign * inputs[0], axis=attributes["axis"])
        return np.asarray(found).astype(inputs[0].dtype)

    def _uncertain(self, at: Evaluated, reach: np.ndarray) -> np.ndarray:
        """Return whether another element may be the greatest with errors within ``reach``."""
        axis = at.attributes["axis"]
        x = self._sign * at.inputs[0]
        index = np.expand_dims(at.output.astype(int), axis)
        top = np.take_along_axis(x, index, axis) - np.take_along_axis(reach, index, axis)
        near = (x + reach >= top) & (reach + np.take_along_axis(reach, index, axis) > 0)
        return np.asarray(near.sum(axis=axis) > 1)

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        size = at.inputs[0].shape[at.attributes["axis"]]
        return np.where(self._uncertain(at, errors[0]), size - 1.0, 0.0)

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        size = at.inputs[0].shape[at.attributes["axis"]]
        unsure = self._uncertain(at, greatest_error(variances[0], unit))
        return np.where(unsure, np.square(size / unit), 0.0).astype(at.output.dtype)

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        return [np.zeros_like(at.inputs[0])]


class CumulativeSum(Operator):
    """Sums of the elements up to each one along `axis`."""

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        axis, x = attributes["axis"], inputs[0]
        if attributes.get("reverse"):
            x = np.flip(x, axis)
        total = np.cumsum(x, axis=axis, dtype=x.dtype)
        if attributes.get("exclusive"):
            none = np.zeros_like(np.take(total, [0], axis))
            total = np.concatenate([none, np.delete(total, -1, axis)], axis)
        return np.flip(total, axis) if attributes.get("reverse") else total

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        size = self.evaluate([np.abs(at.inputs[0]) + errors[0]], {}, at.attributes)
        terms = at.output.shape[at.attributes["axis"]]
        return self.evaluate(errors, {}, at.attributes) + gamma(terms, unit) * size

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """See the base class: each partial sum is rounded, and its error remains in the next."""
        rounded = self.evaluate([np.square(at.output)], {}, {"axis": at.attributes["axis"]})
        if at.attributes.get("reverse"):
            rounded = self.evaluate(
                [np.square(at.output)], {}, {"axis": at.attributes["axis"], "reverse": True}
            )
        return self.evaluate(variances, {}, at.attributes) + ROUNDING * rounded

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        turned = {**at.attributes, "reverse": not at.attributes.get("reverse", False)}
        return [self.evaluate([gradient], {}, turned)]


REDUCTIONS: dict[str, Operator] = {
    "reduce_sum": SumOver(mean=False),
    "reduce_mean": SumOver(mean=True),
    "reduce_max": ExtremeOver(np.maximum),
    "reduce_min": ExtremeOver(np.minimum),
    "reduce_prod": ProductOver(),
    "argmax": ArgExtreme(1.0),
    "argmin": ArgExtreme(-1.0),
    "cumsum": CumulativeSum(),
}
