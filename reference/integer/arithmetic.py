"""The ways in which runtimes bring exact integer sums to the steps of their result.

With real = s (q - z) for the inputs x, w and the output y, a linear op sums

    a = Σ (q_x - z_x) q_w + q_b            exactly, in 32 bits
    q_y = z_y + round(a · M),  M = s_x s_w / s_y

and `rounded` below is what a runtime makes of a · M. Fixed-point rules write M = m 2^(e-31) with an
integer m in [2^30, 2^31), the nearest to M (TFLite, `QuantizeMultiplier`).
"""

from __future__ import annotations

import abc
from typing import ClassVar

import numpy as np

Ints = np.ndarray
Scales = np.ndarray


class Arithmetic(abc.ABC):
    """One rule of rounding.

    Attributes:
        name: What the reports call it.
        says: What it does and who does so, to follow "int8 arithmetic:".
    """

    name: ClassVar[str]
    says: ClassVar[str]

    @abc.abstractmethod
    def rounded(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """Return round(sums · x w / y).

        Args:
            sums: Exact integers, channels last.
            x: float32 scale of the input.
            w: float32 scales of the weights, one or one a channel; 1 where there are none.
            y: float32 scale of the output.
        """

    @abc.abstractmethod
    def added(self, a: Ints, b: Ints, scales: tuple[Scales, Scales, Scales]) -> Ints:
        """Return round(a s_a / s_y + b s_b / s_y) for integers less their zero points.

        Args:
            a: First operand.
            b: Second operand.
            scales: float32 s_a, s_b, s_y.
        """

    @abc.abstractmethod
    def quantized(self, values: np.ndarray, y: Scales) -> Ints:
        """Return round(values / y) for float32 numbers."""

    def requantized(self, values: Ints, x: Scales, y: Scales) -> Ints:
        """Return round(values · x / y): integers less their zero point in other steps."""
        return self.rounded(values, x, np.ones(1, np.float32), y)

    def dequantized(self, values: Ints, point: int, x: Scales) -> np.ndarray:
        """Return (values - point) · x in float32: one exact difference, one product."""
        return np.asarray((values - point).astype(np.float32) * x)

    @abc.abstractmethod
    def averaged(self, sums: Ints, count: int, x: Scales, y: Scales) -> Ints:
        """Return round(sums / count · x / y): the mean of ``count`` integers in other steps."""


def multiplier(scale: Scales | float) -> tuple[Ints, Ints]:
    """Return m and e with scale = m 2^(e-31), m the nearest integer in [2^30, 2^31)."""
    mantissa, exponent = np.frexp(np.asarray(scale, np.float64))
    # std::round goes away from zero; scales are positive.
    fixed = np.floor(mantissa * 2.0**31 + 0.5).astype(np.int64)
    over = fixed == 1 << 31
    fixed, exponent = np.where(over, fixed >> 1, fixed), np.where(over, exponent + 1, exponent)
    least = exponent < -31
    return np.where(least, 0, fixed), np.where(least, 0, exponent).astype(np.int64)


class FixedPoint(Arithmetic):
    """Integer multiplication by m, then a shift: TFLite's portable kernels."""

    @abc.abstractmethod
    def times(self, values: Ints, m: Ints, e: Ints) -> Ints:
        """Return values · m 2^(e-31), rounded."""

    def rounded(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """M is computed in double precision from the float32 scales."""
        scale = x.astype(np.float64) * w.astype(np.float64) / y.astype(np.float64)
        return self.times(sums, *multiplier(scale))

    def added(self, a: Ints, b: Ints, scales: tuple[Scales, Scales, Scales]) -> Ints:
        """Both operands, shifted left by 20 bits, are brought to twice the larger of their steps.

        Source: TFLite, `kernels/add.cc` and `internal/reference/integer_ops/add.h`.
        """
        left, right, out = (float(scale) for scale in scales)
        twice = 2 * max(left, right)
        total = self.times(a << 20, *multiplier(left / twice))
        total = total + self.times(b << 20, *multiplier(right / twice))
        return self.times(total, *multiplier(twice / ((1 << 20) * out)))

    def quantized(self, values: np.ndarray, y: Scales) -> Ints:
        """Divide in float32, round half away from zero (TFLite, `AffineQuantize`)."""
        scaled = _bounded(values / y)
        return np.asarray(np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int64))

    def averaged(self, sums: Ints, count: int, x: Scales, y: Scales) -> Ints:
        """The division by the count is folded into m with as many bits as the shift has to spare.

        Source: TFLite, `kernels/internal/reference/integer_ops/mean.h`.
        """
        m, e = multiplier(x.astype(np.float64) / y.astype(np.float64))
        spare = min(count.bit_length() - 1, 32, 31 + int(e))
        return self.times(sums, (m << spare) // count, e - spare)


class _TwoRoundings(FixedPoint):
    """Rounds the upper half of the doubled product, v m / 2^31, then the shift that is left."""

    def times(self, values: Ints, m: Ints, e: Ints) -> Ints:
        """A shift to the left comes before the product, one to the right after it."""
        product = (values << np.maximum(e, 0)) * m
        return self.shifted((product + (1 << 30)) >> 31, np.maximum(-e, 0))

    @abc.abstractmethod
    def shifted(self, high: Ints, right: Ints) -> Ints:
        """Return high / 2^right, rounded."""


class AwayFromZero(_TwoRoundings):
    """The second rounding takes a half away from zero.

    Source: gemmlowp, `SaturatingRoundingDoublingHighMul` and `RoundingDivideByPOT`, as TFLite's
    `MultiplyByQuantizedMultiplier` joins them. (The former's own way with halves makes no
    difference: an odd multiple of 2^30 has no product with m of 31 bits, unless m is 2^30.)
    """

    name = "double"
    says = (
        "two roundings of a fixed-point product, half away from zero (as TFLite's portable kernels)"
    )

    def shifted(self, high: Ints, right: Ints) -> Ints:
        """See above."""
        half = (np.int64(1) << right) >> 1
        return np.asarray(np.sign(high) * ((np.abs(high) + half) >> right))


class Upward(_TwoRoundings):
    """The second rounding takes a half upward: add half a step, shift arithmetically.

    Source: ruy, the matrix product behind TFLite's optimized kernels (`kernel_avx2_fma.cc`).
    """

    name = "double, half up"
    says = "two roundings of a fixed-point product, half up (as TFLite's optimized kernels on x86)"

    def dequantized(self, values: Ints, point: int, x: Scales) -> np.ndarray:
        """Two products and a difference in float32, as measured of LiteRT 2.3 on x86."""
        return np.asarray(values.astype(np.float32) * x - np.float32(point) * x)

    def shifted(self, high: Ints, right: Ints) -> Ints:
        """See above."""
        return np.asarray((high + ((np.int64(1) << right) >> 1)) >> right)


class SingleRounding(FixedPoint):
    """One rounding of the whole product: (v m + 2^(30-e)) >> (31 - e), half up.

    Source: TFLite built with TFLITE_SINGLE_ROUNDING, `kernels/internal/common.cc`; ruy,
    `apply_multiplier.cc`.
    """

    name = "single"
    says = "one rounding of a fixed-point product, half up (as TFLite's one-rounding build)"

    def times(self, values: Ints, m: Ints, e: Ints) -> Ints:
        """See above."""
        shift = 31 - e
        return np.asarray((values * m + (np.int64(1) << (shift - 1))) >> shift)


class Float32(Arithmetic):
    """Multiply in float32 and round to the nearest integer, ties to even.

    Source: XNNPACK, `qs8-qc8w` kernels with `fp32` requantization; ONNX Runtime, MLAS
    `RequantizeOutput`.
    """

    name = "float"
    says = "fp32 multiply, round to nearest even (as XNNPACK and ONNX Runtime)"

    def rounded(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """M = (s_x s_w) / s_y, each operation in float32; the sum is rounded to float32 first."""
        return _nearest(sums.astype(np.float32) * (x * w / y))

    def added(self, a: Ints, b: Ints, scales: tuple[Scales, Scales, Scales]) -> Ints:
        """The one fixed-point op of XNNPACK: both ratios in 21 bits, one shift, half up.

        Source: XNNPACK, `xnn_init_qs8_add_minmax_scalar_params`.
        """
        left, right, out = scales
        ratios = np.float32(left / out), np.float32(right / out)
        shift = 20 - (int(np.frexp(max(ratios))[1]) - 1)
        first, second = (int(np.rint(np.float64(ratio) * 2.0**shift)) for ratio in ratios)
        return (a * first + b * second + (1 << (shift - 1))) >> shift

    def quantized(self, values: np.ndarray, y: Scales) -> Ints:
        """Multiply by the reciprocal of the scale, both in float32."""
        return _nearest(values * (np.float32(1) / y))

    def requantized(self, values: Ints, x: Scales, y: Scales) -> Ints:
        """Fixed-point as addition is: the ratio in steps of 1/256, one shift, half up.

        Source: XNNPACK, `xnn_init_qs8_cvt_scalar_params`.
        """
        ratio = np.rint(np.float32(256) * (x / y)).astype(np.int64)
        return (values * ratio + (1 << 7)) >> 8

    def averaged(self, sums: Ints, count: int, x: Scales, y: Scales) -> Ints:
        """As any sum, with the count in the scale."""
        return _nearest(sums.astype(np.float32) * (x / (y * np.float32(count))))


def _bounded(values: np.ndarray) -> np.ndarray:
    """Return what any type of 8 bits saturates at, in place of numbers too large for an integer."""
    return np.clip(values, -(2.0**20), 2.0**20)


def _nearest(values: np.ndarray) -> Ints:
    """Return the nearest integers, ties to even."""
    return np.asarray(np.rint(_bounded(values)).astype(np.int64))


RULES: tuple[Arithmetic, ...] = (Float32(), AwayFromZero(), Upward(), SingleRounding())
