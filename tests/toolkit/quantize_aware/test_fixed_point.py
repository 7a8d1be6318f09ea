"""Protects integer arithmetic in tensors: bit for bit what Python's integers of any size give."""

from fractions import Fraction

import keras
import numpy as np
import pytest
from renormlite.toolkit.quantize_aware import fixed_point

RNG = np.random.default_rng(0)
COUNT = 2000


def tensor(values, dtype="int32"):
    return keras.ops.convert_to_tensor(np.asarray(values), dtype)


def integers(value):
    return [int(v) for v in keras.ops.convert_to_numpy(value).ravel()]


def drawn(low, high):
    return RNG.integers(low, high, COUNT)


def high_half(a, b):
    """Return the product of 32-bit integers in units of 2^31, rounded to nearest, ties up."""
    return (a * b + 2**30) >> 31


def shifted_right(value, bits):
    """Return value / 2^bits rounded to nearest, ties away from zero."""
    half = (1 << bits) >> 1
    return (abs(value) + half >> bits) * (-1 if value < 0 else 1)


def test_multiplier_is_the_nearest_integer_of_31_bits():
    x, w, y = (drawn(2**15, 2**16) * 2.0 ** drawn(-24, -15) for _ in range(3))
    m, e = fixed_point.multiplier(*(tensor(v, "float32") for v in (x, w, y)))
    for found, exponent, *steps in zip(integers(m), integers(e), x, w, y, strict=True):
        a, b, c = map(Fraction, steps)
        exact = a * b / c * Fraction(2) ** (31 - exponent)
        assert 2**30 <= exact <= 2**31
        assert abs(found - exact) <= Fraction(1, 2)


def test_products_are_rounded_twice():
    values, m, e = drawn(-(2**20), 2**20), drawn(2**30, 2**31 - 1), drawn(-12, 8)
    expected = [
        shifted_right(high_half(v << max(s, 0), k), max(-s, 0))
        for v, k, s in zip(values.tolist(), m.tolist(), e.tolist(), strict=True)
    ]
    assert integers(fixed_point.times(tensor(values), tensor(m), tensor(e))) == expected


def test_products_of_shifted_integers():
    values, m, e = drawn(-256, 256), drawn(2**30, 2**31 - 1), drawn(-12, 1)
    expected = [
        shifted_right(high_half(v << 20, k), -s)
        for v, k, s in zip(values.tolist(), m.tolist(), e.tolist(), strict=True)
    ]
    assert integers(fixed_point.times_shifted(tensor(values), tensor(m), tensor(e))) == expected


@pytest.mark.parametrize("count", [1, 2, 3, 7, 9, 49, 64, 100])
def test_division_by_a_count_is_exact(count):
    m = drawn(2**30, 2**31 - 1)
    quotient, bits = fixed_point.divided(tensor(m), count)
    assert bits == count.bit_length() - 1
    assert integers(quotient) == [(k << bits) // count for k in m.tolist()]


def test_product_of_32_bit_integers():
    a, b = drawn(-(2**31), 2**31), drawn(-(2**31) + 1, 2**31)
    expected = [high_half(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert integers(fixed_point.product(tensor(a), tensor(b))) == expected


def test_exponential_and_reciprocal_are_accurate_to_their_last_bits():
    """2^31 exp(a / 2^26) and 2^31 / (1 + a / 2^31).

    The series of the exponential leaves out x^5 / 5! of its argument, at most 1/8.
    """
    a = -drawn(0, 2**30)
    found = np.array(integers(fixed_point._exp(tensor(a))))
    assert np.abs(found - 2.0**31 * np.exp(a / 2.0**26)).max() < 2.0**31 / 8**5 / 120
    a = drawn(0, 2**31)
    found = np.array(integers(fixed_point._one_over_one_plus(tensor(a))))
    assert np.abs(found - 2.0**31 / (1 + a / 2.0**31)).max() < 16


def test_softmax_is_within_one_step():
    logits, step = RNG.integers(-128, 128, (200, 10)), np.float32(0.0625)
    found = keras.ops.convert_to_numpy(fixed_point.shares(tensor(logits), tensor(step, "float32")))
    exact = np.exp(logits * step) / np.exp(logits * step).sum(axis=1, keepdims=True)
    assert np.abs(found - 256 * exact).max() <= 0.51
