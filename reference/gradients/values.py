"""Gradients of functions of single values, of several operands, and of what moves values."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from ..operators import OPERATORS
from ..operators.activations import ACTIVATIONS
from ..operators.base import Arrays, Attributes, Weights
from ..operators.shaping import SHAPING
from .base import Backward


def _pointwise(op: str) -> Backward:
    """Return the gradient of an element-wise function, by central differences."""

    def backward(
        inputs: Arrays,
        weights: Weights,
        attributes: Attributes,
        output: np.ndarray,
        gradient: np.ndarray,
    ) -> Arrays:
        step = 2.0**-20 * (np.abs(inputs[0]) + 2.0**-10)
        up, down = (
            OPERATORS[op].evaluate([inputs[0] + h], weights, attributes) for h in (step, -step)
        )
        return [gradient * (up - down) / (2 * step)]

    return backward


def _softmax(
    inputs: Arrays, weights: Weights, attributes: Attributes, y: np.ndarray, gradient: np.ndarray
) -> Arrays:
    axis = attributes.get("axis", -1)
    return [y * (gradient - np.sum(gradient * y, axis=axis, keepdims=True))]


def _log_softmax(
    inputs: Arrays, weights: Weights, attributes: Attributes, y: np.ndarray, gradient: np.ndarray
) -> Arrays:
    axis = attributes.get("axis", -1)
    return [gradient - np.exp(y) * np.sum(gradient, axis=axis, keepdims=True)]


def _moved(op: str) -> Backward:
    """Return the gradient of an operation that moves values: it moves their places."""

    def backward(
        inputs: Arrays,
        weights: Weights,
        attributes: Attributes,
        output: np.ndarray,
        gradient: np.ndarray,
    ) -> Arrays:
        ends = np.cumsum([0, *[x[0].size for x in inputs]])
        # Places count from one within a sample: zero is what padding brings in.
        places = [
            np.arange(start + 1, start + 1 + x[0].size, dtype=np.int64).reshape(1, *x.shape[1:])
            for start, x in zip(ends, inputs)
        ]
        read = OPERATORS[op].evaluate(places, weights, attributes).ravel()
        found = np.stack(
            [np.bincount(read, row.ravel(), int(ends[-1]) + 1)[1:] for row in gradient]
        )
        return [
            found[:, start:end].reshape(x.shape) for start, end, x in zip(ends, ends[1:], inputs)
        ]

    return backward


def _bilinear(
    inputs: Arrays, weights: Weights, attributes: Attributes, y: np.ndarray, gradient: np.ndarray
) -> Arrays:
    """Interpolation is a product with one matrix an axis, which is found by interpolating ones."""
    first = 2 if attributes.get("data_format") == "channels_first" else 1
    for axis, times in enumerate(attributes["size"], first):
        size = inputs[0].shape[axis]
        basis = np.eye(size)[:, :, None, None]
        one = {"size": [times, 1]}
        matrix = OPERATORS["upsample_bilinear"].evaluate([basis], {}, one)[:, :, 0, 0]
        gradient = np.moveaxis(np.moveaxis(gradient, axis, -1) @ matrix.T, -1, axis)
    return [gradient]


def _operands(inputs: Arrays, weights: Weights, attributes: Attributes) -> tuple[Arrays, int]:
    """Return all operands and the place of the first that is no constant."""
    if "constant" not in weights:
        return inputs, 0
    if attributes.get("constant_first", False):
        return [weights["constant"], *inputs], 1
    return [*inputs, weights["constant"]], 0


def _elementwise(slopes: Callable[[Arrays, np.ndarray], Arrays]) -> Backward:
    """Return the gradient of a function of several operands, from its slope by each of them."""

    def backward(
        inputs: Arrays,
        weights: Weights,
        attributes: Attributes,
        output: np.ndarray,
        gradient: np.ndarray,
    ) -> Arrays:
        operands, start = _operands(inputs, weights, attributes)
        parts = slopes(operands, output)[start : start + len(inputs)]
        return [_summed(gradient * part, x.shape) for part, x in zip(parts, inputs)]

    return backward


def _summed(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum over the axes along which an operand was repeated."""
    extra = tuple(range(array.ndim - len(shape)))
    repeated = tuple(
        axis for axis, size in enumerate(shape, len(extra)) if size == 1 and array.shape[axis] != 1
    )
    return array.sum(axis=extra + repeated).reshape(shape)


def _products(operands: Arrays, output: np.ndarray) -> Arrays:
    return [
        functools.reduce(np.multiply, [x for j, x in enumerate(operands) if j != i], np.ones(1))
        for i in range(len(operands))
    ]


def _affine(
    inputs: Arrays, weights: Weights, attributes: Attributes, y: np.ndarray, gradient: np.ndarray
) -> Arrays:
    rank = inputs[0].ndim
    axis = attributes["axis"] % rank
    return [gradient * weights["scale"].reshape([-1 if i == axis else 1 for i in range(rank)])]


def _ones(operands: Arrays, output: np.ndarray) -> Arrays:
    return [np.ones(1)] * len(operands)


def _signs(operands: Arrays, output: np.ndarray) -> Arrays:
    return [np.ones(1), *[-np.ones(1)] * (len(operands) - 1)]


def _chosen(operands: Arrays, output: np.ndarray) -> Arrays:
    return [(operand == output).astype(np.float64) for operand in operands]


ACTIVATING: dict[str, Backward] = {
    **{op: _pointwise(op) for op in ACTIVATIONS},
    "softmax": _softmax,
    "log_softmax": _log_softmax,
}

MOVING: dict[str, Backward] = {
    **{op: _moved(op) for op in SHAPING},
    "upsample_bilinear": _bilinear,
}

ELEMENTWISE: dict[str, Backward] = {
    "add": _elementwise(_ones),
    "subtract": _elementwise(_signs),
    "multiply": _elementwise(_products),
    "average": _elementwise(lambda operands, y: [np.full(1, 1 / len(operands))] * len(operands)),
    "maximum": _elementwise(_chosen),
    "minimum": _elementwise(_chosen),
    "affine": _affine,
}
