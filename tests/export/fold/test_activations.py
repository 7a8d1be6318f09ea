"""Protects networks with activations that affines cannot pass: correct even without the proof."""

import keras
import numpy as np
import pytest
from keras import layers as kl
from renormlite import UserError, fold
from renormlite.export.fold.rebuild import copy_state

# Float32 on both sides: a few roundings of numbers below 30. A scale that passed an activation it
# should not pass differs in the first digit.
TOLERANCE = 1e-4

ACTIVATIONS = [
    name
    for name in dir(keras.activations)
    if name not in {"serialize", "deserialize", "get", "glu", "threshold"}
    and not name.startswith("_")
]
LAYERS = {
    "conv1d": ((9, 3), lambda f: kl.Conv1D(4, 3, activation=f)),
    "conv2d": ((6, 6, 3), lambda f: kl.Conv2D(4, 3, padding="same", activation=f)),
    "grouped": ((6, 6, 4), lambda f: kl.Conv2D(4, 3, groups=2, activation=f)),
    "conv3d": ((4, 4, 4, 2), lambda f: kl.Conv3D(3, 2, activation=f)),
    "depthwise1d": ((9, 3), lambda f: kl.DepthwiseConv1D(3, activation=f)),
    "depthwise2d": ((6, 6, 3), lambda f: kl.DepthwiseConv2D(3, activation=f)),
    "separable1d": ((9, 3), lambda f: kl.SeparableConv1D(4, 3, activation=f)),
    "separable2d": ((6, 6, 3), lambda f: kl.SeparableConv2D(4, 3, activation=f)),
    "transposed1d": ((9, 3), lambda f: kl.Conv1DTranspose(4, 3, activation=f)),
    "transposed2d": ((6, 6, 3), lambda f: kl.Conv2DTranspose(4, 3, activation=f)),
    "transposed3d": ((4, 4, 4, 2), lambda f: kl.Conv3DTranspose(3, 2, activation=f)),
    "dense": ((5, 3), lambda f: kl.Dense(4, activation=f)),
    "einsum": (
        (5, 3),
        lambda f: kl.EinsumDense("abc,cd->abd", (5, 4), bias_axes="d", activation=f),
    ),
    "time_distributed": ((5, 3), lambda f: kl.TimeDistributed(kl.Dense(4, activation=f))),
}


def squared(x):
    return x * x + 1


def shifted_by_channel(x):
    return keras.ops.relu(x - keras.ops.arange(x.shape[-1], dtype=x.dtype))


def check(model, randomized, seed=0):
    """Fold without the proof and compare with the model itself."""
    randomized(model, seed, positive=True)
    x = np.random.default_rng(seed).normal(size=(4, *model.input_shape[1:])).astype("f4")
    expected = np.asarray(model(x, training=False))
    result = fold(model, verify=False)
    difference = np.abs(np.asarray(result.model(x, training=False)) - expected).max()
    assert difference <= TOLERANCE * np.abs(expected).max()
    return result


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_norm_between_an_activation_and_a_relu(name, randomized):
    x = keras.Input((6, 6, 3))
    y = kl.BatchNormalization()(kl.Conv2D(4, 3, activation=name)(x))
    check(keras.Model(x, kl.ReLU()(y)), randomized)


@pytest.mark.parametrize("function", ["softmax", squared, shifted_by_channel])
@pytest.mark.parametrize("layer", LAYERS)
def test_unknown_function_in_every_layer_that_takes_one(layer, function, randomized):
    shape, make = LAYERS[layer]
    x = keras.Input(shape)
    y = kl.BatchNormalization()(x)
    y = kl.BatchNormalization()(make(function)(y))
    result = check(keras.Model(x, kl.ReLU()(y)), randomized)
    assert "is not linear" in result.report.records[1].reason


