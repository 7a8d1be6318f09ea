"""Pooling, local and global; padding never counts in a mean, as Keras and the runtimes have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .base import ROUNDING, Arrays, Attributes, Operator, Weights, gamma
from .linear import paddings, windows


def _channels_last(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    return np.moveaxis(x, 1, -1) if attributes.get("data_format") == "channels_first" else x


def _restored(y: np.ndarray, attributes: Attributes) -> np.ndarray:
    return np.moveaxis(y, -1, 1) if attributes.get("data_format") == "channels_first" else y


def _pooled(x: np.ndarray, attributes: Attributes, fill: float, combine: Any) -> np.ndarray:
    """Combine the windows of (N, *S, C); padding has the value ``fill``."""
    size = attributes["pool_size"]
    ones = [1] * len(size)
    framed = {**attributes, "dilation": ones}
    pads = paddings(x.shape[1:-1], size, framed)
    x = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=fill)
    total = None
    for _, part in windows(x, size, attributes["strides"], ones):
        total = part if total is None else combine(total, part)
    return np.asarray(total)


def pooled_sums(x: np.ndarray, attributes: Attributes) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of each window of (N, *S, C), and how many values it has without padding."""
    total = _pooled(x, attributes, 0.0, np.add)
    return total, _pooled(np.ones_like(x[:1, ..., :1]), attributes, 0.0, np.add)


def _mean(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    total, count = pooled_sums(x, attributes)
    return np.asarray(total / count)


def _average(inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
    return _restored(_mean(_channels_last(inputs[0], attributes), attributes), attributes)


def _average_error(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    errors: Arrays,
    unit: float,
) -> np.ndarray:
    """A sum of K terms times 1/K: K - 1 additions, the reciprocal and the product are rounded."""
    terms = int(np.prod(attributes["pool_size"]))
    passed = _average([errors[0]], weights, attributes)
    size = _average([np.abs(inputs[0])], weights, attributes)
    return passed + gamma(terms + 1, unit) * (size + passed)


def _max(inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
    x = _channels_last(inputs[0], attributes)
    return _restored(_pooled(x, attributes, -np.inf, np.maximum), attributes)


def _max_error(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    errors: Arrays,
    unit: float,
) -> np.ndarray:
    return _max([errors[0]], weights, attributes)


def _spatial(x: np.ndarray, attributes: Attributes) -> tuple[int, ...]:
    """Return the axes that global pooling reduces."""
    if attributes.get("data_format") == "channels_first":
        return tuple(range(2, x.ndim))
    return tuple(range(1, x.ndim - 1))


def _global_average(inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
    axes = _spatial(inputs[0], attributes)
    return np.asarray(inputs[0].mean(axis=axes, keepdims=attributes.get("keepdims", False)))


def _global_average_error(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    errors: Arrays,
    unit: float,
) -> np.ndarray:
    terms = int(np.prod([inputs[0].shape[axis] for axis in _spatial(inputs[0], attributes)]))
    passed = _global_average([errors[0]], weights, attributes)
    size = _global_average([np.abs(inputs[0])], weights, attributes)
    return np.asarray(passed + gamma(terms + 1, unit) * (size + passed))


def _global_max(inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
    axes = _spatial(inputs[0], attributes)
    return np.asarray(inputs[0].max(axis=axes, keepdims=attributes.get("keepdims", False)))


def _global_max_error(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    errors: Arrays,
    unit: float,
) -> np.ndarray:
    return _global_max([errors[0]], weights, attributes)


Move = Callable[[Arrays, Weights, Attributes], np.ndarray]
# Values, their variances, attributes: what the variances make of the result's.
Passed = Callable[[np.ndarray, np.ndarray, Attributes], np.ndarray]


# Values of a channel count as equal within this part of the greatest: sixteen float32 roundings.
_EQUAL = 2.0**-18


def _independent(values: np.ndarray, variances: np.ndarray, attributes: Attributes) -> np.ndarray:
    """Return the variance of means of K values with independent errors: theirs over K."""
    mean = _average([variances], {}, attributes)
    return mean * (mean.size / variances.size)


def _coherent(values: np.ndarray, variances: np.ndarray, attributes: Attributes) -> np.ndarray:
    """Return the variance of global means, the errors of equal values added up.

    Positions that see the same, as all inner ones of an even image do, make the same error: there
    nothing averages out. (Σ_groups (Σ_group σ)²) / K², groups of equal values.

    Adding n equal values one by one rounds in one direction, too. Each partial sum, half the sum S
    on average, adds u |S| / 2, so n of them n u |S| / 2 and not √n of that: the mean S / K gets
    u²/3 · mean²/4 · Σ_groups (n² - n) beyond what independent roundings explain. Zeros add nothing.
    """
    x, v = (_channels_last(array, attributes) for array in (values, variances))
    samples, channels = x.shape[0], x.shape[-1]
    rows = np.moveaxis(x.reshape(samples, -1, channels), 1, -1).reshape(samples * channels, -1)
    sigma = np.sqrt(np.moveaxis(v.reshape(samples, -1, channels), 1, -1).reshape(rows.shape))
    step = np.maximum(np.abs(rows).max(axis=1, keepdims=True) * _EQUAL, np.finfo(np.float32).tiny)
    level = np.rint(rows / step)
    order = np.argsort(level, axis=1)
    level, sigma = (np.take_along_axis(array, order, axis=1) for array in (level, sigma))
    first = np.ones(level.shape, bool)
    first[:, 1:] = level[:, 1:] != level[:, :-1]
    starts = np.flatnonzero(first)
    together = np.add.reduceat(sigma.reshape(-1), starts)
    terms = rows.shape[1]
    row, count = starts // terms, np.diff(starts, append=first.size)
    squares = np.bincount(row, np.square(together), minlength=len(rows)) / terms**2
    pairs = np.where(level.reshape(-1)[starts] == 0, 0, count * (count - 1))
    adding = np.bincount(row, pairs, minlength=len(rows)) / 4 * np.square(rows.mean(axis=1))
    return np.asarray((squares + ROUNDING * adding).reshape(samples, channels))


def _mean_variance(mean: Move, passed: Passed) -> Callable[..., np.ndarray]:
    """Return the variance of a mean of K values: what is passed on, and its own roundings."""

    def variance(
        inputs: Arrays,
        weights: Weights,
        attributes: Attributes,
        output: np.ndarray,
        variances: Arrays,
        unit: float,
    ) -> np.ndarray:
        terms = inputs[0].size / output.size
        carried = passed(inputs[0], variances[0], attributes).reshape(output.shape)
        summed = mean([ROUNDING / 2 * np.square(inputs[0])], weights, attributes)
        return np.asarray(carried + summed + ROUNDING * (terms / 3 + 2) * np.square(output))

    return variance


def _max_variance(largest: Move) -> Callable[..., np.ndarray]:
    """Return the greatest variance among those that may be the greatest value."""

    def variance(
        inputs: Arrays,
        weights: Weights,
        attributes: Attributes,
        output: np.ndarray,
        variances: Arrays,
        unit: float,
    ) -> np.ndarray:
        return largest([variances[0]], weights, attributes)

    return variance


POOLING = {
    "average_pool": Operator(_average, _average_error, _mean_variance(_average, _independent)),
    "max_pool": Operator(_max, _max_error, _max_variance(_max)),
    "global_average_pool": Operator(
        _global_average, _global_average_error, _mean_variance(_global_average, _coherent)
    ),
    "global_max_pool": Operator(_global_max, _global_max_error, _max_variance(_global_max)),
}
