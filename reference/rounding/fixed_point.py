"""Fixed-point arithmetic of TFLite's portable kernels, as gemmlowp defines it.

Source: gemmlowp, `fixedpoint/fixedpoint.h`; TFLite, `internal/quantization_util.cc`,
`internal/common.h` and `internal/reference/softmax.h`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_MOST = (1 << 31) - 1


def away_from_zero(values: np.ndarray) -> np.ndarray:
    """Return floats rounded to the nearest integer, a half away from zero, as C's round does."""
    whole = np.trunc(values)
    return np.asarray(whole + np.trunc(2 * (values - whole)))


def multiplier(scale: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return m and e with scale = m 2^(e-31), m the nearest integer in [2^30, 2^31)."""
    mantissa, exponent = np.frexp(np.asarray(scale, np.float64))
    # std::round goes away from zero; scales are positive.
    fixed = np.floor(mantissa * 2.0**31 + 0.5).astype(np.int64)
    over = fixed == 1 << 31
    fixed, exponent = np.where(over, fixed >> 1, fixed), np.where(over, exponent + 1, exponent)
    least = exponent < -31
    return np.where(least, 0, fixed), np.where(least, 0, exponent).astype(np.int64)


def high_product(a: Any, b: Any, bits: int = 32) -> np.ndarray:
    """Return the upper half of the doubled product, rounded (SaturatingRoundingDoublingHighMul)."""
    # gemmlowp treats the signs separately, with the same result: half up.
    product = np.asarray(a, np.int64) * np.asarray(b, np.int64)
    return np.asarray((product + (1 << (bits - 2))) >> (bits - 1))


def divided(values: np.ndarray, right: Any) -> np.ndarray:
    """Return values / 2^right, a half away from zero (RoundingDivideByPOT)."""
    half = (np.int64(1) << right) >> 1
    return np.asarray(np.sign(values) * ((np.abs(values) + half) >> right))


def inverse_root(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return m and e with 1/sqrt(x) = m 2^(e-31), by five steps of Newton's method.

    Source: TFLite, `internal/quantization_util.cc` and `internal/common.h`,
    `GetInvSqrtQuantizedMultiplierExp`.

    Args:
        x: Integers; those below 2 count as 1.
    """
    small, right, x = x <= 1, np.full(x.shape, 11), np.maximum(x, 2)
    while np.any(over := x >= 1 << 29):
        x, right = np.where(over, x // 4, x), right + over
    pairs = (31 - np.frexp(x.astype(np.float64))[1].astype(np.int64)) // 2 - 1
    right, half = right - pairs, divided((x << 2 * pairs) >> 1, 1)
    y = np.full(x.shape, 1 << 28)
    for _ in range(5):
        cube = _saturated(high_product(high_product(y, y), y) << 6)
        y = _saturated((high_product((1 << 28) + (1 << 27), y) - high_product(half, cube)) << 3)
    y = high_product(y, 1518500250)  # sqrt(1/2)
    y, right = np.where(right < 0, y << np.maximum(-right, 0), y), np.maximum(right, 0)
    return np.where(small, _MOST, y), np.where(small, 0, -right)


def quotient(
    a: np.ndarray, b: np.ndarray, m: np.ndarray, e: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return a / b · m 2^(e-31) for integers, and the shifts by which the results were divided.

    Source: TFLite, `reference/div.h`, `DivElementwise`.
    """
    a, b = np.where(b < 0, -a, a), np.abs(b)
    length = np.frexp(b.astype(np.float64))[1].astype(np.int64)
    inverse = _one_over_one_plus((b << (32 - length)) - (1 << 31))
    # Sign bits that a has beyond one.
    room = 31 - np.frexp(np.where(a < 0, -a - 1, a).astype(np.float64))[1].astype(np.int64)
    product = high_product(high_product(a << room, inverse), m)
    right = length - 1 + room - e
    return divided(product, np.clip(right, 0, 62)), right


def _saturated(values: np.ndarray) -> np.ndarray:
    return np.clip(values, -_MOST - 1, _MOST)


def softmax_of_8_bits(x: np.ndarray, scale: float) -> np.ndarray:
    """Return the softmax over the last axis in steps of 1/256.

    Args:
        x: 8-bit integers.
        scale: Their scale times beta.
    """
    m, left = multiplier(min(scale * 2.0**26, 2.0**31 - 1))
    difference = x - x.max(axis=-1, keepdims=True)
    counted = difference >= -int(np.floor(31 * 2.0**26 / 2.0 ** int(left)))
    scaled = high_product(np.where(counted, difference, 0) << left, m)
    raised = np.where(counted, _exp(scaled), 0)
    sums = divided(raised, 12).sum(axis=-1, keepdims=True)
    headroom = 32 - np.frexp(sums.astype(np.float64))[1].astype(np.int64)
    reciprocal = _one_over_one_plus((sums << headroom) - (1 << 31))
    return np.where(counted, divided(high_product(reciprocal, raised), 35 - headroom), 0)


# exp(-2^k) in 31 bits, for k from -2 on.
_POWERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)


def _exp(a: np.ndarray) -> np.ndarray:
    """Return 2^31 exp(a / 2^26) for numbers up to 0 (exp_on_negative_values)."""
    quarter = 1 << 24
    rest = (a & (quarter - 1)) - quarter
    result = _exp_in_a_quarter(rest << 5)
    remainder = rest - a
    for place, power in enumerate(_POWERS):
        chosen = remainder & (1 << (24 + place)) != 0
        result = np.where(chosen, high_product(result, power), result)
    return np.where(a == 0, _MOST, result)


def _exp_in_a_quarter(a: np.ndarray) -> np.ndarray:
    """Return 2^31 exp(a / 2^31) for a / 2^31 in [-1/4, 0): five terms of a series about -1/8."""
    eighth, third = 1895147668, 715827883
    x = a + (1 << 28)
    square = high_product(x, x)
    cube, fourth = high_product(square, x), high_product(square, square)
    terms = high_product(divided(fourth, 2) + cube, third) + square
    return np.asarray(eighth + high_product(eighth, x + divided(terms, 1)))


def _one_over_one_plus(a: np.ndarray) -> np.ndarray:
    """Return 2^31 / (1 + a / 2^31) for a / 2^31 in [0, 1), by three steps of Newton's method."""
    half = (a + _MOST + 1) >> 1
    x = 1515870810 + high_product(half, -1010580540)  # 48/17 and -32/17 in 29 bits
    for _ in range(3):
        x = x + (high_product(x, (1 << 29) - high_product(half, x)) << 2)
    return np.clip(x << 1, -(1 << 31), _MOST)
