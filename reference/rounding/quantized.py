"""Quantized numbers: integers together with the real numbers that they represent."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ...artifacts.graphs.base import Quantization
from .fixed_point import away_from_zero

Ints = np.ndarray
Scales = np.ndarray

_BEYOND = 1 << 20  # beyond every 16-bit integer minus its zero point


class NotKnownError(Exception):
    """The integers of an operator cannot be computed here; the message says why."""


class FloatsError(NotKnownError):
    """The operator reads floats where its integer form is computed."""


def same_steps(first: Quantization, other: Quantization) -> bool:
    """Return whether two tensors have the same scale and zero point."""
    return bool(first.scales[0] == other.scales[0] and first.zero_points[0] == other.zero_points[0])


def require_same_steps(first: Quantization, other: Quantization) -> None:
    """Raise `NotKnownError` unless two tensors have the same scale and zero point."""
    if not same_steps(first, other):
        raise NotKnownError("the steps change where integers are only moved")


class _Stepped:
    """Properties of the steps of integers."""

    steps: Quantization

    @property
    def point(self) -> int:
        """The zero point."""
        return int(self.steps.zero_points[0])

    @property
    def scale(self) -> Scales:
        """The scales in float32, the type in which files store them."""
        return self.steps.scales.astype(np.float32)

    @property
    def bits(self) -> int:
        """Size of one integer."""
        return 8 * self.steps.dtype.itemsize


@dataclass(frozen=True)
class Quantized(_Stepped):
    """Integers with their steps.

    Attributes:
        integers: (P, …) integers; for a kernel, exact integers in float64.
        steps: Their scale and zero point; for a kernel or bias, one scale per channel.
    """

    integers: Ints
    steps: Quantization

    @property
    def centred(self) -> Ints:
        """The integers minus their zero point."""
        return self.integers - self.point

    def __neg__(self) -> Quantized:
        return Quantized(-self.centred, replace(self.steps, zero_points=np.zeros(1, np.int64)))

    def same_steps(self, output: Output) -> None:
        """Raise `NotKnownError` unless the output has the same scale and zero point."""
        require_same_steps(self.steps, output.steps)


@dataclass(frozen=True)
class Output(_Stepped):
    """The steps of an operator's output, and the real numbers that a fused activation clips to."""

    steps: Quantization
    low: float = -np.inf
    high: float = np.inf

    def saturated(self, values: Ints) -> Ints:
        """Return integers with the zero point added, clipped to the type and the activation."""
        limits, point = np.iinfo(self.steps.dtype), self.point
        least, most = int(limits.min), int(limits.max)
        scale = np.float32(self.steps.scales[0])
        if self.low > -np.inf:
            low = np.asarray(np.float32(self.low) / scale)
            least = max(least, point + int(away_from_zero(low)))
        if self.high < np.inf:
            high = np.asarray(np.float32(self.high) / scale)
            most = min(most, point + int(away_from_zero(high)))
        return np.asarray(np.clip(values + point, least, most))

    @property
    def levels(self) -> Ints:
        """The possible results minus the zero point, ascending, without the least one."""
        least, most = self.saturated(np.array([-_BEYOND, _BEYOND])) - self.point
        return np.arange(least + 1, most + 1)

    def clipped(self, low: float, high: float) -> Output:
        """Return the same steps with narrower limits."""
        return replace(self, low=max(low, self.low), high=min(high, self.high))


def aligned(*operands: Quantized) -> list[Quantized]:
    """Return operands of equal rank, with axes of size one inserted after the axis of samples."""
    rank = max(operand.integers.ndim for operand in operands)
    return [
        replace(operand, integers=x.reshape(len(x), *[1] * (rank - x.ndim), *x.shape[1:]))
        for operand in operands
        for x in [operand.integers]
    ]


def quantized(values: np.ndarray, steps: Quantization) -> Ints:
    """Quantize float32 numbers: divide in float32, round to the nearest integer, ties to even."""
    scaled = np.rint(values / np.float32(steps.scales[0])).astype(np.float64)
    limits = np.iinfo(steps.dtype)
    bounded = np.clip(scaled + int(steps.zero_points[0]), limits.min, limits.max)
    return np.asarray(bounded.astype(np.int64))
