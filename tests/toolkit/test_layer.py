"""Protects the layer in Keras: state, serialization, refusal of wrong arguments."""

import keras
import numpy as np
import pytest
import renormlite as rl


def random_array(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def trained_layer(shape=(16, 4), **arguments):
    layer = rl.BatchRenormalization(momentum=0.7, **arguments)
    for seed in range(3):
        layer(random_array(shape, seed) * 2 + 1, training=True)
    return layer


def test_weights_have_the_documented_order():
    layer = trained_layer()
    names = ["gamma", "beta", "moving_mean", "moving_variance", "step"]
    assert [w.name for w in layer.weights] == names
    assert [w.name for w in layer.trainable_weights] == names[:2]


@pytest.mark.parametrize("how", ["inference", "frozen"])
def test_inference_and_frozen_layers_change_no_state(how):
    layer = trained_layer()
    before = layer.get_weights()
    x = random_array((16, 4), 9)
    expected = layer(x, training=False)
    if how == "frozen":
        layer.trainable = False
    np.testing.assert_array_equal(layer(x, training=how == "frozen"), expected)
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_saved_model_loads_with_the_same_outputs_and_config(tmp_path):
    model = keras.Sequential(
        [
            keras.layers.Input((5, 5, 3)),
            keras.layers.Conv2D(4, 3),
            rl.BatchRenormalization(
                r_max=2.0,
                center=False,
                gamma_regularizer=keras.regularizers.L2(1e-3),
                gamma_constraint="non_neg",
                momentum=0.5,
            ),
        ]
    )
    model.compile("sgd", "mse")
    model.fit(random_array((8, 5, 5, 3)), random_array((8, 3, 3, 4)), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = random_array((2, 5, 5, 3), 4)
    np.testing.assert_array_equal(model.predict(x, verbose=0), loaded.predict(x, verbose=0))
    assert loaded.layers[1].get_config() == model.layers[1].get_config()
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = keras.models.clone_model(model)
    fresh.load_weights(tmp_path / "model.weights.h5")
    for ours, theirs in zip(fresh.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("how", ["set_weights", "load_weights"])
def test_trained_statistics_set_with_step_0_are_kept(how, tmp_path):
    trained, fresh = (
        keras.Sequential([keras.layers.Input((4,)), rl.BatchRenormalization(momentum=0.7)])
        for _ in range(2)
    )
    trained(random_array((16, 4)) * 2 + 1, training=True)
    trained.layers[0].step.assign(0)
    if how == "set_weights":
        fresh.layers[0].set_weights(trained.layers[0].get_weights())
    else:
        trained.save_weights(tmp_path / "model.weights.h5")
        fresh.load_weights(tmp_path / "model.weights.h5")
    layer, x = fresh.layers[0], random_array((16, 4), 1)
    assert layer.get_config()["warm_up"] is False
    before = np.asarray(layer.moving_mean)
    layer(x, training=True)
    np.testing.assert_allclose(layer.moving_mean, 0.7 * before + 0.3 * x.mean(0), atol=1e-6)


def test_weights_that_are_initial_or_counted_leave_the_warm_up_on():
    layer, resumed = trained_layer(), rl.BatchRenormalization(momentum=0.99)
    resumed.build((16, 4))
    resumed.set_weights(resumed.get_weights())
    assert resumed.warm_up
    resumed.set_weights(layer.get_weights())
    assert resumed.warm_up
    x = random_array((16, 4), 3)
    before = np.asarray(resumed.moving_mean)
    resumed(x, training=True)  # the fourth batch
    np.testing.assert_allclose(resumed.moving_mean, before * 3 / 4 + x.mean(0) / 4, atol=1e-6)


def test_a_config_without_warm_up_has_it_on():
    config = rl.BatchRenormalization(warm_up=False).get_config()
    assert rl.BatchRenormalization.from_config(config).warm_up is False
    del config["warm_up"]
    assert rl.BatchRenormalization.from_config(config).warm_up is True


def test_channel_affine_multiplies_and_adds_per_channel():
    layer = rl.ChannelAffine(axis=1)
    x = random_array((2, 3, 4))
    layer.build(x.shape)
    layer.set_weights([np.array([2, -1, 0], "float32"), np.array([1, 0, 5], "float32")])
    expected = x * np.array([2, -1, 0])[:, None] + np.array([1, 0, 5])[:, None]
    np.testing.assert_allclose(layer(x), expected, rtol=1e-6)
    only_shift = rl.ChannelAffine.from_config({"use_scale": False})
    only_shift.build(x.shape)
    assert [w.name for w in only_shift.weights] == ["shift"]
    np.testing.assert_array_equal(only_shift(x), x)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: rl.BatchRenormalization(momentum=2), "momentum between 0 and 1"),
        (lambda: rl.BatchRenormalization(epsilon=0), "epsilon above 0"),
        (lambda: rl.BatchRenormalization(axis=(1, 2)), "axis to be one integer"),
        (lambda: rl.BatchRenormalization().build((3,)), "rank 2 or more"),
        (lambda: rl.BatchRenormalization(axis=4).build((2, 3, 4)), "have the axis 4"),
        (lambda: rl.BatchRenormalization().build((2, None)), "channel axis -1 to be known"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(build, message):
    with pytest.raises(rl.UserError, match=message):
        build()
