"""Functions of several values, element by element: arithmetic, comparison, choice, affines.

A constant operand is the weight "constant" (`base.operands_of`).
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable

import numpy as np

from ..rounding.arithmetic import Finish
from ..rounding.quantized import aligned
from .base import (
    ROUNDING,
    Arrays,
    Attributes,
    Evaluated,
    Integers,
    Operator,
    Weights,
    constant_error,
    constant_variance,
    greatest_error,
    operands_of,
    summed,
    with_constant,
)

Combine = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Elementwise(Operator):
    """A function of several operands whose shapes broadcast."""

    @abc.abstractmethod
    def value(self, operands: Arrays) -> np.ndarray:
        """Return the function's value."""

    @abc.abstractmethod
    def slopes(self, operands: Arrays, output: np.ndarray) -> Arrays:
        """Return the derivative by each operand."""

    @abc.abstractmethod
    def bound(
        self, operands: Arrays, output: np.ndarray, errors: Arrays, unit: float
    ) -> np.ndarray:
        """Return `Operator.error_bound`; a constant has the error zero."""

    @abc.abstractmethod
    def spread(
        self, operands: Arrays, output: np.ndarray, variances: Arrays, unit: float
    ) -> np.ndarray:
        """Return `Operator.variance`; a constant has the variance zero."""

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        return np.asarray(self.value(operands_of(inputs, weights, attributes)[0]))

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        operands, _ = operands_of(at.inputs, at.weights, at.attributes)
        found = self.bound(
            operands, at.output, with_constant(at, errors, constant_error(at.attributes)), unit
        )
        return np.asarray(found + np.zeros_like(at.output))

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        operands, _ = operands_of(at.inputs, at.weights, at.attributes)
        each = with_constant(at, variances, constant_variance(at.attributes, unit))
        found = self.spread(operands, at.output, each, unit)
        return np.asarray(found + np.zeros_like(at.output))

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        operands, start = operands_of(at.inputs, at.weights, at.attributes)
        parts = self.slopes(operands, at.output)[start : start + len(at.inputs)]
        return [summed(gradient * part, x.shape) for part, x in zip(parts, at.inputs)]


class Sum(Elementwise):
    """A sum, or a difference of two."""

    def __init__(self, combine: Combine, sign: float) -> None:
        self._combine, self._sign = combine, sign

    def value(self, operands: Arrays) -> np.ndarray:
        """See the base class."""
        return functools.reduce(self._combine, operands)

    def slopes(self, operands: Arrays, output: np.ndarray) -> Arrays:
        """See the base class."""
        return [np.ones(1), *[np.full(1, self._sign)] * (len(operands) - 1)]

    def bound(
        self, operands: Arrays, output: np.ndarray, errors: Arrays, unit: float
    ) -> np.ndarray:
        """A sum of two is one rounding of the result; of more, each partial sum is rounded."""
        passed = functools.reduce(np.add, errors)
        if len(operands) == 2:
            return np.asarray(passed + unit * (np.abs(output) + passed))
        size = functools.reduce(np.add, [np.abs(operand) for operand in operands])
        return np.asarray(passed + len(operands) * unit * (size + passed))

    def spread(
        self, operands: Arrays, output: np.ndarray, variances: Arrays, unit: float
    ) -> np.ndarray:
        """See the base class."""
        return np.asarray(functools.reduce(np.add, variances) + ROUNDING * np.square(output))

    def integer(self, at: Integers) -> Finish:
        """See the base class."""
        a, b = aligned(*at.operands)
        if self._sign < 0:
            return lambda rule: rule.difference([a, b], at.output)
        return lambda rule: rule.total([a, b], at.output)


class Average(Elementwise):
    """The mean of the operands."""

    def value(self, operands: Arrays) -> np.ndarray:
        """See the base class."""
        return np.asarray(functools.reduce(np.add, operands) / len(operands))

    def slopes(self, operands: Arrays, output: np.ndarray) -> Arrays:
        """See the base class."""
        return [np.full(1, 1 / len(operands))] * len(operands)

    def bound(
        self, operands: Arrays, output: np.ndarray, errors: Arrays, unit: float
    ) -> np.ndarray:
        """See the base class."""
        size = functools.reduce(np.add, [np.abs(operand) for operand in operands])
        passed = functools.reduce(np.add, errors)
        return np.asarray((passed + (len(operands) + 1) * unit * (size + passed)) / len(operands))

    def spread(
        self, operands: Arrays, output: np.ndarray, variances: Arrays, unit: float
    ) -> np.ndarray:
        """See the base class."""
        passed = functools.reduce(np.add, variances) / len(operands) ** 2
        return np.asarray(passed + 2 * ROUNDING * np.square(output))


