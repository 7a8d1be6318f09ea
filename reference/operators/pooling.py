"""Local and global pooling; means exclude padding, as in Keras and the runtimes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..rounding.arithmetic import Finish
from .base import (
    ROUNDING,
    Arrays,
    Attributes,
    Evaluated,
    Integers,
    Operator,
    Weights,
    as_given,
    channels_last,
    gamma,
)
from .linear import paddings, scattered, windows


def _framed(attributes: Attributes) -> dict[str, Any]:
    return {**attributes, "dilation": [1] * len(attributes["pool_size"])}


def _padded_windows(
    x: np.ndarray, attributes: Attributes, fill: float
) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """Return one view of (M, *S, C) for each window offset; padding is filled with ``fill``."""
    size, framed = attributes["pool_size"], _framed(attributes)
    pads = paddings(x.shape[1:-1], size, framed)
    if x.dtype.kind in "iu" and np.isinf(fill):
        fill = int(np.iinfo(x.dtype).min)
    x = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=fill)
    return windows(x, size, attributes["strides"], framed["dilation"])


def _pooled(x: np.ndarray, attributes: Attributes, fill: float, combine: Any) -> np.ndarray:
    """Combine the windows of (M, *S, C)."""
    total = None
    for _, part in _padded_windows(x, attributes, fill):
        total = part if total is None else combine(total, part)
    return np.asarray(total)


def pooled_sums(x: np.ndarray, attributes: Attributes) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of each window of (M, *S, C), and its number of values without padding."""
    total = _pooled(x, attributes, 0.0, np.add)
    return total, _pooled(np.ones_like(x[:1, ..., :1]), attributes, 0.0, np.add)


