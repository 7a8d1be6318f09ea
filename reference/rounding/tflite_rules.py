"""The rounding rules of TFLite's kernels, which multiply in fixed point."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np

from .arithmetic import Arithmetic, bounded, joint, multiplier_of, nearest
from .fixed_point import (
    away_from_zero,
    divided,
    high_product,
    log_softmax_of_8_bits,
    multiplier,
    softmax_of_8_bits,
)
from .quantized import Ints, Output, Quantized, Scales


class FixedPoint(Arithmetic):
    """Integer multiplication by m, then a shift: TFLite's portable kernels."""

    @abc.abstractmethod
    def times(self, values: Ints, m: Ints, e: Ints) -> Ints:
        """Return values · m 2^(e-31), rounded."""

    def rounded(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """M is computed in double precision from the float32 scales."""
        return self.times(sums, *multiplier_of(x, w, y))

    def scaled(self, values: Ints, ratio: float) -> Ints:
        """See the base class; a negative ratio's multiplier is negative."""
        return np.sign(ratio).astype(np.int64) * self.times(values, *multiplier(abs(ratio)))

    def added(self, a: Ints, b: Ints, scales: tuple[Scales, Scales, Scales], bits: int = 8) -> Ints:
        """Rescale both operands, shifted left, to twice the larger of their steps.

        The shift is 20 bits, or 15 for 16-bit integers. Source: TFLite, `kernels/add.cc` and
        `internal/reference/integer_ops/add.h`.
        """
        shift = 20 if bits == 8 else 15
        return self._added(a << shift, b << shift, scales, shift, 0)

    def _added(
        self, a: Ints, b: Ints, scales: tuple[Scales, Scales, Scales], shift: int, later: int
    ) -> Ints:
        """Return the sum of operands that `times` is to shift left by ``later`` of ``shift``."""
        left, right, out = (float(scale) for scale in scales)
        twice, total = 2 * max(left, right), np.zeros((), np.int64)
        for side, scale in ((a, left), (b, right)):
            m, e = multiplier(scale / twice)
            total = total + self.times(side, m, e + later)
        return self.times(total, *multiplier(twice / ((1 << shift) * out)))

    def quantized(self, values: np.ndarray, y: Scales) -> Ints:
        """Divide in float32, round half away from zero (TFLite, `AffineQuantize`)."""
        return away_from_zero(bounded(values / y)).astype(np.int64)

    def nearest(self, values: np.ndarray) -> Ints:
        """Half away from zero."""
        return away_from_zero(bounded(values)).astype(np.int64)

    def averaged(self, sums: Ints, count: int, x: Scales, y: Scales) -> Ints:
        """Include the division by the count in m, with as many extra bits as the shift allows.

        Source: TFLite, `kernels/internal/reference/integer_ops/mean.h`.
        """
        m, e = multiplier(x.astype(np.float64) / y.astype(np.float64))
        spare = min(count.bit_length() - 1, 32, 31 + int(e))
        return self.times(sums, (m << spare) // count, e - spare)


class AwayFromZero(FixedPoint):
    """Rounds the upper half of the doubled product, v m / 2^31, then the remaining right shift.

    The second rounding is half away from zero. A left shift is applied before the product. Source:
    gemmlowp, `SaturatingRoundingDoublingHighMul` and `RoundingDivideByPOT`, as combined in TFLite's
    `MultiplyByQuantizedMultiplier`.
    """

    name = "double"
    kernels = "TFLite's portable kernels"
    says = (
        "two roundings of a fixed-point product, half away from zero (as TFLite's portable kernels)"
    )

    def times(self, values: Ints, m: Ints, e: Ints) -> Ints:
        """See above."""
        return divided(high_product(values << np.maximum(e, 0), m), np.maximum(-e, 0))

    def dense(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """In double precision (TFLite, `reference/integer_ops/fully_connected.h`)."""
        return self.dense_wide(sums, x, w, y)

    def shares(self, x: Ints, scale: Any, beta: Any, y: Scales) -> Ints:
        """Entirely in fixed point (TFLite, `reference/softmax.h`)."""
        return softmax_of_8_bits(x, float(scale) * float(beta))

    def log_shares(self, x: Ints, scale: Any) -> Ints:
        """Entirely in fixed point (TFLite, `reference/integer_ops/log_softmax.h`)."""
        return log_softmax_of_8_bits(x, float(scale))


class Micro(AwayFromZero):
    """The portable kernels, but with dense layers in fixed point, like convolutions.

    Source: TFLite Micro, `kernels/fully_connected.cc`; TFLite's kernels before 2.17, which
    tflite-runtime 2.14 has on ARM.
    """

    name = "double, micro"
    kernels = "TFLite Micro"
    says = "two roundings of a fixed-point product, half away from zero (as TFLite Micro's kernels)"
    tables_roots = False

    def dense(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """In fixed point, as for a convolution."""
        return Arithmetic.dense(self, sums, x, w, y)

    def dense_wide(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """As for a convolution."""
        return self.rounded_wide(sums, x, w, y)

    def multiplied(self, products: Ints, a: Any, b: Any, y: Any) -> Ints:
        """The ratio is computed in double precision (`micro/kernels/mul_common.cc`)."""
        return self.scaled(products, float(a) * float(b) / float(y))


class Upward(AwayFromZero):
    """Convolutions and dense layers round half up: add half a step, shift arithmetically.

    Everything else is as in the portable kernels, unless stated here. Source: ruy, the matrix
    product behind TFLite's optimized kernels (`kernel_avx2_fma.cc`); TFLite,
    `internal/optimized/optimized_ops.h`.
    """

    name = "double, half up"
    kernels = "TFLite's optimized kernels on x86"
    says = "two roundings of a fixed-point product, half up (as TFLite's optimized kernels on x86)"

    def rounded(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """See above."""
        return self.times_upward(sums, *multiplier_of(x, w, y))

    def times_upward(self, values: Ints, m: Ints, e: Ints) -> Ints:
        """Return values · m 2^(e-31), with the second rounding half up."""
        high, right = high_product(values << np.maximum(e, 0), m), np.maximum(-e, 0)
        return np.asarray((high + ((np.int64(1) << right) >> 1)) >> right)

    def dense(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """In fixed point, as for a convolution."""
        return Arithmetic.dense(self, sums, x, w, y)

    def dense_narrow(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """As for 8 bits: ruy sums in 32 bits.

        Source: TFLite, `kernels/fully_connected.cc`, `EvalQuantized`; measured on TensorFlow 2.21.
        """
        return self.dense(sums, x, w, y)

    def depthwise(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """Groups of eight channels by vector instructions, the rest as in the portable kernels.

        Source: TFLite, `internal/optimized/optimized_ops.h`, `Quantize`.
        """
        eights = sums.shape[-1] // 8 * 8
        upward, portable = self.rounded(sums, x, w, y), super().rounded(sums, x, w, y)
        return np.where(np.arange(sums.shape[-1]) < eights, upward, portable)

    def transposed(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """As a depthwise convolution."""
        return self.depthwise(sums, x, w, y)

    def matrices(self, sums: Ints, x: Scales, w: Scales, y: Scales) -> Ints:
        """As the portable kernels."""
        return super().rounded(sums, *joint(x, w), y)

    def quantized(self, values: np.ndarray, y: Scales) -> Ints:
        """Groups of eight by the reciprocal, ties to even; the rest in double precision.

        Source: TFLite, `internal/optimized/optimized_ops.h`, `AffineQuantize`, with NEON's
        instructions or their equivalents on x86.
        """
        flat = values.reshape(len(values), -1)
        fine = y.astype(np.float64)
        found = nearest(flat * (1 / fine).astype(np.float32))
        rest = flat.shape[1] // 8 * 8
        found[:, rest:] = away_from_zero(bounded(flat[:, rest:] / fine))
        return found.reshape(values.shape)

    def dequantized(self, values: Ints, point: int, x: Scales) -> np.ndarray:
        """Groups of eight by two products and a difference in float32; the rest by one product.

        Source: TFLite, `internal/optimized/optimized_ops.h`, `Dequantize`.
        """
        found = super().dequantized(values, point, x).reshape(len(values), -1)
        flat = values.reshape(len(values), -1)
        eights = flat.shape[1] // 8 * 8
        found[:, :eights] = flat[:, :eights].astype(np.float32) * x - np.float32(point) * x
        return found.reshape(values.shape)

    def total(self, operands: Sequence[Quantized], output: Output) -> Ints:
        """Of 16-bit integers, shift groups of 16 by both shifts at once; not the rest.

        Source: TFLite, `internal/optimized/integer_ops/add.h`, `AddElementwiseInt16` with AVX2,
        which computes operands of equal shapes.
        """
        found = super().total(operands, output)
        a, b = (side.centred for side in operands)
        if output.bits == 8 or a.shape[1:] != b.shape[1:]:
            return found
        scales = (operands[0].scale[0], operands[1].scale[0], output.scale[0])
        together = output.saturated(self._added(a, b, scales, 15, 15))
        size = int(np.prod(found.shape[1:]))
        grouped = np.arange(size).reshape(found.shape[1:]) < size // 16 * 16
        return np.where(grouped, together, found)

    def difference(self, operands: Sequence[Quantized], output: Output) -> Ints:
        """As the portable kernels."""
        a, b = operands
        return super().total([a, -b], output)

    # By a table of float32 exponentials.
    shares, log_shares = Arithmetic.shares, Arithmetic.log_shares

    def averaged_places(self, sums: Ints, count: int, point: int, x: Scales, y: Scales) -> Ints:
        """Rescale the zero point to the steps of the result separately.

        Groups of sixteen channels are rounded by vector instructions, half up, the rest as in the
        portable kernels. Source: TFLite, `internal/optimized/integer_ops/mean.h`; the groups were
        measured on LiteRT 2.3.
        """
        factor = multiplier(float(x / (np.float32(count) * y)))
        whole, channels = sums + count * point, sums.shape[-1]
        grouped = np.arange(channels) < channels // 16 * 16
        total = np.where(grouped, self.sixteens(whole, *factor), self.times(whole, *factor))
        return total - int(away_from_zero(np.float32(point) * x / y))

    def sixteens(self, values: Ints, m: Ints, e: Ints) -> Ints:
        """Return values · m 2^(e-31) in a group of sixteen channels of such an average."""
        return self.times_upward(values, m, e)


class SingleRounding(FixedPoint):
    """One rounding of the whole product: (v m + 2^(30-e)) >> (31 - e), half up.

    Source: TFLite built with TFLITE_SINGLE_ROUNDING, `kernels/internal/common.cc`; ruy,
    `apply_multiplier.cc`.
    """

    name = "single"
    kernels = "TFLite's one-rounding build"
    says = "one rounding of a fixed-point product, half up (as TFLite's one-rounding build)"

    def times(self, values: Ints, m: Ints, e: Ints) -> Ints:
        """See above."""
        shift = 31 - e
        return np.asarray((values * m + (np.int64(1) << (shift - 1))) >> shift)