class Product(Elementwise):
    """A product."""

    def value(self, operands: Arrays) -> np.ndarray:
        """See the base class."""
        return functools.reduce(np.multiply, operands)

    def slopes(self, operands: Arrays, output: np.ndarray) -> Arrays:
        """Return for each operand the product of the others."""
        return [
            functools.reduce(np.multiply, [x for j, x in enumerate(operands) if j != i], np.ones(1))
            for i in range(len(operands))
        ]

    def bound(
        self, operands: Arrays, output: np.ndarray, errors: Arrays, unit: float
    ) -> np.ndarray:
        """(x + e)(y + f) - xy, rounded once for each multiplication."""
        grown = [np.abs(operand) + error for operand, error in zip(operands, errors)]
        most = functools.reduce(np.multiply, grown)
        return np.asarray((most - np.abs(output)) + (len(operands) - 1) * unit * most)

    def spread(
        self, operands: Arrays, output: np.ndarray, variances: Arrays, unit: float
    ) -> np.ndarray:
        """Each factor's variance times the square of the others; one factor's errors add up."""
        rounded = ROUNDING * (len(operands) - 1) * np.square(output)
        deviations: dict[int, np.ndarray] = {}
        for x, slope, own in zip(operands, self.slopes(operands, output), variances):
            passed = np.abs(slope) * np.sqrt(own)
            deviations[id(x)] = deviations.get(id(x), 0.0) + passed
        return np.asarray(rounded + functools.reduce(np.add, map(np.square, deviations.values())))

    def integer(self, at: Integers) -> Finish:
        """See the base class; the ratio of scales is a float32 number (TFLite, `mul.cc`)."""
        left, right = (operand.centred for operand in aligned(*at.operands))
        a, b, y = at.operands[0].scale[0], at.operands[1].scale[0], at.output.scale[0]
        return lambda rule: at.output.saturated(rule.multiplied(left * right, a, b, y))


class Extreme(Elementwise):
    """The greatest or the least operand."""

    def __init__(self, combine: Combine) -> None:
        self._combine = combine

    def value(self, operands: Arrays) -> np.ndarray:
        """See the base class."""
        return functools.reduce(self._combine, operands)

    def slopes(self, operands: Arrays, output: np.ndarray) -> Arrays:
        """See the base class."""
        return [(operand == output).astype(np.float64) for operand in operands]

    def bound(
        self, operands: Arrays, output: np.ndarray, errors: Arrays, unit: float
    ) -> np.ndarray:
        """See the base class."""
        return functools.reduce(np.maximum, errors)

    def spread(
        self, operands: Arrays, output: np.ndarray, variances: Arrays, unit: float
    ) -> np.ndarray:
        """Return the greatest variance among the operands that may be chosen."""
        reach = [greatest_error(variance, unit) for variance in variances]
        most = functools.reduce(np.maximum, reach)
        possible = [
            np.where(np.abs(operand - output) <= own + most, variance, 0.0)
            for operand, own, variance in zip(operands, reach, variances)
        ]
        return functools.reduce(np.maximum, possible)

    def integer(self, at: Integers) -> Finish:
        """See the base class: the integers themselves, whose steps must agree."""
        for operand in at.operands:
            operand.same_steps(at.output)
        found = self.value([operand.integers for operand in aligned(*at.operands)])
        return lambda rule: found


class Binary(Elementwise):
    """A smooth function of two operands, differentiated by differences.

    Args:
        function: The function.
        ulps: Error of a kernel in units of u·|y|.
    """

    def __init__(self, function: Combine, ulps: float) -> None:
        self._function, self._ulps = function, ulps

    def value(self, operands: Arrays) -> np.ndarray:
        """See the base class."""
        with np.errstate(all="ignore"):
            return self._function(*operands)

    def slopes(self, operands: Arrays, output: np.ndarray) -> Arrays:
        """See the base class."""
        return [self._secant(operands, index, 2.0**-20, 2.0**-30) for index in range(2)]

    def _secant(self, operands: Arrays, index: int, share: float, least: float) -> np.ndarray:
        """Return the secant over a share of one operand."""
        step = share * (np.abs(operands[index]) + least)
        sides = []
        for h in (step, -step):
            moved = list(operands)
            moved[index] = operands[index] + h
            sides.append(self.value(moved))
        with np.errstate(all="ignore"):
            return np.nan_to_num((sides[0] - sides[1]) / (2 * step), posinf=0.0, neginf=0.0)

    def bound(
        self, operands: Arrays, output: np.ndarray, errors: Arrays, unit: float
    ) -> np.ndarray:
        """The greatest change at the corners of the operands' intervals."""
        passed = np.zeros_like(output)
        if any(error.any() for error in errors):
            with np.errstate(all="ignore"):
                for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
                    corner = [x + s * e for x, s, e in zip(operands, signs, errors)]
                    passed = np.maximum(passed, np.abs(self.value(corner) - output))
            passed = np.where(np.isnan(passed) & ~np.isnan(output), np.inf, passed)
        return np.asarray(passed + self._ulps * unit * (np.abs(output) + passed))

    def spread(
        self, operands: Arrays, output: np.ndarray, variances: Arrays, unit: float
    ) -> np.ndarray:
        """See the base class."""
        total = ROUNDING * min(self._ulps, 2.0) ** 2 * np.square(output)
        for index, variance in enumerate(variances):
            if variance.any():
                slope = self._secant(operands, index, 2.0**-8, 2.0**-30)
                total = total + np.square(slope) * variance
        return np.asarray(total)


