"""The arithmetic of TFLite's kernels with 16-bit activations and 8-bit weights.

Sums of such products exceed what float32 holds exactly. They are computed from the two bytes of
each input, ``x = 256 high + low``, whose sums are exact, and rescaled as pairs in 32-bit integers.
XNNPACK does not compute these operators, so `WideFloat` has the rounding of TFLite's optimized
kernels, to which LiteRT leaves them, and `WideDouble` that of its reference kernels.

Sources: TFLite, `internal/common.cc`, `MultiplyByQuantizedMultiplier` for int64_t;
`internal/reference/integer_ops/logistic.h`, `tanh.h`; `internal/optimized/optimized_ops.h`.
"""

from __future__ import annotations

import math

import numpy as np
from keras import ops

from ..renorm import Tensor
from . import fixed_point
from .fixed_point import float32, half_up, int32, times_wide
from .rounding import Double


def split(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return integers as ``256 high + low``, with low from 0 to 255."""
    high = ops.floor(values * (1.0 / 256.0))
    return high, values - 256.0 * high


def scaled_pairs(high: Tensor, low: Tensor, x: Tensor, w: Tensor | float, y: Tensor) -> Tensor:
    """Return ``(256 high + low) * x * w / y``, with a multiplier of 15 bits, rounded half up.

    Args:
        high: Integers below 2^24.
        low: Integers below 2^24.
        x: Step of the input.
        w: Steps of the weights.
        y: Step of the output.
    """
    m, e = fixed_point.multiplier(x, w, y)
    reduced = ops.where(m < 0x7FFF0000, ops.right_shift(m + 2**15, 16), 0x7FFF)
    high, low = int32(high), int32(low)
    high, low = high + ops.right_shift(low, 8), ops.bitwise_and(low, 255)
    # The product, with digits of 8, 12 and the remaining bits.
    first = low * reduced
    second = ops.bitwise_and(high, 2**12 - 1) * reduced + ops.right_shift(first, 8)
    third = ops.right_shift(high, 12) * reduced + ops.right_shift(second, 12)
    rest = 256 * ops.bitwise_and(second, 2**12 - 1) + ops.bitwise_and(first, 255)
    right = 15 - e
    far = half_up(third, ops.clip(right - 20, 1, 30))
    least = ops.clip(right, 5, 20)
    near = ops.left_shift(ops.clip(third, -(2**15), 2**15), 20 - least)
    near = near + half_up(rest, least)
    return float32(ops.where(right > 20, far, near))


class WideDouble(Double):
    """TFLite's reference kernels."""

    bits = 16
    times = staticmethod(times_wide)

    def scaled(self, sums: Tensor, x: Tensor, w: Tensor | float, y: Tensor) -> Tensor:
        """See `scaled_pairs`."""
        return scaled_pairs(*split(sums), x, w, y)

    def product(self, a: Tensor, b: Tensor, steps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """As for 8 bits, but float32 cannot hold the products of the integers."""
        factor = fixed_point.multiplier_of(steps[0] * steps[1] / steps[2])
        return float32(times_wide(int32(a) * int32(b), *factor))

    def added(self, a: Tensor, b: Tensor, steps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Rescale both operands, shifted left by 15 bits, to twice the larger of their steps."""
        twice = 2.0 * ops.maximum(steps[0], steps[1])
        left, right = (
            times_wide(ops.left_shift(int32(v), 15), *fixed_point.multiplier(step, 1.0, twice))
            for v, step in ((a, steps[0]), (b, steps[1]))
        )
        factor = fixed_point.multiplier(twice * 2.0**-15, 1.0, steps[2])
        return float32(times_wide(left + right, *factor))

    def requantized(self, values: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The factor has 31 bits; the product is rounded, and again when it is shifted."""
        return float32(times_wide(int32(values), *fixed_point.multiplier(x, 1.0, y)))

    def leaky(self, values: Tensor, slope: float, x: Tensor, y: Tensor) -> Tensor:
        """Both factors are float32 numbers."""
        positive, negative = (
            times_wide(int32(values), *fixed_point.multiplier_of(step / y))
            for step in (x, x * slope)
        )
        return float32(ops.where(values >= 0, positive, negative))

    def resized(self, x: Tensor, zero: Tensor, sizes: tuple[int, int]) -> Tensor:
        """Not computed exactly: the layers round the real numbers."""
        raise NotImplementedError

    def shares(self, x: Tensor, step: Tensor, y: float) -> Tensor:
        """Not computed exactly: the layers round the real numbers."""
        raise NotImplementedError

    def sigmoid(self, x: Tensor, step: Tensor) -> Tensor:
        """Return the logistic function in steps of 2^-15, by a table of 256 points."""
        argument = _argument(int32(x), step)
        result = _interpolated(ops.abs(argument), bits=9, beyond=0x7FFF << 10)
        return float32(
            ops.right_shift(ops.where(argument >= 0, result + 2**9, 2**25 - result + 2**9 - 1), 10)
        )

    def tanh(self, x: Tensor, step: Tensor) -> Tensor:
        """Return the hyperbolic tangent in steps of 2^-15, by the same table."""
        argument = _argument(int32(x), step)
        result = _interpolated(ops.abs(argument), bits=8, beyond=0xFFFF << 8)
        half, nudge = 2**23, 2**7
        rounded = ops.where(argument >= 0, result - half + nudge, half - result + nudge - 1)
        return float32(ops.right_shift(rounded, 8))


class WideFloat(WideDouble):
    """TFLite's optimized kernels."""

    name = "float"

    def quantized(self, values: Tensor, y: Tensor) -> Tensor:
        """Groups of eight numbers of a sample by the reciprocal, ties to even; the rest exactly."""
        by_reciprocal = ops.round(values * (1.0 / y))
        shape = values.shape[1:]
        if None in shape:
            return by_reciprocal
        count = math.prod(shape)
        grouped = (np.arange(count) < count // 8 * 8).reshape(shape)
        return ops.where(grouped, by_reciprocal, _divided(values, y))

    def requantized(self, values: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The second rounding is half up."""
        m, e = fixed_point.multiplier(x, 1.0, y)
        left, right = fixed_point.shifts(e)
        high = fixed_point.product(ops.left_shift(int32(values), left), m)
        return float32(half_up(high, right))


def _divided(values: Tensor, y: Tensor) -> Tensor:
    """Return ``values / y`` rounded half away from zero exactly, for a step of 8 bits."""
    size = ops.abs(values)
    near = ops.floor(size / y + 0.5)
    rest = size - near * y  # exact
    near = near + ops.cast(rest >= 0.5 * y, "float32") - ops.cast(rest < -0.5 * y, "float32")
    return ops.sign(values) * near


# 2^16 times the logistic function at multiples of 1/24. TFLite's table (`internal/common.h`) is one
# more than the nearest integer at the positions of the bits that are set here.
_ABOVE = 0x800000000000000000000000000000800011009020440005C0467BAEFA7BD110
_SIGMOID = np.minimum(np.rint(65536 / (1 + np.exp(-np.arange(256) / 24))), 65535).astype(
    np.int32
) + np.array([_ABOVE >> place & 1 for place in range(256)], np.int32)


def _interpolated(size: Tensor, bits: int, beyond: int) -> Tensor:
    """Return 2^bits times values of the table, interpolated linearly.

    Args:
        size: Positions in steps of 2^-bits of the distance between two points of the table.
        bits: Number of fractional bits of the positions.
        beyond: The result for positions from the last point on.
    """
    table = ops.convert_to_tensor(_SIGMOID, dtype="int32")
    index, part = ops.right_shift(size, bits), ops.bitwise_and(size, 2**bits - 1)
    low, high = (ops.take(table, ops.minimum(index + place, 255)) for place in (0, 1))
    return ops.where(index >= 255, beyond, 2**bits * low + part * (high - low))


def _argument(x: Tensor, step: Tensor) -> Tensor:
    """Return integers in steps of 1/(3 · 4096)."""
    factor = step * (3.0 * 4096.0)
    # The least shift to the right with which the factor exceeds 32767 / 2.
    right = ops.zeros_like(int32(factor))
    for _ in range(31):
        more = factor <= 32767.0 / 2.0
        factor = ops.where(more, 2.0 * factor, factor)
        right = right + ops.cast(more, "int32")
    return half_up(x * int32(ops.floor(factor)), right)


WIDE: dict[str, WideDouble] = {"float": WideFloat(), "double": WideDouble()}
