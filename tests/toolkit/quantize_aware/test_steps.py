"""Protects the formulas of steps: exact multiples, exact zero, straight-through gradients."""

import keras
import numpy as np
import pytest
from renormlite.toolkit.quantize_aware import steps

RNG = np.random.default_rng(0)


def array(value):
    return keras.ops.convert_to_numpy(value)


def test_a_step_and_all_its_multiples_are_exact_float32_numbers() -> None:
    for width in RNG.uniform(1e-6, 1e4, 200):
        low = -RNG.uniform(0, 1) * width
        step, zero = array(steps.grid_of(np.float32(low), np.float32(low + width), 8))
        every = np.arange(-255, 256)
        exact = every * np.float64(step)
        assert (exact.astype(np.float32) == exact).all()
        assert (np.float32(exact) / step == every).all()
        assert zero == int(zero)
        assert -128 <= zero <= 127
        # Rounding to 16 significant bits changes a step by at most half a unit in the last of them.
        assert abs(255 * np.float64(step) - width) <= 2.0**-16 * width


def test_a_converter_computes_the_same_step_from_the_ends_of_a_range() -> None:
    """Converters compute (high - low) / 255 in double precision."""
    for width in RNG.uniform(1e-3, 1e3, 200):
        step, zero = array(steps.grid_of(np.float32(-width / 3), np.float32(width), 8))
        low, high = np.float32((-128 - zero) * step), np.float32((127 - zero) * step)
        assert np.float32((np.float64(high) - np.float64(low)) / 255) == step
        assert round(-128 - np.float64(low) / np.float64(step)) == zero


@pytest.mark.parametrize(("low", "high"), [(0.5, 3.0), (-3.0, -0.5), (0.0, 0.0)])
def test_zero_is_represented_exactly(low: float, high: float) -> None:
    grid = steps.grid_of(np.float32(low), np.float32(high), 8)
    values = keras.ops.convert_to_tensor([0.0, low, high])
    quantized = array(steps.fake_quantized(values, grid, 8))
    assert quantized[0] == 0
    np.testing.assert_allclose(quantized, [0.0, low, high], atol=0.6 * float(grid[0]))


@pytest.mark.parametrize(("low", "high"), [(0.0, 5.0), (-5.0, 1.0), (1.0, 5.0)])
def test_16_bits_are_symmetric(low: float, high: float) -> None:
    step, zero = array(steps.grid_of(np.float32(low), np.float32(high), 16, symmetric=True))
    assert zero == 0
    assert step == pytest.approx(5 / 32767, rel=2.0**-8)


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_weights_use_the_whole_range_of_integers(bits: int) -> None:
    kernel = keras.ops.convert_to_tensor(RNG.normal(size=(3, 3, 4, 6)).astype("f4"))
    width = steps.weight_steps(kernel, bits, (0, 1, 2))
    integers = array(steps.weight_integers(kernel, width, bits))
    largest = 2 ** (bits - 1) - 1
    assert (np.abs(integers).max(axis=(0, 1, 2)) == largest).all()
    assert np.abs(integers * array(width) - array(kernel)).max() <= 0.501 * array(width).max()


def test_a_bias_of_a_channel_without_weights_fits_32_bits() -> None:
    kernel = keras.ops.zeros((1, 1, 1, 2))
    bias, step = np.array([3.0, 0.0], np.float32), np.float32(0.01)
    width = steps.weight_steps(kernel, 8, (0, 1, 2), steps.bias_room(bias, step))
    assert np.abs(bias / (step * array(width).reshape(-1))).max() <= 2.0**22 * (1 + 2.0**-15)


def test_the_gradient_passes_rounding_and_stops_at_the_ends() -> None:
    import tensorflow as tf

    values = tf.constant([-9.0, 0.3, 0.7, 9.0])
    low, high = tf.constant(-1.0), tf.constant(1.0)
    with tf.GradientTape() as tape:
        tape.watch([values, low, high])
        total = tf.reduce_sum(steps.fake_quantized(values, steps.grid_of(low, high, 8), 8))
    of_values, of_low, of_high = tape.gradient(total, [values, low, high])
    assert of_values.numpy().tolist() == [0.0, 1.0, 1.0, 0.0]
    # Values clipped at an end move with it; values inside move by less than a step.
    assert of_low.numpy() == pytest.approx(1.0, abs=0.05)
    assert of_high.numpy() == pytest.approx(1.0, abs=0.05)
