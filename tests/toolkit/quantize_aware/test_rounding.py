"""Protects the simulated arithmetic of runtimes: equal to the rounding rules that checks use."""

import keras
import numpy as np
import pytest
from renormlite.reference.rounding.tables import wide_sigmoid, wide_tanh
from renormlite.reference.rounding.xnnpack import Float32, Micro
from renormlite.toolkit.quantize_aware.rounding import ROUNDINGS, rounding_named
from renormlite.toolkit.quantize_aware.steps import significant
from renormlite.toolkit.quantize_aware.wide import WIDE, scaled_pairs

RNG = np.random.default_rng(0)
RULES = [(ROUNDINGS["float"], Float32()), (ROUNDINGS["double"], Micro())]


def step(low: float = -12.0, high: float = 4.0) -> np.float32:
    """Return a step of 16 significant bits, as the layers have."""
    value = np.float32(2.0 ** RNG.uniform(low, high))
    return keras.ops.convert_to_numpy(significant(value, 16))


def array(value) -> np.ndarray:
    return keras.ops.convert_to_numpy(value)


@pytest.mark.parametrize(("ours", "rule"), RULES)
def test_sums(ours, rule) -> None:
    for _ in range(60):
        x, y, w = step(), step(-6.0, 6.0), np.array([step(), step()])
        reach = min(2.0**23, 300 * y / (x * w.max()))
        sums = RNG.integers(-reach - 1, reach + 1, (500, 2))
        wanted = rule.rounded(sums, np.array(x), w, np.array(y))
        actual = array(ours.scaled(sums.astype("f4"), x, w, y))
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize(("ours", "rule"), RULES)
def test_additions(ours, rule) -> None:
    for _ in range(60):
        steps = step(-8, 2), step(-8, 2), step(-5, 2)
        a, b = RNG.integers(-255, 256, (2, 500))
        wanted = np.clip(rule.added(a, b, steps), -300, 300)
        actual = array(ours.added(a.astype("f4"), b.astype("f4"), steps))
        np.testing.assert_array_equal(np.clip(actual, -300, 300), wanted)


@pytest.mark.parametrize(("ours", "rule"), RULES)
def test_means(ours, rule) -> None:
    for count in (4, 9, 16, 49, 300):
        x, y = step(-8, 2), step(-8, 2)
        sums = RNG.integers(-255 * count, 255 * count + 1, 500)
        wanted = rule.averaged(sums, count, np.array(x), np.array(y))
        actual = array(ours.averaged(sums.astype("f4"), count, x, y))
        np.testing.assert_array_equal(np.clip(actual, -300, 300), np.clip(wanted, -300, 300))


@pytest.mark.parametrize(("ours", "rule"), RULES)
def test_softmax(ours, rule) -> None:
    y = np.float32(1 / 256)
    for _ in range(40):
        x, width = step(-9, 1), int(RNG.integers(2, 40))
        values = RNG.integers(-128, 128, (50, width)) // int(RNG.integers(1, 6))
        wanted = rule.shares(values, x, np.float32(1), y)
        actual = array(ours.shares(values.astype("f4"), x, float(y)))
        off = np.abs(actual - wanted)
        # Libraries differ in the float32 exponential.
        allowed = 2e-3 if ours.name == "float" else 0.0
        assert np.mean(off != 0) <= allowed
        assert off.max() <= 1


@pytest.mark.parametrize(("ours", "rule"), RULES)
def test_requantization(ours, rule) -> None:
    for _ in range(60):
        x, y = step(-8, 2), step(-8, 2)
        values = RNG.integers(-255, 256, 500)
        wanted = rule.requantized(values, np.array(x), np.array(y))
        actual = array(ours.requantized(values.astype("f4"), x, y))
        np.testing.assert_array_equal(np.clip(actual, -300, 300), np.clip(wanted, -300, 300))


@pytest.mark.parametrize(("ours", "rule"), RULES)
def test_inputs(ours, rule) -> None:
    y = step(-8, 2)
    values = np.float32(RNG.integers(-600, 600, 2000) / 2 * y)  # half of them are ties
    wanted = rule.quantized(values, y)
    np.testing.assert_array_equal(array(ours.quantized(values, y)), wanted)


