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
    m, left = _argument_scale(scale)
    difference = x - x.max(axis=-1, keepdims=True)
    counted = difference >= _least_difference(left)
    scaled = high_product(np.where(counted, difference, 0) << left, m)
    raised = np.where(counted, _exp(scaled), 0)
    sums = divided(raised, 12).sum(axis=-1, keepdims=True)
    headroom = _leading_zeros(sums)
    reciprocal = _one_over_one_plus((sums << headroom) - (1 << 31))
    return np.where(counted, divided(high_product(reciprocal, raised), 35 - headroom), 0)


def log_softmax_of_8_bits(x: np.ndarray, scale: float) -> np.ndarray:
    """Return the logarithm of the softmax over the last axis in steps of 1/16.

    Source: TFLite, `reference/integer_ops/log_softmax.h`.

    Args:
        x: 8-bit integers.
        scale: Their scale.
    """
    m, left = _argument_scale(scale)
    difference = x - x.max(axis=-1, keepdims=True)
    least = _least_difference(left)
    counted = difference >= least
    scaled = high_product(np.where(counted, difference, 0) << left, m)
    sums = divided(np.where(counted, _exp(scaled), 0), 12).sum(axis=-1, keepdims=True)
    log = _log(sums)
    # Less than the least number of 2^-26 that holds x - log would overflow.
    inverse, right = multiplier(2.0 ** (31 - int(left)) / float(m))
    reached = divided(high_product(log - (1 << 31), inverse), -right)
    results = divided(high_product(np.maximum(difference, least) << left, m) - log, 22)
    return np.where(difference > np.maximum(least - 1, reached), results, -255)


def _argument_scale(scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the multiplier and the left shift of differences in units of 2^-26."""
    return multiplier(min(scale * 2.0**26, 2.0**31 - 1))


def _least_difference(left: np.ndarray) -> int:
    """Return the least difference that an exponential is computed of; of lesser ones it is 0."""
    return -int(np.floor(31 * 2.0**26 / 2.0 ** int(left)))


def _leading_zeros(x: np.ndarray) -> np.ndarray:
    """Return how many leading zeros positive integers have in 32 bits."""
    return 32 - np.frexp(x.astype(np.float64))[1].astype(np.int64)


# 4th root of 1/2, and the coefficients of a rational approximation, in 31 bits.
_ROOT_OF_ROOT, _NUMERATOR, _SQUARE, _ONE, _LINEAR = (
    *(1805811301, 117049297, 127690142, 1057819769, 638450708),
)  # fmt: skip


def _log(x: np.ndarray) -> np.ndarray:
    """Return 2^26 log(x / 2^19) for x from 2^19 on.

    Source: TFLite, `internal/common.h`, `log_x_for_x_greater_than_or_equal_to_1_impl`.
    """
    root, quarter = 1518500250, 1 << 23
    zeros = _leading_zeros(x)
    first = _shifted(high_product(_shifted(x, zeros - 1), root), 1)
    other = _leading_zeros(high_product(x, root)) - 1
    second = _shifted(x, other)
    r = np.minimum(first, second)
    power = np.maximum(
        _saturated(_shifted(12 - zeros, 25) + quarter),
        _saturated(_shifted(12 - other, 25) - quarter),
    )
    p, q = (r + _ROOT_OF_ROOT + 1) >> 1, 2 * (r - _ROOT_OF_ROOT)
    square = high_product(q, q)
    numerator = high_product(q, r) + high_product(high_product(q, square), _NUMERATOR)
    denominator = high_product(p, _ONE + q + high_product(_SQUARE, square))
    inverse = _one_over_one_plus(denominator + high_product(_LINEAR, q))
    total = high_product(power, 1488522236) + high_product(divided(numerator, 6), inverse)
    return _shifted(total, 1)


def _shifted(x: np.ndarray, left: Any) -> np.ndarray:
    """Return x shifted to the left, saturated."""
    return _saturated(np.asarray(x) << left)


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
