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

from keras import ops

from ...errors import UserError
from ..renorm import Tensor
from . import fixed_point


class Rounding(abc.ABC):
    """The rounding of one family of runtimes."""

    name: ClassVar[str]

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

    def shares(self, x: Tensor, step: Tensor, y: float) -> Tensor:
        """By float32 exponentials, half up (TFLite, `internal/optimized/optimized_ops.h`)."""
        raised = ops.exp((x - ops.max(x, axis=-1, keepdims=True)) * step)
        sums = ops.sum(raised, axis=-1, keepdims=True)
        return ops.floor(raised * (1.0 / (sums * y)) + 0.5)


class Double(Rounding):
    """TFLite's reference kernels and TFLite Micro: fixed-point products, rounded twice."""

    name = "double"

    def quantized(self, values: Tensor, y: Tensor) -> Tensor:
        """Divide; round half away from zero."""
        scaled = values / y
        return ops.sign(scaled) * ops.floor(ops.abs(scaled) + 0.5)

    def scaled(self, sums: Tensor, x: Tensor, w: Tensor | float, y: Tensor) -> Tensor:
        """The factor has 31 bits; the product is rounded, and again when it is shifted."""
        return _float(fixed_point.times(_int(sums), *fixed_point.multiplier(x, w, y)))

    def added(self, a: Tensor, b: Tensor, steps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Rescale both operands, shifted left by 20 bits, to twice the larger of their steps."""
        twice = 2.0 * ops.maximum(steps[0], steps[1])
        left, right = (
            fixed_point.times_shifted(_int(v), *fixed_point.multiplier(step, 1.0, twice))
            for v, step in ((a, steps[0]), (b, steps[1]))
        )
        factor = fixed_point.multiplier(twice * 2.0**-20, 1.0, steps[2])
        return _float(fixed_point.times(left + right, *factor))

    def requantized(self, values: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """As for other sums."""
        return self.scaled(values, x, 1.0, y)

    def averaged(self, sums: Tensor, count: int, x: Tensor, y: Tensor) -> Tensor:
        """Divide the factor by the count, after shifting it left by as many bits as fit."""
        m, e = fixed_point.multiplier(x, 1.0, y)
        m, bits = fixed_point.divided(m, count)
        return _float(fixed_point.times(_int(sums), m, e - bits))

    def shares(self, x: Tensor, step: Tensor, y: float) -> Tensor:
        """Entirely in fixed point."""
        return _float(fixed_point.shares(_int(x), step))


def _int(values: Tensor) -> Tensor:
    return ops.cast(values, "int32")


def _float(values: Tensor) -> Tensor:
    return ops.cast(values, "float32")


def _shift_to_21_bits(ratio: Tensor) -> Tensor:
    """Return the shift with ``2^20 <= ratio * 2^shift < 2^21``."""
    guess = 20 - ops.cast(ops.floor(ops.log2(ratio)), "int32")
    # The logarithm may round across a power of two.
    scaled = ratio * ops.cast(ops.left_shift(ops.ones_like(guess), guess), "float32")
    low, high = (ops.cast(test, "int32") for test in (scaled < 2.0**20, scaled >= 2.0**21))
    return guess + low - high


ROUNDINGS: dict[str, Rounding] = {"float": Float(), "double": Double()}


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
