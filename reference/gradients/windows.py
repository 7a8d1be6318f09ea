"""Gradients of what looks through windows or multiplies by a kernel: layers and pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..operators.base import Arrays, Attributes, Weights
from ..operators.linear import paddings, windows
from .base import Backward


def _linear(
    transposed: Callable[[np.ndarray, np.ndarray, Attributes, np.ndarray], np.ndarray],
) -> Backward:
    """Return the gradient of a linear layer, whatever its data format and time axis."""

    def backward(
        inputs: Arrays,
        weights: Weights,
        attributes: Attributes,
        output: np.ndarray,
        gradient: np.ndarray,
    ) -> Arrays:
        x, merged = inputs[0], attributes.get("time_distributed", False)
        steps = x.shape[:2]
        if merged:
            x = x.reshape(-1, *x.shape[2:])
            gradient = gradient.reshape(-1, *gradient.shape[2:])
        first = attributes.get("data_format") == "channels_first"
        if first:
            x, gradient = np.moveaxis(x, 1, -1), np.moveaxis(gradient, 1, -1)
        found = transposed(x, weights["kernel"], attributes, gradient)
        if first:
            found = np.moveaxis(found, -1, 1)
        return [found.reshape(*steps, *found.shape[1:]) if merged else found]

    return backward


def _windowed(
    x: np.ndarray,
    sizes: Any,
    attributes: Attributes,
    add: Callable[[tuple[int, ...], np.ndarray], np.ndarray],
) -> np.ndarray:
    """Add what each offset of a window sends back to the places it read."""
    dilation = attributes.get("dilation", [1] * len(sizes))
    framed = {**attributes, "dilation": dilation}
    pads = paddings(x.shape[1:-1], sizes, framed)
    room = [n + before + after for n, (before, after) in zip(x.shape[1:-1], pads)]
    whole = np.zeros((len(x), *room, x.shape[-1]))
    for offset, part in windows(whole, sizes, attributes["strides"], dilation):
        part += add(offset, part)
    crop = tuple(slice(before, before + n) for n, (before, _) in zip(x.shape[1:-1], pads))
    return whole[(slice(None), *crop)]


def _conv(
    x: np.ndarray, kernel: np.ndarray, attributes: Attributes, gradient: np.ndarray
) -> np.ndarray:
    groups = attributes.get("groups", 1)
    split = gradient.reshape(*gradient.shape[:-1], groups, 1, -1)

    def sent(offset: tuple[int, ...], part: np.ndarray) -> np.ndarray:
        weight = kernel[offset]
        if groups == 1:
            return gradient @ weight.T
        by_group = np.transpose(weight.reshape(weight.shape[0], groups, -1), (1, 2, 0))
        return np.asarray((split @ by_group).reshape(part.shape))

    return _windowed(x, kernel.shape[:-2], attributes, sent)


def _depthwise(
    x: np.ndarray, kernel: np.ndarray, attributes: Attributes, gradient: np.ndarray
) -> np.ndarray:
    split = gradient.reshape(*gradient.shape[:-1], *kernel.shape[-2:])
    return _windowed(
        x, kernel.shape[:-2], attributes, lambda offset, _: np.sum(split * kernel[offset], axis=-1)
    )


def _conv_transpose(
    x: np.ndarray, kernel: np.ndarray, attributes: Attributes, gradient: np.ndarray
) -> np.ndarray:
    """Gather what was scattered: the convolution that this one is the transpose of."""
    rank = kernel.ndim - 2
    strides, dilation = attributes["strides"], attributes["dilation"]
    spans = [(k - 1) * d + 1 for k, d in zip(kernel.shape, dilation)]
    sizes, wanted = x.shape[1 : 1 + rank], attributes["output_sizes"]
    full = [(n - 1) * s + k for n, s, k in zip(sizes, strides, spans)]
    same = attributes["padding"] == "same"
    pads = []
    for f, w, n, s in zip(full, wanted, sizes, strides):
        start = max(f - w, 0) // 2 if same else 0
        pads.append((start, max(f, n * s) + s - start - w))
    padded = np.pad(gradient, [(0, 0), *pads, (0, 0)])
    total = np.zeros_like(x, dtype=np.float64)
    for offset in np.ndindex(*kernel.shape[:rank]):
        cut = tuple(
            slice(o * d, o * d + (n - 1) * s + 1, s)
            for o, d, s, n in zip(offset, dilation, strides, sizes)
        )
        total += padded[(slice(None), *cut)] @ kernel[offset]
    return total


def _einsum(
    x: np.ndarray, kernel: np.ndarray, attributes: Attributes, gradient: np.ndarray
) -> np.ndarray:
    operands, result = attributes["equation"].split("->")
    first, second = operands.split(",")
    return np.einsum(f"{result},{second}->{first}", gradient, kernel, optimize=True)


def _framed(
    backward: Callable[[np.ndarray, Attributes, np.ndarray, np.ndarray], np.ndarray],
) -> Backward:
    """Return the gradient of a pooling in any data format."""

    def whole(
        inputs: Arrays,
        weights: Weights,
        attributes: Attributes,
        output: np.ndarray,
        gradient: np.ndarray,
    ) -> Arrays:
        if attributes.get("data_format") != "channels_first":
            return [backward(inputs[0], attributes, output, gradient)]
        moved = [np.moveaxis(array, 1, -1) for array in (inputs[0], output, gradient)]
        return [np.moveaxis(backward(moved[0], attributes, moved[1], moved[2]), -1, 1)]

    return whole


def _average_pool(
    x: np.ndarray, attributes: Attributes, y: np.ndarray, gradient: np.ndarray
) -> np.ndarray:
    last = {key: value for key, value in attributes.items() if key != "data_format"}
    ones = np.ones((1, *x.shape[1:-1], 1))
    # The mean counts no padding: a window that sees only itself tells how many places it has.
    count = np.zeros((1, *y.shape[1:-1], 1))
    size = attributes["pool_size"]
    framed = {**last, "dilation": [1] * len(size)}
    pads = paddings(x.shape[1:-1], size, framed)
    padded = np.pad(ones, [(0, 0), *pads, (0, 0)])
    for _, part in windows(padded, size, attributes["strides"], framed["dilation"]):
        count = count + part
    return _windowed(x, size, last, lambda offset, part: gradient / count)


def _max_pool(
    x: np.ndarray, attributes: Attributes, y: np.ndarray, gradient: np.ndarray
) -> np.ndarray:
    size = attributes["pool_size"]
    framed = {**attributes, "dilation": [1] * len(size)}
    pads = paddings(x.shape[1:-1], size, framed)
    padded = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=-np.inf)
    parts = dict(windows(padded, size, attributes["strides"], framed["dilation"]))
    return _windowed(x, size, attributes, lambda offset, _: gradient * (parts[offset] == y))


def _global(inputs: Arrays, attributes: Attributes, *arrays: np.ndarray) -> Arrays:
    """Return arrays of a global pooling with the axes that it reduced."""
    x = inputs[0]
    first = attributes.get("data_format") == "channels_first"
    axes = tuple(range(2, x.ndim) if first else range(1, x.ndim - 1))
    shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    return [array.reshape(shape) for array in arrays]


def _global_average(
    inputs: Arrays, weights: Weights, attributes: Attributes, y: np.ndarray, gradient: np.ndarray
) -> Arrays:
    (spread,) = _global(inputs, attributes, gradient)
    share = spread.size / inputs[0].size
    return [np.broadcast_to(spread * share, inputs[0].shape)]


def _global_max(
    inputs: Arrays, weights: Weights, attributes: Attributes, y: np.ndarray, gradient: np.ndarray
) -> Arrays:
    most, spread = _global(inputs, attributes, y, gradient)
    return [np.where(inputs[0] == most, spread, 0.0)]


LINEAR: dict[str, Backward] = {
    "conv": _linear(_conv),
    "depthwise_conv": _linear(_depthwise),
    "conv_transpose": _linear(_conv_transpose),
    "dense": _linear(lambda x, kernel, attributes, gradient: gradient @ kernel.T),
    "einsum": _linear(_einsum),
}

POOLING: dict[str, Backward] = {
    "average_pool": _framed(_average_pool),
    "max_pool": _framed(_max_pool),
    "global_average_pool": _global_average,
    "global_max_pool": _global_max,
}
