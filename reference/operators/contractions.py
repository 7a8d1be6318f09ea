"""Products of two values, both of which may depend on the inputs."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable

import numpy as np

from ..rounding.arithmetic import Arithmetic, Finish
from ..rounding.quantized import Ints, NotKnownError
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
    gamma,
    operands_of,
    summed,
    with_constant,
)
from .linear import Rescaling


class Bilinear(Operator):
    """Sums of K products of an element of each operand; one operand may be a constant."""

    @abc.abstractmethod
    def apply(self, x: np.ndarray, y: np.ndarray, attributes: Attributes) -> np.ndarray:
        """Return the product."""

    @abc.abstractmethod
    def transposed(
        self, x: np.ndarray, y: np.ndarray, attributes: Attributes, gradient: np.ndarray
    ) -> Arrays:
        """Return the gradients with respect to both operands."""

    @abc.abstractmethod
    def terms(self, x: np.ndarray, y: np.ndarray, attributes: Attributes) -> int:
        """Return K."""

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        (x, y), _ = operands_of(inputs, weights, attributes)
        return self.apply(x, y, attributes)

    def _parts(
        self, at: Evaluated, each: Arrays, constant: float
    ) -> tuple[Arrays, Arrays, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
        operands, _ = operands_of(at.inputs, at.weights, at.attributes)
        own = [
            np.broadcast_to(part, operand.shape)
            for part, operand in zip(with_constant(at, each, constant), operands)
        ]
        return operands, own, functools.partial(self.apply, attributes=at.attributes)

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """(|x| + e)(|y| + f) - |x||y| for the inputs' errors, plus γ_K (|x| + e)(|y| + f)."""
        (x, y), (e, f), apply = self._parts(at, errors, constant_error(at.attributes))
        x, y = np.abs(x), np.abs(y)
        passed = apply(e, y) + apply(x + e, f)
        return np.asarray(
            passed + gamma(self.terms(x, y, at.attributes), unit) * apply(x + e, y + f)
        )

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """See the base class; rounding of the sum as derived in `linear.Linear`."""
        own = constant_variance(at.attributes, unit)
        (x, y), (v, w), apply = self._parts(at, variances, own)
        x, y = np.square(x), np.square(y)
        terms = self.terms(x, y, at.attributes)
        walked = apply(v + ROUNDING * terms / 2 * x, y) + apply(x, w)
        return np.asarray(walked + ROUNDING * (terms / 3 + 1) * np.square(at.output))

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        (x, y), start = operands_of(at.inputs, at.weights, at.attributes)
        both = self.transposed(x, y, at.attributes, gradient)
        return both[start : start + len(at.inputs)]


class MatMul(Bilinear):
    """Matrix products over the last two axes; each matrix may be transposed first."""

    def _turned(self, x: np.ndarray, y: np.ndarray, attributes: Attributes) -> Arrays:
        flags = (attributes.get("transpose_first"), attributes.get("transpose_second"))
        return [
            np.swapaxes(array, -1, -2) if turned else array for array, turned in zip((x, y), flags)
        ]

    def apply(self, x: np.ndarray, y: np.ndarray, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        return np.matmul(*self._turned(x, y, attributes))

    def transposed(
        self, x: np.ndarray, y: np.ndarray, attributes: Attributes, gradient: np.ndarray
    ) -> Arrays:
        """See the base class."""
        first, second = self._turned(x, y, attributes)
        by = [
            np.matmul(gradient, np.swapaxes(second, -1, -2)),
            np.matmul(np.swapaxes(first, -1, -2), gradient),
        ]
        found = self._turned(by[0], by[1], attributes)
        return [summed(part, array.shape) for part, array in zip(found, (x, y))]

    def terms(self, x: np.ndarray, y: np.ndarray, attributes: Attributes) -> int:
        """See the base class."""
        return int(x.shape[-2 if attributes.get("transpose_first") else -1])

    def integer(self, at: Integers) -> Finish:
        """See the base class."""
        x, y = at.operands
        if x.integers.ndim != y.integers.ndim:
            raise NotKnownError("a product of matrices of different ranks")
        first, second = (operand.centred.astype(np.float64) for operand in at.operands)
        sums = self.apply(first, second, at.attributes).astype(np.int64)

        def finish(rule: Arithmetic) -> Ints:
            rescaled = self.rescaling(rule, at.output.bits)
            return at.output.saturated(rescaled(sums, x.scale, y.scale, at.output.scale))

        return finish

    def rescaling(self, rule: Arithmetic, bits: int, wide: bool = True) -> Rescaling:
        """Return the function of a rule that rescales exact sums, see `linear.Linear`."""
        return rule.matrices if bits == 8 else rule.matrices_wide


class Contraction(Bilinear):
    """Einstein summation of two operands by an equation."""

    def apply(self, x: np.ndarray, y: np.ndarray, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        return np.einsum(attributes["equation"], x, y, optimize=True)

    def transposed(
        self, x: np.ndarray, y: np.ndarray, attributes: Attributes, gradient: np.ndarray
    ) -> Arrays:
        """See the base class; the gradient is repeated along axes of only one operand."""
        operands, result = attributes["equation"].split("->")
        labels = operands.split(",")
        found = []
        for own, other, label, rest in (
            (x, y, labels[0], labels[1]),
            (y, x, labels[1], labels[0]),
        ):
            known = "".join(axis for axis in label if axis in result + rest)
            part = np.einsum(f"{result},{rest}->{known}", gradient, other, optimize=True)
            shape = [size if axis in known else 1 for axis, size in zip(label, own.shape)]
            found.append(np.broadcast_to(part.reshape(shape), own.shape))
        return found

    def terms(self, x: np.ndarray, y: np.ndarray, attributes: Attributes) -> int:
        """See the base class."""
        operands, result = attributes["equation"].split("->")
        first, second = operands.split(",")
        sizes = {**dict(zip(first, x.shape)), **dict(zip(second, y.shape))}
        return int(np.prod([size for axis, size in sizes.items() if axis not in result]))


CONTRACTIONS: dict[str, Operator] = {"matmul": MatMul(), "contract": Contraction()}