class Quotient(Binary):
    """A quotient: (x + e)/(y + f) has no bound where f reaches y."""

    def __init__(self) -> None:
        super().__init__(np.divide, 2.0)

    def bound(
        self, operands: Arrays, output: np.ndarray, errors: Arrays, unit: float
    ) -> np.ndarray:
        """See the base class."""
        size = np.abs(operands[1]) - errors[1]
        with np.errstate(all="ignore"):
            passed = (errors[0] + np.abs(output) * errors[1]) / size
        known = (size > 0) | ((errors[0] == 0) & (errors[1] == 0))
        passed = np.where(size > 0, passed, np.where(known, 0.0, np.inf))
        return np.asarray(passed + self._ulps * unit * (np.abs(output) + passed))

    def slopes(self, operands: Arrays, output: np.ndarray) -> Arrays:
        """See the base class."""
        with np.errstate(all="ignore"):
            first = 1 / operands[1]
            return [
                np.nan_to_num(part, posinf=0.0, neginf=0.0) for part in (first, -output * first)
            ]


class Floored(Binary):
    """The floor of a quotient, or its remainder, which jumps where the quotient is an integer.

    Runtimes round the quotient x/y, and compute the remainder as x less a multiple of y.

    Args:
        function: The function.
        remainder: Whether it is the remainder, which jumps by y and not by 1.
    """

    def __init__(self, function: Combine, *, remainder: bool) -> None:
        super().__init__(function, 0.0)
        self._remainder = remainder

    def bound(
        self, operands: Arrays, output: np.ndarray, errors: Arrays, unit: float
    ) -> np.ndarray:
        """See the base class; the whole jump where an error of the quotient reaches an integer."""
        moved = super().bound(operands, output, errors, unit)
        jump, near = self._jump(operands, errors, unit)
        return np.asarray(
            np.where(near, np.maximum(moved, jump), moved) + self._own(operands, unit)
        )

    def spread(
        self, operands: Arrays, output: np.ndarray, variances: Arrays, unit: float
    ) -> np.ndarray:
        """See the base class: a step, if a few deviations reach it."""
        reach = [greatest_error(variance, unit) for variance in variances]
        jump, near = self._jump(operands, reach, unit)
        passed = np.zeros_like(output)
        if self._remainder:
            with np.errstate(all="ignore"):
                multiple = np.nan_to_num(np.floor(operands[0] / operands[1]), posinf=0.0)
            passed = variances[0] + np.square(multiple) * variances[1]
        passed = passed + ROUNDING * np.square(self._own(operands, 1.0))
        return np.where(near, np.square(jump / unit), passed).astype(output.dtype)

    def _jump(self, operands: Arrays, errors: Arrays, unit: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the size of a jump, and whether one is within reach of the errors."""
        x, y = (operand.astype(np.float64) for operand in operands)  # float32 rounds to integers
        with np.errstate(all="ignore"):
            quotient = np.abs(x / y)
            reach = 2 * unit * quotient + (errors[0] + quotient * errors[1]) / np.abs(y)
            away = np.abs(quotient - np.rint(quotient))
        exact = (away == 0) & (errors[0] == 0) & (errors[1] == 0)
        return (np.abs(y) if self._remainder else np.ones(1)), (away <= reach) & ~exact

    def _own(self, operands: Arrays, unit: float) -> np.ndarray:
        """Return the error of a remainder x - n·y, or r + y where the signs of r and y differ."""
        x, y = map(np.abs, operands)
        return np.asarray(unit * (2 * x + y) if self._remainder else 0.0)


class Comparison(Elementwise):
    """A relation between two operands: 1 where it holds, else 0."""

    def __init__(self, relation: Combine) -> None:
        self._relation = relation

    def value(self, operands: Arrays) -> np.ndarray:
        """See the base class."""
        first, second = operands
        return self._relation(first, second).astype(np.result_type(first, second))

    def slopes(self, operands: Arrays, output: np.ndarray) -> Arrays:
        """See the base class."""
        return [np.zeros(1), np.zeros(1)]

    def bound(
        self, operands: Arrays, output: np.ndarray, errors: Arrays, unit: float
    ) -> np.ndarray:
        """One where the operands are nearer than their errors."""
        reach = errors[0] + errors[1]
        return np.where((reach > 0) & (np.abs(operands[0] - operands[1]) <= reach), 1.0, 0.0)

    def spread(
        self, operands: Arrays, output: np.ndarray, variances: Arrays, unit: float
    ) -> np.ndarray:
        """See the base class: a step of one, if a few deviations reach it."""
        reach = greatest_error(variances[0] + variances[1], unit)
        near = (reach > 0) & (np.abs(operands[0] - operands[1]) <= reach)
        return np.where(near, 1 / unit**2, 0.0).astype(output.dtype)


class Select(Elementwise):
    """The second operand where the first is not 0, else the third."""

    def value(self, operands: Arrays) -> np.ndarray:
        """See the base class."""
        condition, then, otherwise = operands
        chosen = np.where(condition != 0, then, otherwise)
        if chosen.dtype.kind != "f":
            return chosen
        return np.where(np.isnan(condition), np.asarray(np.nan, chosen.dtype), chosen)

    def slopes(self, operands: Arrays, output: np.ndarray) -> Arrays:
        """See the base class."""
        chosen = operands[0] != 0
        return [np.zeros(1), chosen.astype(np.float64), (~chosen).astype(np.float64)]

    def bound(
        self, operands: Arrays, output: np.ndarray, errors: Arrays, unit: float
    ) -> np.ndarray:
        """The error of the selected operand; of either one where the selection may be wrong."""
        condition, then, otherwise = operands
        passed = np.where(condition != 0, errors[1], errors[2])
        with np.errstate(invalid="ignore"):
            either = np.abs(then - otherwise) + errors[1] + errors[2]
        return np.where(errors[0] > 0, np.where(then == otherwise, passed, either), passed)

    def spread(
        self, operands: Arrays, output: np.ndarray, variances: Arrays, unit: float
    ) -> np.ndarray:
        """See the base class."""
        condition, then, otherwise = operands
        passed = np.where(condition != 0, variances[1], variances[2])
        with np.errstate(invalid="ignore"):
            moved = variances[0] * np.square(then - otherwise)
        return np.where(variances[0] > 0, passed + moved, passed)


class Affine(Operator):
    """S x + t with a scale and a shift for each channel."""

    def _parts(self, weights: Weights, attributes: Attributes, rank: int) -> list[np.ndarray]:
        axis = attributes["axis"] % rank
        shape = [-1 if i == axis else 1 for i in range(rank)]
        return [weights[role].reshape(shape) for role in ("scale", "shift")]

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        scale, shift = self._parts(weights, attributes, inputs[0].ndim)
        return np.asarray(scale * inputs[0] + shift)

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """One product, one sum, and the two constants rounded to the type once each."""
        scale, shift = map(np.abs, self._parts(at.weights, at.attributes, at.output.ndim))
        passed = scale * errors[0]
        return np.asarray(passed + 3 * unit * (scale * np.abs(at.inputs[0]) + shift + passed))

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        scale = np.square(self._parts(at.weights, at.attributes, at.output.ndim)[0])
        own = ROUNDING * (scale * np.square(at.inputs[0]) + np.square(at.output))
        return np.asarray(scale * variances[0] + own)

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        return [gradient * self._parts(at.weights, at.attributes, at.output.ndim)[0]]


def _remainder(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.where(y == 0, np.nan, np.mod(x, y))


ELEMENTWISE: dict[str, Operator] = {
    "add": Sum(np.add, 1.0),
    "subtract": Sum(np.subtract, -1.0),
    "multiply": Product(),
    "average": Average(),
    "maximum": Extreme(np.maximum),
    "minimum": Extreme(np.minimum),
    "divide": Quotient(),
    "power": Binary(np.power, 16.0),
    "floor_divide": Floored(np.floor_divide, remainder=False),
    "remainder": Floored(_remainder, remainder=True),
    "atan2": Binary(np.arctan2, 16.0),
    "greater": Comparison(np.greater),
    "greater_equal": Comparison(np.greater_equal),
    "less": Comparison(np.less),
    "less_equal": Comparison(np.less_equal),
    "equal": Comparison(np.equal),
    "not_equal": Comparison(np.not_equal),
    "select": Select(),
    "affine": Affine(),
}