class _Mean(Operator):
    """A mean of K values: a sum of K terms times 1/K."""

    def _mean(self, x: np.ndarray, attributes: Attributes) -> np.ndarray:
        raise NotImplementedError

    def _passed(self, at: Evaluated, variances: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        return self._mean(inputs[0], attributes)

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """K - 1 additions, the reciprocal and the product are rounded."""
        terms = self._terms(at)
        passed = self._mean(errors[0], at.attributes)
        size = self._mean(np.abs(at.inputs[0]), at.attributes)
        return np.asarray(passed + gamma(terms + 1, unit) * (size + passed))

    def _terms(self, at: Evaluated) -> int:
        return at.inputs[0].size // max(at.output.size, 1)

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """See the base class: propagated variances, and the mean's own roundings."""
        terms = at.inputs[0].size / at.output.size
        carried = self._passed(at, variances[0]).reshape(at.output.shape)
        added = self._mean(ROUNDING / 2 * np.square(at.inputs[0]), at.attributes)
        return np.asarray(carried + added + ROUNDING * (terms / 3 + 2) * np.square(at.output))


class AveragePool(_Mean):
    """Means of windows."""

    def _mean(self, x: np.ndarray, attributes: Attributes) -> np.ndarray:
        total, count = pooled_sums(channels_last(x, attributes), attributes)
        return as_given(total / count, attributes, x.shape)

    def _terms(self, at: Evaluated) -> int:
        return int(np.prod(at.attributes["pool_size"]))

    def _passed(self, at: Evaluated, variances: np.ndarray) -> np.ndarray:
        """Return the variance of means of K values with independent errors: their mean over K."""
        mean = self._mean(variances, at.attributes)
        return mean * (mean.size / variances.size)

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        x, y = (channels_last(array, at.attributes) for array in (at.inputs[0], gradient))
        _, count = pooled_sums(x[:1], at.attributes)
        found = scattered(
            x, at.attributes["pool_size"], _framed(at.attributes), lambda *_: y / count
        )
        return [as_given(found, at.attributes, at.inputs[0].shape)]

    def integer(self, at: Integers) -> Finish:
        """See the base class: the mean of the integers, rounded half away from zero."""
        x = at.operands[0]
        x.same_steps(at.output)
        merged = x.integers.reshape(-1, *x.integers.shape[2:])
        sums, count = pooled_sums(merged, at.attributes)
        count = count.astype(np.int64)
        away = np.sign(sums) * ((np.abs(sums) + count // 2) // count)
        found = away.reshape(*x.integers.shape[:2], *away.shape[1:]).astype(np.int64)
        return lambda rule: at.output.saturated(found - x.point)


class _Max(Operator):
    """The greatest of K values."""

    def _max(self, x: np.ndarray, attributes: Attributes) -> np.ndarray:
        raise NotImplementedError

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        return self._max(inputs[0], attributes)

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        return self._max(errors[0], at.attributes)

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """Return the greatest variance among those that may be the greatest value."""
        return self._max(variances[0], at.attributes)


class MaxPool(_Max):
    """Greatest values of windows."""

    def _max(self, x: np.ndarray, attributes: Attributes) -> np.ndarray:
        y = _pooled(channels_last(x, attributes), attributes, -np.inf, np.maximum)
        return as_given(y, attributes, x.shape)

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        x, y, g = (
            channels_last(array, at.attributes) for array in (at.inputs[0], at.output, gradient)
        )
        parts = dict(_padded_windows(x, at.attributes, -np.inf))
        found = scattered(
            x,
            at.attributes["pool_size"],
            _framed(at.attributes),
            lambda offset, _: g * (parts[offset] == y),
        )
        return [as_given(found, at.attributes, at.inputs[0].shape)]

    def integer(self, at: Integers) -> Finish:
        """See the base class; padding is never the greatest."""
        x = at.operands[0]
        x.same_steps(at.output)
        merged = x.integers.reshape(-1, *x.integers.shape[2:]).astype(np.float64)
        largest = self._max(merged, at.attributes).astype(np.int64)
        found = largest.reshape(*x.integers.shape[:2], *largest.shape[1:])
        return lambda rule: at.output.saturated(found - x.point)


def _spatial(x: np.ndarray, attributes: Attributes) -> tuple[int, ...]:
    """Return the axes that global pooling reduces."""
    if attributes.get("data_format") == "channels_first":
        return tuple(range(2, x.ndim))
    return tuple(range(1, x.ndim - 1))


def _kept(at: Evaluated, array: np.ndarray) -> np.ndarray:
    """Return an array shaped like a global pooling's output, with the reduced axes of size one."""
    x = at.inputs[0]
    axes = _spatial(x, at.attributes)
    return array.reshape([1 if axis in axes else size for axis, size in enumerate(x.shape)])


class GlobalAveragePool(_Mean):
    """Means over all positions."""

    def _mean(self, x: np.ndarray, attributes: Attributes) -> np.ndarray:
        keepdims = attributes.get("keepdims", False)
        return np.asarray(x.mean(axis=_spatial(x, attributes), keepdims=keepdims))

    def _passed(self, at: Evaluated, variances: np.ndarray) -> np.ndarray:
        x, v = (channels_last(array, at.attributes) for array in (at.inputs[0], variances))
        samples, channels = x.shape[0], x.shape[-1]
        values, spread = (
            np.moveaxis(array.reshape(samples, -1, channels), 1, -1).reshape(samples * channels, -1)
            for array in (x, v)
        )
        return coherent_mean_variance(values, spread).reshape(samples, channels)

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        spread = _kept(at, gradient)
        return [np.broadcast_to(spread * (spread.size / at.inputs[0].size), at.inputs[0].shape)]


class GlobalMaxPool(_Max):
    """Greatest values over all positions."""

    def _max(self, x: np.ndarray, attributes: Attributes) -> np.ndarray:
        keepdims = attributes.get("keepdims", False)
        return np.asarray(x.max(axis=_spatial(x, attributes), keepdims=keepdims))

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        return [np.where(at.inputs[0] == _kept(at, at.output), _kept(at, gradient), 0.0)]


# Width of a group of equal values, relative to the greatest of the channel: ±16 float32 epsilons.
_EQUAL = 2.0**-18


def coherent_mean_variance(rows: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Return the variance of the mean of each row, if equal values have equal errors.

    Positions with equal inputs, such as all inner positions of a uniform image, have equal errors,
    which do not average out: (Σ_groups (Σ_group σ)²) / K², with one group for each value.

    Adding n equal values one by one also rounds in one direction. Each partial sum, on average half
    of the sum S, adds u |S| / 2, so n of them add n u |S| / 2 rather than √n times u |S| / 2. The
    variance of the mean S / K therefore exceeds that of independent roundings by
    u²/3 · mean²/4 · Σ_groups (n² - n). Zeros add nothing.

    Args:
        rows: (R, K) values.
        variances: (R, K) variances of their errors.
    """
    sigma = np.sqrt(variances)
    step = np.maximum(np.abs(rows).max(axis=1, keepdims=True) * _EQUAL, np.finfo(np.float32).tiny)
    level = rows / step
    level = np.where(np.abs(level) < 0.5, level, np.rint(level))  # small values, if exactly equal
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
    return np.asarray(squares + ROUNDING * adding)


POOLING: dict[str, Operator] = {
    "average_pool": AveragePool(),
    "max_pool": MaxPool(),
    "global_average_pool": GlobalAveragePool(),
    "global_max_pool": GlobalMaxPool(),
}