def test_an_unknown_rounding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected rounding to be one of .* Received: 'up'"):
        rounding_named("up")


WIDE_RULES = [(WIDE["float"], Float32().of_bits(16)), (WIDE["double"], Micro())]


def wide_step(low: float = -16.0, high: float = -6.0) -> np.float32:
    """A step of 16-bit activations, of 8 significant bits."""
    return array(significant(np.float32(2.0 ** RNG.uniform(low, high)), 8))


def clipped(values) -> np.ndarray:
    return np.clip(array(values), -32768, 32767)


@pytest.mark.parametrize(("ours", "rule"), WIDE_RULES)
def test_sums_of_16_bit_integers(ours, rule) -> None:
    for _ in range(12):
        x, w = wide_step(), np.array([step(), step()])
        reach = int(2.0 ** RNG.uniform(20, 31))
        y = array(significant(np.float32(x * w.max() * reach / 2.0 ** RNG.uniform(8, 16)), 8))
        sums = RNG.integers(-reach, reach, (500, 2))
        wanted = rule.rounded_wide(sums, np.array(x), w, np.array(y))
        high, low = np.divmod(sums, 256)
        got = scaled_pairs(high.astype("f4"), low.astype("f4"), x, w, y)
        np.testing.assert_array_equal(clipped(got), clipped(wanted))


@pytest.mark.parametrize(("ours", "rule"), WIDE_RULES)
def test_operators_of_16_bit_integers(ours, rule) -> None:
    for _ in range(12):
        a, b = RNG.integers(-32767, 32768, (2, 500))
        s, t, y = wide_step(), wide_step(), wide_step(-12.0, -5.0)
        first, second = a.astype("f4"), b.astype("f4")
        wanted = rule.added(a, b, (s, t, y), 16)
        np.testing.assert_array_equal(
            clipped(ours.added(first, second, (s, t, y))), clipped(wanted)
        )
        fine = array(significant(np.float32(s * t * 2.0 ** RNG.uniform(12, 16)), 8))
        wanted = rule.scaled(a * b, float(s * t / fine))
        got = ours.product(first, second, (s, t, fine))
        np.testing.assert_array_equal(clipped(got), clipped(wanted))
        wanted = rule.requantized(a, np.array(s), np.array(y))
        np.testing.assert_array_equal(clipped(ours.requantized(first, s, y)), clipped(wanted))
        wanted = rule.leaky(a, float(s / y), float(s * np.float32(0.1) / y))
        np.testing.assert_array_equal(clipped(ours.leaky(first, 0.1, s, y)), clipped(wanted))
        sums = RNG.integers(-32767 * 49, 32767 * 49, 500)
        wanted = rule.averaged(sums, 49, np.array(s), np.array(y))
        got = ours.averaged(sums.astype("f4"), 49, s, y)
        np.testing.assert_array_equal(clipped(got), clipped(wanted))
        values = RNG.normal(size=(3, 5, 7)).astype("f4") * 30000 * s
        wanted = rule.quantized(values, np.array(s))
        np.testing.assert_array_equal(clipped(ours.quantized(values, s)), clipped(wanted))


@pytest.mark.parametrize("ours", WIDE.values())
def test_curves_of_16_bit_integers(ours) -> None:
    x = np.arange(-32768, 32768)
    for _ in range(6):
        s = wide_step(-16.0, -9.0)
        for got, wanted in (
            (ours.sigmoid(x.astype("f4"), s), wide_sigmoid(x, s)),
            (ours.tanh(x.astype("f4"), s), wide_tanh(x, s)),
        ):
            np.testing.assert_array_equal(clipped(got), clipped(wanted))


@pytest.mark.parametrize(("ours", "rule"), RULES)
def test_bilinear_resizing(ours, rule) -> None:
    for sizes in ((4, 9), (7, 3), (12, 5)):
        x = RNG.integers(-128, 128, (2, 6, 5, 3))
        zero = int(RNG.integers(-128, 128))
        wanted = rule.resized(x[None], list(sizes), False, True)[0]
        got = array(ours.resized((x - zero).astype("f4"), np.float32(zero), sizes)) + zero
        np.testing.assert_array_equal(got, wanted)
