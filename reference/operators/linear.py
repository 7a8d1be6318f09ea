"""Convolutions and dense layers: one shift-and-multiply loop for every rank, kind and padding.

A sum of K products and a bias, computed in any order with unit roundoff u, is within
γ_{K+1} (|W|·|x| + |b|) of its exact value; errors of the inputs pass through |W|.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .base import ROUNDING, Arrays, Attributes, Operator, Weights, gamma

Apply = Callable[[np.ndarray, np.ndarray, Attributes], np.ndarray]


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's padding of one axis: what is odd goes to the end.

    Args:
        size: Input size.
        kernel: Kernel size, dilation included.
        stride: Stride.
    """
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def paddings(
    sizes: Sequence[int], kernel: Sequence[int], attributes: Attributes
) -> list[tuple[int, int]]:
    """Return the zero padding of every spatial axis: as named, or pairs given outright."""
    padding = attributes["padding"]
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, attributes["dilation"])]
    if not isinstance(padding, str):
        return [(before, after) for before, after in padding]
    if padding == "valid":
        return [(0, 0)] * len(sizes)
    if padding == "causal":
        return [(span - 1, 0) for span in spans]
    return [same_padding(*axis) for axis in zip(sizes, spans, attributes["strides"])]


def windows(
    x: np.ndarray, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """Return, for each kernel offset, the strided view of x that it multiplies."""
    spatial = x.shape[1 : 1 + len(kernel)]
    outs = [
        (size - (k - 1) * d - 1) // s + 1
        for size, k, s, d in zip(spatial, kernel, strides, dilation)
    ]
    found = []
    for offset in itertools.product(*(range(k) for k in kernel)):
        cut = tuple(
            slice(o * d, o * d + (n - 1) * s + 1, s)
            for o, d, s, n in zip(offset, dilation, strides, outs)
        )
        found.append((offset, x[(slice(None), *cut)]))
    return found


def _convolve(x: np.ndarray, kernel: np.ndarray, attributes: Attributes) -> np.ndarray:
    """Cross-correlate (N, *S, C) with (*K, C/groups, F)."""
    sizes = kernel.shape[:-2]
    pads = paddings(x.shape[1:-1], sizes, attributes)
    x = np.pad(x, [(0, 0), *pads, (0, 0)])
    groups = attributes.get("groups", 1)
    total: np.ndarray | None = None
    for offset, part in windows(x, sizes, attributes["strides"], attributes["dilation"]):
        weight = kernel[offset]
        if groups == 1:
            term = part @ weight
        else:
            split = part.reshape(*part.shape[:-1], groups, 1, -1)
            by_group = np.moveaxis(weight.reshape(weight.shape[0], groups, -1), 1, 0)
            term = (split @ by_group).reshape(*part.shape[:-1], -1)
        total = term if total is None else total + term
    assert total is not None
    return total


def _depthwise(x: np.ndarray, kernel: np.ndarray, attributes: Attributes) -> np.ndarray:
    """Cross-correlate (N, *S, C) with (*K, C, multiplier), channel by channel."""
    sizes = kernel.shape[:-2]
    pads = paddings(x.shape[1:-1], sizes, attributes)
    x = np.pad(x, [(0, 0), *pads, (0, 0)])
    total: Any = 0.0
    for offset, part in windows(x, sizes, attributes["strides"], attributes["dilation"]):
        total = total + part[..., None] * kernel[offset]
    return np.asarray(total).reshape(*total.shape[:-2], -1)


def _convolve_transposed(x: np.ndarray, kernel: np.ndarray, attributes: Attributes) -> np.ndarray:
    """Scatter (N, *S, C) through (*K, F, C): the gradient of a convolution by its input."""
    rank = kernel.ndim - 2
    strides, dilation = attributes["strides"], attributes["dilation"]
    spans = [(k - 1) * d + 1 for k, d in zip(kernel.shape, dilation)]
    sizes = x.shape[1 : 1 + rank]
    full = [(n - 1) * s + k for n, s, k in zip(sizes, strides, spans)]
    # As TensorFlow has it, a transposed convolution may be longer than what it writes to.
    room = [max(f, n * s) + s for f, n, s in zip(full, sizes, strides)]
    out = np.zeros((len(x), *room, kernel.shape[-2]), x.dtype)
    for offset in itertools.product(*(range(k) for k in kernel.shape[:rank])):
        cut = tuple(
            slice(o * d, o * d + (n - 1) * s + 1, s)
            for o, d, s, n in zip(offset, dilation, strides, sizes)
        )
        out[(slice(None), *cut)] += x @ kernel[offset].T
    wanted = attributes["output_sizes"]
    starts = [
        max(f - w, 0) // 2 if attributes["padding"] == "same" else 0 for f, w in zip(full, wanted)
    ]
    crop = tuple(slice(start, start + w) for start, w in zip(starts, wanted))
    return out[(slice(None), *crop)]


def _dense(x: np.ndarray, kernel: np.ndarray, attributes: Attributes) -> np.ndarray:
    """Multiply the last axis."""
    return x @ kernel


def _einsum(x: np.ndarray, kernel: np.ndarray, attributes: Attributes) -> np.ndarray:
    """Contract as the layer's equation says."""
    return np.einsum(attributes["equation"], x, kernel, optimize=True)


def _framed(apply: Apply, attributes: Attributes, x: np.ndarray, *rest: np.ndarray) -> np.ndarray:
    """Apply to channels-last samples, whatever the layer's data format and time axis."""
    first = attributes.get("data_format") == "channels_first"
    merged = attributes.get("time_distributed", False)
    steps = x.shape[:2]
    if merged:
        x = x.reshape(-1, *x.shape[2:])
    if first:
        x = np.moveaxis(x, 1, -1)
    y = apply(x, rest[0], attributes)
    if len(rest) > 1:
        y = y + rest[1]
    if first:
        y = np.moveaxis(y, -1, 1)
    return y.reshape(*steps, *y.shape[1:]) if merged else y


def _bias_axes(bias: np.ndarray, output: np.ndarray, attributes: Attributes) -> np.ndarray:
    """Return a bias in the shape that broadcasts against the output."""
    if attributes.get("data_format") != "channels_first":
        return bias
    axis = 2 if attributes.get("time_distributed", False) else 1
    return bias.reshape([-1 if i == axis else 1 for i in range(output.ndim)])


def _products(kernel: np.ndarray, output_axes: int) -> int:
    """Return how many products one output element sums."""
    return int(np.prod(kernel.shape[:output_axes])) if kernel.ndim else 1


def _operator(apply: Apply, count: Callable[[np.ndarray, Attributes], int]) -> Operator:
    """Return the operator of a linear map with an optional bias."""

    def evaluate(inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        rest = [weights["kernel"], *([weights["bias"]] if "bias" in weights else [])]
        return _framed(apply, attributes, inputs[0], *rest)

    def error(
        inputs: Arrays,
        weights: Weights,
        attributes: Attributes,
        output: np.ndarray,
        errors: Arrays,
        unit: float,
    ) -> np.ndarray:
        kernel = np.abs(weights["kernel"])
        size = np.abs(inputs[0]) + errors[0]
        rest = [kernel, *([np.abs(weights["bias"])] if "bias" in weights else [])]
        rounding = gamma(count(kernel, attributes) + 1, unit) * _framed(
            apply, attributes, size, *rest
        )
        if not errors[0].any():
            return rounding
        return rounding + _framed(apply, attributes, errors[0], kernel)

    def variance(
        inputs: Arrays,
        weights: Weights,
        attributes: Attributes,
        output: np.ndarray,
        variances: Arrays,
        unit: float,
    ) -> np.ndarray:
        # Adding K products one by one rounds K partial sums. As a random walk from the bias b to
        # y, the k-th has at t = k/K the expected square ((1-t) b + t y)² + t Σ(wx)²; the mean over
        # t is (b² + b y + y²)/3 + Σ(wx)²/2.
        kernel = weights["kernel"]
        terms = count(kernel, attributes)
        squares = variances[0] + ROUNDING * terms / 2 * np.square(inputs[0])
        walked = _framed(apply, attributes, squares, np.square(kernel))
        ends = np.square(output)
        if "bias" in weights:
            start = _bias_axes(weights["bias"], output, attributes)
            ends = ends + start * (start + output)
        return walked + ROUNDING * (terms / 3 * ends + np.square(output))

    return Operator(evaluate, error, variance)


def _einsum_products(kernel: np.ndarray, attributes: Attributes) -> int:
    """Return the size of the contracted axes of an einsum."""
    operands, result = attributes["equation"].replace("...", "").split("->")
    labels = operands.split(",")[1]
    return int(np.prod([n for n, label in zip(kernel.shape, labels) if label not in result]))


LINEAR = {
    "conv": _operator(_convolve, lambda k, a: int(np.prod(k.shape[:-1]))),
    "depthwise_conv": _operator(_depthwise, lambda k, a: int(np.prod(k.shape[:-2]))),
    "conv_transpose": _operator(
        _convolve_transposed, lambda k, a: int(np.prod(k.shape[:-2])) * k.shape[-1]
    ),
    "dense": _operator(_dense, lambda k, a: k.shape[0]),
    "einsum": _operator(_einsum, _einsum_products),
}
