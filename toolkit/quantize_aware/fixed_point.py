"""TFLite's fixed-point products, in 32-bit integers and float32, which every backend has.

A real factor M becomes ``m * 2^(e - 31)`` with an integer m of 31 bits, the nearest to M in double
precision. An integer v times M is then the upper half of the doubled product,
``(v m + 2^30) >> 31``, rounded once more when it is shifted right, halves away from zero.

Sources: TFLite, `QuantizeMultiplier`, `MultiplyByQuantizedMultiplier`; gemmlowp,
`SaturatingRoundingDoublingHighMul`, `RoundingDivideByPOT`.
"""

from __future__ import annotations

from keras import ops

from ..renorm import Tensor
from .steps import significant


def multiplier(x: Tensor, w: Tensor | float, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return m and e of the factor ``x * w / y``.

    Args:
        x: Step of 16 significant bits.
        w: Steps of 16 significant bits, or 1.
        y: Step of 16 significant bits.
    """
    quotient, rest = _divided_exactly(*_multiplied_exactly(x, w), y)
    e = _exponent(quotient)
    power = _power_of_two(31 - e)
    return _int(quotient * power) + _int(ops.round(rest * power)), e


def times(values: Tensor, m: Tensor, e: Tensor) -> Tensor:
    """Return ``values * m * 2^(e - 31)``, rounded twice.

    Args:
        values: Integers below 2^29.
        m: Integers of 31 bits.
        e: Exponents.
    """
    zero = ops.zeros_like(e)
    shifted = ops.left_shift(values, ops.maximum(e, zero))
    return _shifted_right(_upper_half(shifted, m), ops.maximum(-e, zero))


def times_shifted(values: Tensor, m: Tensor, e: Tensor) -> Tensor:
    """Return ``(values << 20) * m * 2^(e - 31)``, rounded twice, for integers of 9 bits, e <= 0."""
    low = ops.bitwise_and(m, 2**11 - 1)
    high = ops.right_shift(m, 11)
    product = ops.right_shift(values * low + 2**10, 11) + values * high
    return _shifted_right(product, -e)


def divided(m: Tensor, count: int) -> tuple[Tensor, int]:
    """Return ``(m << bits) // count`` with as many bits as leave it below 2^31, and the number."""
    quotient, remainder, bits = m // count, m % count, count.bit_length() - 1
    for _ in range(bits):
        remainder = 2 * remainder
        over = ops.cast(remainder >= count, "int32")
        quotient, remainder = 2 * quotient + over, remainder - over * count
    return quotient, bits


def _upper_half(v: Tensor, m: Tensor) -> Tensor:
    """Return ``(v m + 2^30) >> 31`` with v = a 2^15 + b and m = c 2^16 + d."""
    a, b = ops.right_shift(v, 15), ops.bitwise_and(v, 2**15 - 1)
    c, d = ops.right_shift(m, 16), ops.bitwise_and(m, 2**16 - 1)
    middle = ops.right_shift(a * d + ops.right_shift(b * d, 15) + 2**15, 1) + b * c
    return a * c + ops.right_shift(middle, 15)


def _shifted_right(values: Tensor, bits: Tensor) -> Tensor:
    half = ops.right_shift(ops.left_shift(ops.ones_like(bits), bits), 1)
    return ops.sign(values) * ops.right_shift(ops.abs(values) + half, bits)


def _multiplied_exactly(x: Tensor, w: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return a product of 16-bit numbers as the nearest float32 and its error (Dekker)."""
    high = significant(x, 8)
    first, second = high * w, (x - high) * w  # of 24 bits each: exact
    total = first + second
    return total, second - (total - first)


def _divided_exactly(p: Tensor, lacking: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(p + lacking) / y`` as the nearest float32 and its error, for y of 16 bits."""
    quotient = p / y
    high, y_high = significant(quotient, 8), significant(y, 8)
    low, y_low = quotient - high, y - y_high
    # Each product has 24 bits and each difference cancels: all of them are exact.
    remainder = ((p - high * y) - low * y_high) - low * y_low
    return quotient, (remainder + lacking) / y


def _exponent(values: Tensor) -> Tensor:
    """Return e with ``2^(e - 1) <= values < 2^e``."""
    guess = _int(ops.floor(ops.log2(values))) + 1
    # The logarithm may round across a power of two.
    scaled = values * _power_of_two(31 - guess)
    low, high = (_int(test) for test in (scaled < 2.0**30, scaled >= 2.0**31))
    return guess - low + high


def _power_of_two(exponent: Tensor) -> Tensor:
    """Return 2 to an exponent from 0 to 60, exact, which `power` need not be."""
    half = ops.right_shift(exponent, 1)
    one = ops.ones_like(exponent)
    first, second = (ops.left_shift(one, part) for part in (half, exponent - half))
    return ops.cast(first, "float32") * ops.cast(second, "float32")


def _int(values: Tensor) -> Tensor:
    return ops.cast(values, "int32")
