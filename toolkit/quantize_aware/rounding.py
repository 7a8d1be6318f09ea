"""How runtimes rescale exact integer sums to the steps of a result: the target's arithmetic.

`Float` is that of XNNPACK, which LiteRT uses, and of ONNX Runtime: one product in float32, rounded
to the nearest integer, ties to even; only additions and requantization are fixed-point. `Double`
is that of TFLite's reference kernels and of TFLite Micro, see `fixed_point`. All functions here
take and return centred integers stored in float32, and have no gradient.

Sources: XNNPACK, `qs8-qc8w` kernels with `fp32` requantization, `xnn_init_qs8_add_minmax_params`,
`xnn_init_qs8_cvt_scalar_params`, `qs8-rsum`; TFLite, `internal/reference/integer_ops`.
"""

from __future__ import annotations

import abc
from typing import ClassVar

import numpy as np
from keras import ops

from ...errors import UserError
from ..renorm import Tensor
from . import fixed_point
from .fixed_point import float32, int32


class Rounding(abc.ABC):
    """The rounding of one family of runtimes."""

    name: ClassVar[str]
    bits: ClassVar[int] = 8

    @abc.abstractmethod
    def quantized(self, values: Tensor, y: Tensor) -> Tensor:
        """Return ``values / y``, rounded: quantizes real numbers."""

    @abc.abstractmethod
    def scaled(self, sums: Tensor, x: Tensor, w: Tensor | float, y: Tensor) -> Tensor:
        """Return ``sums * x * w / y``, rounded.

        Args:
            sums: Exact integers.
            x: Step of the input.
            w: Steps of the weights, or 1.
            y: Step of the output.
        """

    def product(self, a: Tensor, b: Tensor, steps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return ``a * s_a * b * s_b / s_y``, rounded.

        Args:
            a: Centred integers.
            b: Centred integers.
            steps: s_a, s_b, s_y.
        """
        return self.scaled(a * b, *steps)

    @abc.abstractmethod
    def added(self, a: Tensor, b: Tensor, steps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return ``a * s_a / s_y + b * s_b / s_y``, rounded.

        Args:
            a: Centred integers.
            b: Centred integers.
            steps: s_a, s_b, s_y.
        """

    @abc.abstractmethod
    def requantized(self, values: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Return ``values * x / y``, rounded: requantizes integers."""

    def leaky(self, values: Tensor, slope: float, x: Tensor, y: Tensor) -> Tensor:
        """Return ``values * x / y``, rounded; negative values are multiplied by a slope."""
        negative = self.requantized(values, x * slope, y)
        return ops.where(values >= 0, self.requantized(values, x, y), negative)

    @abc.abstractmethod
    def averaged(self, sums: Tensor, count: int, x: Tensor, y: Tensor) -> Tensor:
        """Return ``sums / count * x / y``, rounded: the mean of ``count`` integers."""

    @abc.abstractmethod
    def resized(self, x: Tensor, zero: Tensor, sizes: tuple[int, int]) -> Tensor:
        """Return maps (batch, height, width, channels) resized bilinearly, in the same steps.

        Args:
            x: Centred integers.
            zero: Their zero point.
            sizes: Height and width of the result.
        """

    @abc.abstractmethod
    def shares(self, x: Tensor, step: Tensor, y: float) -> Tensor:
        """Return the softmax over the last axis, rounded to steps.

        Args:
            x: Integers.
            step: Their step.
            y: Step of the output, 1/256.
        """


class Float(Rounding):
    """XNNPACK and ONNX Runtime."""

    name = "float"

    def quantized(self, values: Tensor, y: Tensor) -> Tensor:
        """Multiply by the reciprocal."""
        return ops.round(values * (1.0 / y))

    def scaled(self, sums: Tensor, x: Tensor, w: Tensor | float, y: Tensor) -> Tensor:
        """The factor is ``(x * w) / y``, each operation in float32."""
        return ops.round(sums * (x * w / y))

    def added(self, a: Tensor, b: Tensor, steps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Both factors in 21 bits, one shift, half up."""
        left, right = steps[0] / steps[2], steps[1] / steps[2]
        shift = _shift_to_21_bits(ops.maximum(left, right))
        power = ops.cast(ops.left_shift(ops.ones_like(shift), shift), "float32")
        first, second = (ops.cast(ops.round(ratio * power), "int32") for ratio in (left, right))
        total = ops.cast(a, "int32") * first + ops.cast(b, "int32") * second
        half = ops.left_shift(ops.ones_like(shift), shift - 1)
        return ops.cast(ops.right_shift(total + half, shift), "float32")

    def requantized(self, values: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The factor in steps of 1/256, one shift, half up."""
        ratio = ops.cast(ops.round(256.0 * (x / y)), "int32")
        return ops.cast(ops.right_shift(ops.cast(values, "int32") * ratio + 128, 8), "float32")

    def averaged(self, sums: Tensor, count: int, x: Tensor, y: Tensor) -> Tensor:
        """As for other sums, with the count included in the factor."""
        return ops.round(sums * (x / (y * float(count))))

    def resized(self, x: Tensor, zero: Tensor, sizes: tuple[int, int]) -> Tensor:
        """Weights in 1/2048 from positions in float32, one shift, half up.

        Source: XNNPACK, `xnn_indirection_init_resize_bilinear2d_hwc_q11`, `s8-ibilinear`.
        """
        return float32(ops.right_shift(_interpolated(int32(x), sizes, 2048) + 2**21, 22))

    def shares(self, x: Tensor, step: Tensor, y: float) -> Tensor:
        """By float32 exponentials, half up (TFLite, `internal/optimized/optimized_ops.h`)."""
        raised = ops.exp((x - ops.max(x, axis=-1, keepdims=True)) * step)
        sums = ops.sum(raised, axis=-1, keepdims=True)
        return ops.floor(raised * (1.0 / (sums * y)) + 0.5)


class Double(Rounding):
    """TFLite's reference kernels and TFLite Micro: fixed-point products, rounded twice."""

    name = "double"
    times = staticmethod(fixed_point.times)

    def quantized(self, values: Tensor, y: Tensor) -> Tensor:
        """Divide; round half away from zero."""
        scaled = values / y
        return ops.sign(scaled) * ops.floor(ops.abs(scaled) + 0.5)

    def scaled(self, sums: Tensor, x: Tensor, w: Tensor | float, y: Tensor) -> Tensor:
        """The factor has 31 bits; the product is rounded, and again when it is shifted."""
        return float32(self.times(int32(sums), *fixed_point.multiplier(x, w, y)))

    def product(self, a: Tensor, b: Tensor, steps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The ratio of steps is a float32 number (TFLite, `mul.cc`)."""
        factor = fixed_point.multiplier_of(steps[0] * steps[1] / steps[2])
        return float32(self.times(int32(a * b), *factor))

    def added(self, a: Tensor, b: Tensor, steps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Rescale both operands, shifted left by 20 bits, to twice the larger of their steps."""
        twice = 2.0 * ops.maximum(steps[0], steps[1])
        left, right = (
            fixed_point.times_shifted(int32(v), *fixed_point.multiplier(step, 1.0, twice))
            for v, step in ((a, steps[0]), (b, steps[1]))
        )
        factor = fixed_point.multiplier(twice * 2.0**-20, 1.0, steps[2])
        return float32(self.times(left + right, *factor))

    def requantized(self, values: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """As for other sums."""
        return self.scaled(values, x, 1.0, y)

    def averaged(self, sums: Tensor, count: int, x: Tensor, y: Tensor) -> Tensor:
        """Divide the factor by the count, after shifting it left by as many bits as fit."""
        m, e = fixed_point.multiplier(x, 1.0, y)
        m, bits = fixed_point.divided(m, count)
        return float32(self.times(int32(sums), m, e - bits))

    def resized(self, x: Tensor, zero: Tensor, sizes: tuple[int, int]) -> Tensor:
        """Positions and weights in 1/1024, half away from zero of the stored integers.

        Source: TFLite, `reference/resize_bilinear.h`, `ResizeBilinearInteger`.
        """
        total = _interpolated(int32(x + zero), sizes, 1024)
        size = ops.right_shift(ops.abs(total) + 2**19, 20)
        return float32(ops.sign(total) * size) - zero

    def shares(self, x: Tensor, step: Tensor, y: float) -> Tensor:
        """Entirely in fixed point."""
        return float32(fixed_point.shares(int32(x), step))


def _interpolated(x: Tensor, sizes: tuple[int, int], unit: int) -> Tensor:
    """Return integer maps resized by weights that are integers in ``1 / unit``, times unit²."""
    places = {1024: _places_in_1024ths, 2048: _places_in_2048ths}[unit]
    for axis, wanted in ((1, sizes[0]), (2, sizes[1])):
        low, high, share = places(x.shape[axis], wanted)
        laid = ops.convert_to_tensor(share.reshape(-1, *[1] * (3 - axis)), dtype="int32")
        x = ops.take(x, low, axis) * (unit - laid) + ops.take(x, high, axis) * laid
    return x


def _places_in_1024ths(size: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return two input positions and the weight of the second, for each output position."""
    step = (1024 * size + wanted // 2) // wanted
    at = np.arange(wanted) * step + step // 2 - 512
    # Division in C truncates towards zero; negative positions are clipped to zero.
    low = np.maximum(at, 0) // 1024
    high = np.minimum(np.maximum(at + 1023, 0) // 1024, size - 1)
    return low, high, at - 1024 * low


def _places_in_2048ths(size: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the same by XNNPACK's rule."""
    step = np.float32(size) / np.float32(wanted)
    at = np.arange(wanted, dtype=np.float32) * step + (np.float32(0.5) * step - np.float32(0.5))
    at = np.clip(at, 0, np.float32(size - 1))
    low = at.astype(np.int64)
    share = np.rint((at - low.astype(np.float32)) * np.float32(2048)).astype(np.int64)
    return low, np.minimum(low + 1, size - 1), share


def _shift_to_21_bits(ratio: Tensor) -> Tensor:
    """Return the shift with ``2^20 <= ratio * 2^shift < 2^21``."""
    guess = 20 - ops.cast(ops.floor(ops.log2(ratio)), "int32")
    # The logarithm may round across a power of two.
    scaled = ratio * ops.cast(ops.left_shift(ops.ones_like(guess), guess), "float32")
    low, high = (ops.cast(test, "int32") for test in (scaled < 2.0**20, scaled >= 2.0**21))
    return guess + low - high


# XNNPACK leaves some operators to TFLite's own kernels.
FIXED_POINT = Double()
ROUNDINGS: dict[str, Rounding] = {"float": Float(), "double": FIXED_POINT}


def rounding_named(name: str) -> Rounding:
    """Return the rounding called ``name``.

    Raises:
        UserError: There is none.
    """
    if name not in ROUNDINGS:
        raise UserError(
            f"Expected rounding to be one of {', '.join(ROUNDINGS)}. Received: {name!r}."
        )
    return ROUNDINGS[name]
