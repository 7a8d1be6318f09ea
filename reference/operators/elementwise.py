"""Sums, products and extremes of several values or of a value and a constant, and affines."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from .base import ROUNDING, Arrays, Attributes, Operator, Weights


def _operands(inputs: Arrays, weights: Weights, attributes: Attributes) -> Arrays:
    """Return the operands in order; a constant operand is the weight "constant"."""
    if "constant" not in weights:
        return inputs
    first = attributes.get("constant_first", False)
    return [weights["constant"], *inputs] if first else [*inputs, weights["constant"]]


def _reduced(combine: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    def evaluate(inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        return functools.reduce(combine, _operands(inputs, weights, attributes))

    return evaluate


def _average(inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
    return np.asarray(functools.reduce(np.add, inputs) / len(inputs))


def _sum_error(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    errors: Arrays,
    unit: float,
) -> np.ndarray:
    """A sum of two is one rounding of the result; of more, each partial sum is rounded."""
    operands = _operands(inputs, weights, attributes)
    passed = functools.reduce(np.add, errors)
    if len(operands) == 2:
        return np.asarray(passed + unit * (np.abs(output) + passed))
    size = functools.reduce(np.add, [np.abs(operand) for operand in operands])
    return np.asarray(passed + len(operands) * unit * (size + passed))


def _average_error(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    errors: Arrays,
    unit: float,
) -> np.ndarray:
    size = functools.reduce(np.add, [np.abs(operand) for operand in inputs])
    passed = functools.reduce(np.add, errors)
    return np.asarray((passed + (len(inputs) + 1) * unit * (size + passed)) / len(inputs))


def _product_error(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    errors: Arrays,
    unit: float,
) -> np.ndarray:
    """(x + e)(y + f) - xy, rounded once for each multiplication."""
    operands = _operands(inputs, weights, attributes)
    known = {id(operand): error for operand, error in zip(inputs, errors)}
    grown = [np.abs(operand) + known.get(id(operand), 0.0) for operand in operands]
    most = functools.reduce(np.multiply, grown)
    return np.asarray((most - np.abs(output)) + (len(operands) - 1) * unit * most)


def _extreme_error(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    errors: Arrays,
    unit: float,
) -> np.ndarray:
    return np.asarray(functools.reduce(np.maximum, errors) + np.zeros_like(output))


def _on_axis(vector: np.ndarray, attributes: Attributes, rank: int) -> np.ndarray:
    """Return a per-channel vector in the shape that broadcasts along its axis."""
    axis = attributes["axis"] % rank
    return vector.reshape([-1 if i == axis else 1 for i in range(rank)])


def _affine(inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
    rank = inputs[0].ndim
    return np.asarray(
        _on_axis(weights["scale"], attributes, rank) * inputs[0]
        + _on_axis(weights["shift"], attributes, rank)
    )


def _affine_error(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    errors: Arrays,
    unit: float,
) -> np.ndarray:
    """S x + t: one product, one sum, and the two constants rounded to the type once each."""
    rank = inputs[0].ndim
    scale = np.abs(_on_axis(weights["scale"], attributes, rank))
    shift = np.abs(_on_axis(weights["shift"], attributes, rank))
    passed = scale * errors[0]
    return np.asarray(passed + 3 * unit * (scale * np.abs(inputs[0]) + shift + passed))


def _sum_variance(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    variances: Arrays,
    unit: float,
) -> np.ndarray:
    return np.asarray(functools.reduce(np.add, variances) + ROUNDING * np.square(output))


def _average_variance(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    variances: Arrays,
    unit: float,
) -> np.ndarray:
    passed = functools.reduce(np.add, variances) / len(inputs) ** 2
    return np.asarray(passed + 2 * ROUNDING * np.square(output))


def _product_variance(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    variances: Arrays,
    unit: float,
) -> np.ndarray:
    """Each factor's variance times the square of the others."""
    operands = _operands(inputs, weights, attributes)
    total = ROUNDING * np.square(output)
    for x, own in zip(inputs, variances):
        others = [np.square(operand) for operand in operands if operand is not x]
        total = total + functools.reduce(np.multiply, others, own)
    return np.asarray(total)


def _extreme_variance(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    variances: Arrays,
    unit: float,
) -> np.ndarray:
    return np.asarray(functools.reduce(np.maximum, variances) + np.zeros_like(output))


def _affine_variance(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    variances: Arrays,
    unit: float,
) -> np.ndarray:
    scale = np.square(_on_axis(weights["scale"], attributes, inputs[0].ndim))
    own = ROUNDING * (scale * np.square(inputs[0]) + np.square(output))
    return np.asarray(scale * variances[0] + own)


ELEMENTWISE = {
    "add": Operator(_reduced(np.add), _sum_error, _sum_variance),
    "subtract": Operator(_reduced(np.subtract), _sum_error, _sum_variance),
    "multiply": Operator(_reduced(np.multiply), _product_error, _product_variance),
    "average": Operator(_average, _average_error, _average_variance),
    "maximum": Operator(_reduced(np.maximum), _extreme_error, _extreme_variance),
    "minimum": Operator(_reduced(np.minimum), _extreme_error, _extreme_variance),
    "affine": Operator(_affine, _affine_error, _affine_variance),
}