@pytest.mark.parametrize("function", ["softmax", squared, shifted_by_channel])
def test_constant_channel_is_not_moved_through_an_unknown_function(function, randomized):
    """Neither a channel with a scale of 0 nor the channel of ones that carries a shift."""
    x = keras.Input((6, 6, 3))
    y = kl.Conv2D(4, 3, activation=function)(x)
    y = kl.BatchNormalization(name="norm")(y)
    model = keras.Model(x, kl.Conv2D(2, 3, padding="same")(y))
    check(model, randomized)
    model.get_layer("norm").gamma.assign([1.0, 0.0, 0.0, 2.0])
    result = fold(model, verify=False)
    inputs = np.random.default_rng(1).normal(size=(3, 6, 6, 3)).astype("f4")
    expected = np.asarray(model(inputs, training=False))
    np.testing.assert_allclose(
        result.model(inputs), expected, rtol=0, atol=TOLERANCE * np.abs(expected).max()
    )


@pytest.mark.parametrize("relu", [keras.ops.relu, keras.activations.relu, "tensorflow"])
def test_relu_by_any_name_passes_a_scale(relu, randomized):
    if relu == "tensorflow":
        import tensorflow as tf

        relu = tf.nn.relu
    x = keras.Input((6, 6, 3))
    y = kl.BatchNormalization(center=False, name="norm")(kl.Conv2D(4, 3, activation=relu)(x))
    model = keras.Model(x, kl.ReLU()(y))
    result = check(model, randomized)
    assert result.report.records[0].outcome in {"folded", "partly folded"}
    model.get_layer("norm").moving_mean.assign(np.zeros(4))
    assert fold(model).report.folded == 1


def test_layer_as_an_activation_keeps_its_weights(randomized):
    x = keras.Input((6, 3))
    dense = kl.Dense(4, activation=kl.PReLU())
    model = keras.Model(x, kl.ReLU()(kl.BatchNormalization()(dense(x))))
    dense.activation.build((None, 6, 4))
    dense.activation.alpha.assign(np.random.default_rng(0).normal(size=(6, 4)))
    check(model, randomized)


def test_dropout_that_is_called_in_training_mode_is_not_passed(randomized):
    """`model(x)` multiplies by its mask, so a shift cannot be moved past it."""
    x = keras.Input((6, 6, 3))
    y = kl.Dropout(0.5)(kl.Conv2D(4, 3)(x), training=True)
    model = keras.Model(x, kl.BatchNormalization()(y))
    (record,) = check(model, randomized).report.records
    assert record.outcome == "kept"
    assert "training=True" in record.reason


@pytest.mark.parametrize("constant", [2.0, -2.0])
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_constant_channel_of_a_norm_behind_an_activation(activation, constant, randomized):
    """A relu keeps 2, so the layer before it can give it; no other function does, nor -2."""
    x = keras.Input((6, 6, 3))
    y = kl.Conv2D(2, 3)(x)
    y = kl.BatchNormalization(name="norm", epsilon=0.0)(kl.Activation(activation)(y))
    model = randomized(keras.Model(x, kl.Softmax()(y)), positive=True)
    model.get_layer("norm").set_weights(
        [np.array([1.0, 0.0]), np.array([0.0, constant]), np.zeros(2), np.ones(2)]
    )
    inputs = np.random.default_rng(0).normal(size=(3, 6, 6, 3)).astype("f4")
    result = fold(model, verify=False)
    np.testing.assert_allclose(result.model(inputs), model(inputs), rtol=0, atol=TOLERANCE)
    possible = activation == "relu" and constant > 0
    assert (result.report.remaining_ops == 0) is possible


def test_a_layer_whose_weights_get_another_shape_is_named():
    # Keras infers the shape (2, 6, 4) behind EinsumDense("...d,dz->...z"), and computes (6, 2, 4).
    source, target = kl.PReLU(name="slopes"), kl.PReLU()
    source.build((None, 6, 2, 4))
    target.build((None, 2, 6, 4))
    with pytest.raises(UserError, match=r"'slopes' \(PReLU\) cannot be rebuilt: its weights"):
        copy_state(source, target)
