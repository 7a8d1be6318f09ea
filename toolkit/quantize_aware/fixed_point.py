"""TFLite's fixed-point products, in 32-bit integers and float32, which all backends support.

A real factor M is written as ``m * 2^(e - 31)``, where m is the 31-bit integer nearest to M in
double precision. An integer v times M is then the upper half of the doubled product,
``(v m + 2^30) >> 31``, rounded again, half away from zero, when it is shifted right.

Sources: TFLite, `QuantizeMultiplier`, `MultiplyByQuantizedMultiplier`,
`internal/reference/softmax.h`; gemmlowp, `SaturatingRoundingDoublingHighMul`,
`RoundingDivideByPOT`, `fixedpoint/fixedpoint.h`.
"""

from __future__ import annotations

from keras import ops

from ..renorm import Tensor
from .steps import significant

_MOST = 2**31 - 1
# exp(-2^k) in 31 bits, for k = -2, -1, …
_POWERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)


def multiplier(x: Tensor, w: Tensor | float, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return m and e of the factor ``x * w / y``.

    Args:
        x: Step of 16 significant bits.
        w: Steps of 16 significant bits, or 1.
        y: Step of 16 significant bits.
    """
    quotient, rest = _divided_exactly(*_multiplied_exactly(x, w), y)
    m, e = multiplier_of(quotient)
    return m + int32(ops.round(rest * _power_of_two(31 - e))), e


def multiplier_of(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Return m and e of a float32 factor."""
    e = _exponent(ratio)
    return int32(ratio * _power_of_two(31 - e)), e


def times(values: Tensor, m: Tensor, e: Tensor) -> Tensor:
    """Return ``values * m * 2^(e - 31)``, rounded twice.

    Args:
        values: Integers below 2^29.
        m: Integers of 31 bits.
        e: Exponents.
    """
    left, right = shifts(e)
    return shifted_right(_upper_half(ops.left_shift(values, left), m), right)


def times_wide(values: Tensor, m: Tensor, e: Tensor) -> Tensor:
    """Return the same for integers of 32 bits."""
    left, right = shifts(e)
    return shifted_right(product(ops.left_shift(values, left), m), right)


def times_shifted(values: Tensor, m: Tensor, e: Tensor) -> Tensor:
    """Return ``(values << 20) * m * 2^(e - 31)``, rounded twice, for integers of 9 bits, e <= 0."""
    low = ops.bitwise_and(m, 2**11 - 1)
    high = ops.right_shift(m, 11)
    total = ops.right_shift(values * low + 2**10, 11) + values * high
    return shifted_right(total, -e)


def divided(m: Tensor, count: int) -> tuple[Tensor, int]:
    """Return ``(m << bits) // count``, below 2^31, and bits, the integer part of log2(count)."""
    quotient, remainder, bits = m // count, m % count, count.bit_length() - 1
    for _ in range(bits):
        remainder = 2 * remainder
        over = ops.cast(remainder >= count, "int32")
        quotient, remainder = 2 * quotient + over, remainder - over * count
    return quotient, bits


def shares(x: Tensor, step: Tensor) -> Tensor:
    """Return the softmax of 8-bit integers over the last axis, in steps of 1/256.

    Exponentials have 5 integer bits and 26 fractional bits; their sum has 12 and 19.

    Args:
        x: Integers, int32; only their differences matter.
        step: Their step, below 16, with 16 significant bits.
    """
    m, left = multiplier(step, 2.0**26, ops.ones_like(step))
    difference = x - ops.max(x, axis=-1, keepdims=True)
    least = -int32(ops.floor(31.0 * _power_of_two(31 - left) * 2.0**-5))
    counted = int32(difference >= least)
    raised = counted * _exp(product(ops.left_shift(counted * difference, left), m))
    sums = ops.sum(shifted_right(raised, ops.full_like(raised, 12)), axis=-1, keepdims=True)
    room = 32 - _bit_length(sums)
    # The leading bit is the sign bit of a 32-bit integer; clearing it subtracts 2^31.
    reciprocal = _one_over_one_plus(ops.bitwise_and(ops.left_shift(sums, room), _MOST))
    return counted * shifted_right(product(reciprocal, raised), 35 - room)


def _exp(a: Tensor) -> Tensor:
    """Return 2^31 exp(a / 2^26) for a <= 0: a series within 1/4, and one factor for each bit."""
    quarter = 2**24
    rest = ops.bitwise_and(a, quarter - 1) - quarter
    result = _exp_in_a_quarter(ops.left_shift(rest, 5))
    remainder = rest - a
    for place, power in enumerate(_POWERS):
        chosen = ops.bitwise_and(ops.right_shift(remainder, 24 + place), 1) == 1
        result = ops.where(chosen, product(result, power), result)
    return ops.where(a == 0, _MOST, result)


def _exp_in_a_quarter(a: Tensor) -> Tensor:
    """Return 2^31 exp(a / 2^31) for a / 2^31 in [-1/4, 0): five terms of a series about -1/8."""
    eighth, third = 1895147668, 715827883
    x = a + 2**28
    square = product(x, x)
    cube, fourth = product(square, x), product(square, square)
    terms = product(shifted_right(fourth, 2 * ops.ones_like(fourth)) + cube, third) + square
    return eighth + product(x + shifted_right(terms, ops.ones_like(terms)), eighth)


def _one_over_one_plus(a: Tensor) -> Tensor:
    """Return 2^31 / (1 + a / 2^31) for a / 2^31 in [0, 1), by three steps of Newton's method."""
    half = ops.right_shift(a, 1) + 2**30  # (a + 2^31) / 2, as TFLite rounds it
    x = 1515870810 + product(half, -1010580540)  # 48/17 and -32/17 in 29 bits
    for _ in range(3):
        x = x + ops.left_shift(product(x, 2**29 - product(half, x)), 2)
    # Saturates if doubling would set the sign bit.
    return 2 * ops.clip(x, 0, 2**30 - 1) + int32(x >= 2**30)


def product(a: Tensor, b: Tensor | int) -> Tensor:
    """Return ``(a b + 2^30) >> 31`` for 32-bit integers, computed in digits of 11 bits."""
    mask = 2**11 - 1
    a, b = a + 0 * b, b + 0 * a
    (a0, a1, a2), (b0, b1, b2) = (
        (
            ops.bitwise_and(v, mask),
            ops.bitwise_and(ops.right_shift(v, 11), mask),
            ops.right_shift(v, 22),
        )
        for v in (a, b)
    )
    carried = ops.right_shift(a0 * b0, 11) + a0 * b1 + a1 * b0
    carried = ops.right_shift(carried, 11) + a0 * b2 + a1 * b1 + a2 * b0 + 2**8
    return ops.right_shift(carried, 9) + 4 * (a1 * b2 + a2 * b1) + 2**13 * (a2 * b2)


def _bit_length(values: Tensor) -> Tensor:
    return sum((int32(values >= 2**k) for k in range(1, 31)), ops.ones_like(values))


def _upper_half(v: Tensor, m: Tensor) -> Tensor:
    """Return ``(v m + 2^30) >> 31`` with v = a 2^15 + b and m = c 2^16 + d."""
    a, b = ops.right_shift(v, 15), ops.bitwise_and(v, 2**15 - 1)
    c, d = ops.right_shift(m, 16), ops.bitwise_and(m, 2**16 - 1)
    middle = ops.right_shift(a * d + ops.right_shift(b * d, 15) + 2**15, 1) + b * c
    return a * c + ops.right_shift(middle, 15)


def shifted_right(values: Tensor, bits: Tensor) -> Tensor:
    """Return ``values / 2^bits``, rounded half away from zero."""
    mask = ops.left_shift(ops.ones_like(bits), bits) - 1
    above = ops.right_shift(mask, 1) + int32(values < 0)
    return ops.right_shift(values, bits) + int32(ops.bitwise_and(values, mask) > above)


def half_up(values: Tensor, bits: Tensor) -> Tensor:
    """Return ``values / 2^bits``, rounded half up."""
    half = ops.right_shift(ops.left_shift(ops.ones_like(bits), bits), 1)
    return ops.right_shift(values + half, bits)


def shifts(e: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many bits an exponent shifts to the left, and how many to the right."""
    zero = ops.zeros_like(e)
    return ops.maximum(e, zero), ops.maximum(-e, zero)


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
    guess = int32(ops.floor(ops.log2(values))) + 1
    # The logarithm may round across a power of two.
    scaled = values * _power_of_two(31 - guess)
    low, high = (int32(test) for test in (scaled < 2.0**30, scaled >= 2.0**31))
    return guess - low + high


def _power_of_two(exponent: Tensor) -> Tensor:
    """Return 2 to an exponent from 0 to 60, exact, which `power` need not be."""
    half = ops.right_shift(exponent, 1)
    one = ops.ones_like(exponent)
    first, second = (ops.left_shift(one, part) for part in (half, exponent - half))
    return ops.cast(first, "float32") * ops.cast(second, "float32")


def int32(values: Tensor) -> Tensor:
    """Return numbers as 32-bit integers, without their fractions."""
    return ops.cast(values, "int32")


def float32(values: Tensor) -> Tensor:
    """Return integers as float32 numbers."""
    return ops.cast(values, "float32")
