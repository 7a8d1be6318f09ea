"""Protects `LearnedRenormalization`: definition, bounds, and that training can leave the bounds."""

import keras
import numpy as np
import pytest
import renormlite as rl
import tensorflow as tf


def random_array(shape, seed=0):
    return (np.random.default_rng(seed).normal(size=shape) * 2 + 1).astype("float32")


@pytest.mark.parametrize(("shape", "axis"), [((32, 3), -1), ((8, 5, 5, 3), -1), ((8, 3, 5), 1)])
def test_training_and_inference_follow_the_definition(shape, axis):
    layer = rl.LearnedRenormalization(axis=axis, momentum=0.9)
    layer.build(shape)
    r, d = np.array([0.5, 2.0, 0.0], "float32"), np.array([1.0, -3.0, 0.25], "float32")
    layer.r.assign(r)
    layer.d.assign(d)
    mean, sigma = np.zeros(3), np.full(3, np.sqrt(1.001))
    for seed in range(4):
        x = np.moveaxis(random_array(shape, seed), axis, -1).astype("float64")
        y = layer(np.moveaxis(x, -1, axis).astype("float32"), training=True)
        axes = tuple(range(x.ndim - 1))
        batch_mean, batch_sigma = x.mean(axes), np.sqrt(x.var(axes) + 1e-3)
        expected = r * (x - batch_mean) / batch_sigma + d
        np.testing.assert_allclose(np.moveaxis(y, axis, -1), expected, rtol=1e-4, atol=1e-5)
        mean = 0.9 * mean + 0.1 * batch_mean
        sigma = 0.9 * sigma + 0.1 * batch_sigma
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, sigma**2 - 1e-3, rtol=1e-5)
    inferred = layer(np.moveaxis(x, -1, axis).astype("float32"))
    np.testing.assert_allclose(
        np.moveaxis(inferred, axis, -1), r * (x - mean) / sigma + d, rtol=1e-4, atol=1e-5
    )


def test_weights_set_out_of_bounds_act_as_clipped():
    layer = rl.LearnedRenormalization(r_max=2.0, d_max=1.0)
    layer.build((8, 3))
    layer.r.assign([-1.0, 1.5, 9.0])
    layer.d.assign([-4.0, 0.5, 4.0])
    r, d = layer.bounded_r_and_d()
    np.testing.assert_array_equal(r, [0.0, 1.5, 2.0])
    np.testing.assert_array_equal(d, [-1.0, 0.5, 1.0])
    x = random_array((8, 3))
    scale = np.array(r) / np.sqrt(1.001)
    np.testing.assert_allclose(layer(x), x * scale + np.array(d), rtol=1e-5)


def test_training_can_reach_the_bounds_and_leave_them():
    layer = rl.LearnedRenormalization(r_max=2.0, d_max=1.0)
    model = keras.Sequential([keras.layers.Input((3,)), layer])
    model.compile(keras.optimizers.SGD(0.2), "mse")
    x = random_array((64, 3))
    standard = (x - x.mean(0)) / x.std(0)
    model.fit(x, 9 * standard + 7, epochs=20, batch_size=64, verbose=0)
    np.testing.assert_array_equal(layer.r, [2.0, 2.0, 2.0])
    np.testing.assert_array_equal(layer.d, [1.0, 1.0, 1.0])
    model.fit(x, 0.5 * standard - 0.5, epochs=60, batch_size=64, verbose=0)
    np.testing.assert_allclose(layer.r, 0.5, atol=0.01)
    np.testing.assert_allclose(layer.d, -0.5, atol=0.01)


def test_a_bound_of_0_keeps_d_at_0_and_is_not_the_default():
    defaults = rl.LearnedRenormalization()
    assert (defaults.r_max, defaults.d_max) == (3.0, 5.0)
    frozen = rl.LearnedRenormalization(r_max=1.0, d_max=0.0)
    model = keras.Sequential([keras.layers.Input((3,)), frozen])
    model.compile("sgd", "mse")
    model.fit(random_array((16, 3)), random_array((16, 3), 1), verbose=0)
    np.testing.assert_array_equal(frozen.d, 0.0)


def test_a_saved_model_loads_with_the_same_outputs_and_config(tmp_path):
    model = keras.Sequential(
        [keras.layers.Input((4, 4, 3)), rl.LearnedRenormalization(r_max=1.5, momentum=0.5)]
    )
    model.compile("sgd", "mse")
    model.fit(random_array((8, 4, 4, 3)), random_array((8, 4, 4, 3), 1), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = random_array((2, 4, 4, 3), 2)
    np.testing.assert_array_equal(loaded(x), model(x))
    assert loaded.layers[0].get_config() == model.layers[0].get_config()
    assert loaded.layers[0].r.constraint.high == 1.5


def test_frozen_layers_infer_and_half_precision_keeps_float32_state():
    layer = rl.LearnedRenormalization(dtype="mixed_float16")
    x = tf.cast(random_array((16, 3)), "float16")
    assert layer(x, training=True).dtype == "float16"
    assert {w.dtype for w in layer.weights} == {"float32"}
    layer.trainable = False
    before = layer.get_weights()
    np.testing.assert_array_equal(layer(x, training=True), layer(x))
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_masks_keep_padding_out_of_the_statistics():
    x, mask = random_array((6, 5, 3)), np.arange(5) < np.array([5, 1, 3, 0, 2, 4])[:, None]
    masked, unpadded = rl.LearnedRenormalization(), rl.LearnedRenormalization()
    y = masked(x, training=True, mask=tf.constant(mask))
    expected = unpadded(x[mask], training=True)
    np.testing.assert_allclose(np.array(y)[mask], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(masked.moving_mean, unpadded.moving_mean, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"r_max": 0}, "r_max above 0"), ({"d_max": -1}, "d_max to be at least 0")],
)
def test_invalid_bounds_are_refused(arguments, message):
    with pytest.raises(rl.UserError, match=message):
        rl.LearnedRenormalization(**arguments)


def test_it_folds_into_the_neighbouring_layers():
    model = keras.Sequential(
        [
            keras.layers.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3),
            rl.LearnedRenormalization(r_max=2.0, d_max=1.0),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(5),
            rl.LearnedRenormalization(),
        ]
    )
    for seed in range(3):
        model(random_array((8, 8, 8, 3), seed), training=True)
    model.layers[1].r.assign([0.0, 0.5, 1.5, 9.0])  # one dead channel, one beyond its bound
    model.layers[1].d.assign([0.3, -0.2, 4.0, 0.0])
    folded = rl.fold(model)
    assert [record.outcome for record in folded.report.records] == ["folded", "folded"]
    kinds = {type(layer).__name__ for layer in folded.model.layers}
    assert not kinds & {"LearnedRenormalization", "ChannelAffine"}
    x = random_array((4, 8, 8, 3), 9)
    np.testing.assert_allclose(folded.model(x), model(x), rtol=1e-4, atol=1e-4)
