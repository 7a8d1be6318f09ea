"""The rules by which runtimes round exact integer sums to the steps of the result.

With real = s (q - z) for the inputs x, w and the output y, a linear op computes

    a = Σ (q_x - z_x) q_w + q_b            exactly, in 32 bits
    q_y = z_y + round(a · M),  M = s_x s_w / s_y

and `rounded` below is the runtime's rounding of a · M. Fixed-point rules write M as m 2^(e-31),
where m is the nearest integer in [2^30, 2^31) (TFLite, `QuantizeMultiplier`).
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from ..special_functions import rounded_once
from .fixed_point import away_from_zero, divided, multiplier
from .quantized import Ints, NotKnownError, Output, Quantized, Scales


class Arithmetic(abc.ABC):
    """One rounding rule.

    Attributes:
        name: Its name in reports.
        kernels: The kernels that follow it, as reports print them after "equal to the bit:".
        says: Description of the rule, as reports print it after "integer arithmetic:".
        tables_roots: Whether an inverse root of 16 bits is interpolated in a table; if not, it is
            computed in fixed point, as one of 8 bits.
        turn: Units in the last place of a tensor's largest number by which inexact floats are moved
            before they are rounded, which turns ties within this distance to one side.
    """

    name: ClassVar[str]
    kernels: ClassVar[str]
    says: ClassVar[str]
    turn: float = 0.0
    tables_roots: ClassVar[bool] = True

    def turned(self, turn: float) -> Arithmetic:
        """Return the same rule with other ties."""
        other = copy.copy(self)
        other.turn = turn
        return other

    def moved(self, values: np.ndarray) -> np.ndarray:
        """Return (P, …) inexact floats, moved by `turn`."""
        if not self.turn:
            return values
        places = tuple(range(1, values.ndim))
        size = np.abs(values).max(axis=places, keepdims=True).astype(np.float64)
        return np.asarray(values + self.turn * 2.0**-24 * size)

    def of_bits(self, bits: int) -> Arithmetic:
        """Return the rule of the same runtime for integers of ``bits`` bits."""
        return self

    @abc.abstractmethod
    def rounded(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """Return round(sums · x w / y).

        Args:
            sums: Exact integers, channels last.
            x: float32 scale of the input.
            w: float32 scales of the weights, one or one per channel; 1 without weights.
            y: float32 scale of the output.
        """

    def depthwise(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """Return the same for a depthwise convolution."""
        return self.rounded(sums, x, w, y)

    def dense(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """Return the same for a dense layer.

        If the weights have a single scale, the product of scales is computed in float32. Source:
        TFLite, `kernels/kernel_util.cc`, `GetQuantizedConvolutionMultipler`.
        """
        return self.rounded(sums, *joint(x, w), y)

    def transposed(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """Return the same for a transposed convolution."""
        return self.rounded(sums, x, w, y)

    def matrices(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """Return the same for a product of two matrices, neither of them constant."""
        return self.rounded(sums, *joint(x, w), y)

    def rounded_wide(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """Return the same for 64-bit sums of 16-bit integers.

        The multiplier has 15 bits; the result is rounded once, half up. Source: TFLite,
        `kernels/internal/common.cc`, `MultiplyByQuantizedMultiplier` for int64_t.
        """
        return times_wide(sums, *multiplier_of(x, w, y))

    def matrices_wide(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """Return the same for a product of two matrices, neither of them constant."""
        return self.rounded_wide(sums, *joint(x, w), y)

    def dense_wide(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """Return the same for a dense layer: in double precision, half away from zero.

        Source: TFLite, `reference/integer_ops/fully_connected.h`.
        """
        ratio = x.astype(np.float64) * w.astype(np.float64) / y.astype(np.float64)
        return away_from_zero(sums.astype(np.float64) * ratio).astype(np.int64)

    def dense_narrow(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """Return the same for a dense layer of 16-bit integers without a 64-bit bias."""
        return self.dense_wide(sums, x, w, y)

    def times(self, values: Ints, m: Ints, e: Ints) -> Ints:
        """Return values · m 2^(e-31), rounded, for ops that have such a multiplier of their own."""
        raise NotKnownError("a multiplier in fixed point")

    @abc.abstractmethod
    def scaled(self, values: Ints, ratio: float) -> Ints:
        """Return round(values · ratio) for a ratio in double precision."""

    def multiplied(self, products: Ints, a: Any, b: Any, y: Any) -> Ints:
        """Return products of two integers of the scales a and b in steps of y.

        The ratio is computed in float32. Source: TFLite, `kernels/mul.cc`.
        """
        return self.scaled(products, float(a * b / y))

    @abc.abstractmethod
    def added(self, a: Ints, b: Ints, scales: tuple[Scales, Scales, Scales], bits: int = 8) -> Ints:
        """Return round(a s_a / s_y + b s_b / s_y) for integers minus their zero points.

        Args:
            a: First operand.
            b: Second operand.
            scales: float32 s_a, s_b, s_y.
            bits: Size of the integers.
        """

    def total(self, operands: Sequence[Quantized], output: Output) -> Ints:
        """Return the sum of two operands in the steps of the output."""
        a, b = operands
        scales = (a.scale[0], b.scale[0], output.scale[0])
        return output.saturated(self.added(a.centred, b.centred, scales, output.bits))

    def difference(self, operands: Sequence[Quantized], output: Output) -> Ints:
        """Return the difference of two operands in the steps of the output."""
        a, b = operands
        return self.total([a, -b], output)

    @abc.abstractmethod
    def quantized(self, values: np.ndarray, y: Scales) -> Ints:
        """Return round(values / y) for float32 numbers."""

    def requantized(self, values: Ints, x: Scales, y: Scales) -> Ints:
        """Return round(values · x / y): integers minus their zero point, in other steps."""
        return self.rounded(values, x, np.ones(1, np.float32), y)

    def dequantized(self, values: Ints, point: int, x: Scales) -> np.ndarray:
        """Return (values - point) · x in float32: one exact difference, one product."""
        return np.asarray((values - point).astype(np.float32) * x)

    @abc.abstractmethod
    def averaged(self, sums: Ints, count: int, x: Scales, y: Scales) -> Ints:
        """Return round(sums / count · x / y): the mean of ``count`` integers in other steps."""

    def averaged_places(self, sums: Ints, count: int, point: int, x: Scales, y: Scales) -> Ints:
        """Return the same for a mean over the spatial axes that keeps these axes.

        Args:
            sums: Sums of integers minus the zero point.
            count: Number of integers in each sum.
            point: The zero point.
            x: Scale of the input.
            y: Scale of the output.
        """
        return self.averaged(sums, count, x, y)

    def leaky(self, values: Ints, positive: float, negative: float) -> Ints:
        """Return values times ``positive`` where they are not negative, else times ``negative``."""
        return np.where(values >= 0, self.scaled(values, positive), self.scaled(values, negative))

    def nearest(self, values: np.ndarray) -> Ints:
        """Return the integers of a table of float32 results."""
        return nearest(values)

    def shares(self, x: Ints, scale: Any, beta: Any, y: Scales) -> Ints:
        """Return the softmax of 8-bit integers on the last axis: a table of float32 exponentials.

        Source: TFLite, `internal/optimized/optimized_ops.h`, `Softmax` for 8 bits.
        """
        raised, sums = _exponentials(x, scale * beta)
        shares = raised * (np.float32(1) / (sums * y))
        return np.floor(shares + np.float32(0.5)).astype(np.int64)

    def log_shares(self, x: Ints, scale: Any) -> Ints:
        """Return the logarithm of the softmax of 8-bit integers in steps of 1/16, by that table.

        Source: TFLite, `internal/optimized/optimized_ops.h`, `LogSoftmax` for 8 bits.
        """
        step = np.float32(1 / 16)
        log = np.log(_exponentials(x, scale)[1].astype(np.float64)).astype(np.float32)
        top = x.max(axis=-1, keepdims=True).astype(np.float32)
        return nearest(scale / step * x.astype(np.float32) - (scale * top + log) / step)

    def resized(self, x: Ints, sizes: list[int], corners: bool, centres: bool) -> Ints:
        """Return (P, B, H, W, C) resized bilinearly, with positions and weights in 1/1024.

        Source: TFLite, `reference/resize_bilinear.h`, `ResizeBilinearInteger`.

        Args:
            x: Integers.
            sizes: Height and width of the result.
            corners: Whether corners are aligned.
            centres: Whether coordinates are those of half-pixel centres.
        """
        for axis, size in zip((2, 3), sizes):
            low, high, share = places_in_1024ths(x.shape[axis], size, corners, centres)
            share = share.reshape(-1, *[1] * (x.ndim - axis - 1))
            x = np.take(x, low, axis) * (1024 - share) + np.take(x, high, axis) * share
        return divided(x, 20)


# Rounds the exact results of an operator according to a rule.
Finish = Callable[[Arithmetic], Any]


def times_wide(values: Ints, m: Ints, e: Ints) -> Ints:
    """Return values · m 2^(e-31) for 64-bit integers: m reduced to 15 bits, rounded half up."""
    reduced = np.where(m < 0x7FFF0000, (m + (1 << 15)) >> 16, 0x7FFF)
    shift = 15 - e
    return np.asarray((values * reduced + (np.int64(1) << (shift - 1))) >> shift)


def _exponentials(x: Ints, scale: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return exp(scale (x - max x)) of 8-bit integers by a float32 table, and its sums in order."""
    table = rounded_once(np.exp)(-scale * np.arange(256, dtype=np.float32))
    raised = table[x.max(axis=-1, keepdims=True) - x]
    return raised, np.cumsum(raised, axis=-1, dtype=np.float32)[..., -1:]


def joint(x: Scales, w: Scales) -> tuple[Scales, Scales]:
    """Return x and w, or their float32 product and 1 if the weights have a single scale."""
    return (x * w, np.ones(1, np.float32)) if w.size == 1 else (x, w)


def multiplier_of(x: Scales, w: Scales, y: Scales) -> tuple[Ints, Ints]:
    """Return M = x w / y, computed in double precision, in fixed point."""
    return multiplier(x.astype(np.float64) * w.astype(np.float64) / y.astype(np.float64))


def places_in_1024ths(
    size: int, wanted: int, corners: bool, centres: bool
) -> tuple[Ints, Ints, Ints]:
    """Return two input positions and the weight of the second, for each output position."""
    step = (1024 * size + wanted // 2) // wanted
    if corners and wanted > 1:
        step = (1024 * (size - 1) + (wanted - 1) // 2) // (wanted - 1)
    at = np.arange(wanted) * step
    if centres:
        at = at + step // 2 - 512
    # Division in C truncates towards zero; negative positions are clipped to zero.
    low = np.maximum(at, 0) // 1024
    high = np.minimum(np.maximum(at + 1023, 0) // 1024, size - 1)
    return low, high, at - 1024 * low


def bounded(values: np.ndarray) -> np.ndarray:
    """Clip numbers too large for an integer to values at which any 8-bit type saturates."""
    return np.clip(values, -(2.0**20), 2.0**20)


def nearest(values: np.ndarray) -> Ints:
    """Return the nearest integers, ties to even."""
    return np.asarray(np.rint(bounded(values)).astype(np.int64))
