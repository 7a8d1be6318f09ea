"""Protects the fold of a norm into the layers after it: activations, borders, pooling, Flatten."""

import keras
import numpy as np
import pytest
from keras import layers as kl
from renormlite import fold
from renormlite.toolkit.bias_map import BiasMap

NORM = kl.BatchNormalization


def chain(shape, *layers):
    return keras.Sequential([kl.Input(shape), *layers])


def kinds(model):
    names = [type(layer).__name__ for layer in model.layers]
    return [name for name in names if name != "InputLayer"]  # Sequential does not list it


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "swish", "tanh"])
@pytest.mark.parametrize(
    "after",
    {
        "valid": lambda: [kl.Conv2D(3, 3)],
        "strided valid": lambda: [kl.Conv2D(3, 3, strides=2)],
        "dilated valid": lambda: [kl.Conv2D(3, 2, dilation_rate=2)],
        "grouped valid": lambda: [kl.Conv2D(4, 3, groups=2)],
        "1x1 same": lambda: [kl.Conv2D(3, 1, padding="same")],
        "same that pads nothing": lambda: [kl.Conv2D(3, 2, strides=2, padding="same")],
        "depthwise valid": lambda: [kl.DepthwiseConv2D(3, depth_multiplier=2)],
        "separable valid": lambda: [kl.SeparableConv2D(3, 3, depth_multiplier=2)],
        "transposed 1x1": lambda: [kl.Conv2DTranspose(3, 1)],
        "dense": lambda: [kl.Dense(3)],
        "einsum": lambda: [kl.EinsumDense("abcd,de->abce", (6, 6, 3), bias_axes="e")],
        "time distributed": lambda: [kl.TimeDistributed(kl.Conv1D(3, 3))],
        "average pool": lambda: [kl.AveragePooling2D(2, padding="same"), kl.Conv2D(3, 1)],
        "flatten": lambda: [kl.Flatten(), kl.Dense(3)],
        "global average": lambda: [kl.GlobalAveragePooling2D(), kl.Dense(3)],
        "global average kept": lambda: [kl.GlobalAveragePooling2D(keepdims=True), kl.Conv2D(3, 1)],
        "dropout": lambda: [kl.Dropout(0.5), kl.SpatialDropout2D(0.2), kl.Conv2D(3, 1)],
        "noise": lambda: [kl.GaussianNoise(0.5), kl.GaussianDropout(0.5), kl.Conv2D(3, 1)],
        "upsampling": lambda: [kl.UpSampling2D(2, interpolation="bilinear"), kl.Conv2D(3, 1)],
        "cropping": lambda: [kl.Cropping2D(1), kl.Conv2D(3, 1)],
        "permute": lambda: [kl.Permute((3, 2, 1)), kl.Permute((3, 2, 1)), kl.Conv2D(3, 1)],
        "reshape": lambda: [kl.Reshape((-1, 4)), kl.Conv1D(3, 2)],
    }.items(),
    ids=lambda case: case[0] if isinstance(case, tuple) else case,
)
def test_norm_after_an_activation_folds_completely(activation, after, folded):
    model = chain((8, 8, 3), kl.Conv2D(4, 3, activation=activation), NORM(), *after[1]())
    result = folded(model)
    (record,) = result.report.records
    assert record.outcome == "folded", record.reason
    assert kinds(result.model) == [k for k in kinds(model) if k != "BatchNormalization"]


@pytest.mark.parametrize(
    "after",
    {
        "same": lambda: [kl.Conv2D(3, 3, padding="same")],
        "strided": lambda: [kl.Conv2D(3, 3, strides=2, padding="same")],
        "dilated": lambda: [kl.Conv2D(3, 3, dilation_rate=2, padding="same")],
        "even kernel": lambda: [kl.Conv2D(3, 4, padding="same")],
        "zero padding": lambda: [kl.ZeroPadding2D(((1, 2), (0, 1))), kl.Conv2D(3, 3)],
        "pool, then same": lambda: [kl.AveragePooling2D(2), kl.Conv2D(3, 3, padding="same")],
        "transposed": lambda: [kl.Conv2DTranspose(3, 3, strides=2, padding="same")],
        "dropout, then same": lambda: [kl.Dropout(0.1), kl.Conv2D(3, 3, padding="same")],
    }.items(),
    ids=lambda case: case[0],
)
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "swish"])
def test_shift_reaches_zero_padding_exactly(after, activation, folded):
    """A channel of ones, padded like the others, carries the shift, so no operation remains."""
    model = chain((8, 9, 3), kl.Conv2D(4, 3, activation=activation), NORM(), *after[1]())
    result = folded(model)
    assert result.report.remaining_ops == 0
    assert kinds(result.model) == [k for k in kinds(model) if k != "BatchNormalization"]
    assert result.model.layers[1].filters == 5


@pytest.mark.parametrize(("channels", "left"), [(8, 0), (12, 0), (16, 1), (17, 0), (24, 1)])
def test_a_channel_that_starts_a_block_of_8_is_dearer_than_an_addition(channels, left, folded):
    layers = [kl.Conv2D(channels, 3, activation="relu"), NORM(), kl.Conv2D(3, 3, padding="same")]
    result = folded(chain((8, 9, 3), *layers))
    assert result.report.remaining_ops == left
    assert result.model.layers[1].filters == channels + (1 - left)


def test_conv1d_and_conv3d_at_borders(folded):
    one = chain(
        (9, 3), kl.Conv1D(4, 3, activation="relu"), NORM(), kl.Conv1D(3, 3, padding="causal")
    )
    three = chain(
        (5, 6, 5, 2), kl.Conv3D(3, 2, activation="relu"), NORM(), kl.Conv3D(2, 3, padding="same")
    )
    assert folded(one).report.remaining_ops == 0
    assert folded(three).report.remaining_ops == 0


GROUPED = {
    "grouped": (1, lambda: [kl.Conv2D(9, 3, groups=3, padding="same")]),
    "strided": (1, lambda: [kl.Conv2D(6, 3, groups=3, strides=2, padding="same")]),
    "from groups": (3, lambda: [kl.Conv2D(6, 3, groups=3, padding="same")]),
    "from fewer groups": (2, lambda: [kl.Conv2D(8, 3, groups=4, padding="same")]),
    "pooled": (1, lambda: [kl.AveragePooling2D(2), kl.Conv2D(6, 2, groups=3, padding="same")]),
    "padding apart": (1, lambda: [kl.ZeroPadding2D(1), kl.Conv2D(6, 3, groups=3)]),
}  # fmt: skip


@pytest.mark.parametrize("name", GROUPED)
def test_every_group_reads_its_own_channel_of_ones(name, folded):
    groups, after = GROUPED[name]
    model = chain((8, 9, 6), kl.Conv2D(12, 3, groups=groups, activation="relu"), NORM(), *after())
    result = folded(model, positive=True)
    assert result.report.remaining_ops == 0
    assert kinds(result.model) == [k for k in kinds(model) if k != "BatchNormalization"]


def test_readers_with_different_groups_share_the_channels_of_ones(folded):
    x = keras.Input((7, 8, 3))
    y = NORM()(kl.Conv2D(12, 3, activation="relu")(x))
    z = NORM()(kl.Add()([y, kl.Conv2D(12, 3)(x)]))
    outputs = [
        kl.Conv2D(6, 3, groups=2, padding="same")(z),
        kl.Conv2D(6, 3, groups=3, padding="same")(y),
        kl.Conv2DTranspose(3, 3, padding="same")(y),
        kl.Dense(2)(kl.GlobalAveragePooling2D()(y)),
    ]
    model = keras.Model(x, outputs)
    assert folded(model, positive=True).report.remaining_ops == 0


def test_groups_of_one_channel_keep_one_add(folded):
    """Each group would need its own channel of ones: twice the work, where one ADD is enough."""
    layers = [kl.Conv2D(4, 3, activation="relu"), NORM(), kl.Conv2D(4, 3, groups=4, padding="same")]
    (record,) = folded(chain((8, 8, 3), *layers)).report.records
    assert record.remaining_ops == ("ADD",)


def test_depthwise_with_zero_padding_keeps_one_add(folded):
    """A depthwise kernel reads one channel only, so it cannot detect the border."""
    layers = [kl.Conv2D(4, 3, activation="relu"), NORM(), kl.DepthwiseConv2D(3, padding="same")]
    (record,) = folded(chain((8, 8, 3), *layers)).report.records
    assert record.remaining_ops == ("ADD",)
    assert "pads with zeros" in record.reason
    assert record.outcome == "partly folded"


def test_bias_map_if_a_gamma_is_zero_and_no_channel_can_be_added(randomized):
    layers = [
        kl.DepthwiseConv2D(3, activation="relu"),
        NORM(),
        kl.DepthwiseConv2D(3, padding="same", activation="relu"),
    ]
    model = randomized(chain((8, 8, 4), *layers))
    model.layers[1].gamma.assign([0.0, -1.5, 0.7, 2.0])
    result = fold(model)
    assert result.proof.passed
    assert result.report.records[0].remaining_ops == ("ADD",)
    assert [type(layer) for layer in result.model.layers].count(BiasMap) == 1


def test_norm_of_the_input_folds_into_the_first_layer(folded):
    model = chain((8, 8, 3), NORM(), kl.Conv2D(4, 3), NORM())
    assert folded(model).report.folded == 2


def test_max_pooling_takes_only_scales_that_are_not_negative(folded):
    layers = [kl.Conv2D(4, 3, activation="relu"), NORM(), kl.MaxPooling2D(2), kl.Conv2D(3, 1)]
    assert folded(chain((8, 8, 3), *layers), positive=True).report.remaining_ops == 0
    layers = [kl.Conv2D(4, 3, activation="tanh"), NORM(), kl.MaxPooling2D(2), kl.Conv2D(3, 1)]
    (record,) = folded(chain((8, 8, 3), *layers), seed=1).report.records
    assert "negative" in record.reason


def test_range_growth_is_measured_at_the_absorbing_layer(folded):
    forward = chain((8, 8, 3), kl.Conv2D(4, 3, activation="relu"), NORM(), kl.Conv2D(3, 1))
    backward = chain((8, 8, 3), kl.Conv2D(4, 3), NORM(), kl.ReLU())
    result = folded(forward)
    (record,) = result.report.records
    old, new = (m.layers[-1].kernel.numpy().reshape(4, 3) for m in (forward, result.model))

    def spread(kernel):
        return np.abs(kernel).max(0) / np.sqrt(np.square(kernel).mean(0))

    assert record.range_growth == pytest.approx(max(1, (spread(new) / spread(old)).max()), rel=1e-4)
    assert folded(backward).report.records[0].range_growth == 1.0


def test_output_of_the_network_is_not_changed(folded):
    model = chain((8, 8, 3), kl.Conv2D(4, 3, activation="sigmoid"), NORM())
    (record,) = folded(model).report.records
    assert record.remaining_ops == ("MUL", "ADD")
    assert "sigmoid" in record.reason or "activation" in record.reason
    assert "output of the network" in record.reason


def test_free_sizes_can_be_set_by_the_user(folded):
    x = keras.Input((None, None, 3), name="photo")
    y = NORM()(kl.Conv2D(4, 3, activation="relu")(x))
    y = kl.Conv2D(5, 3, padding="same", activation="relu")(y)
    y = kl.Dense(3)(kl.GlobalAveragePooling2D()(NORM()(y)))
    model = keras.Model(x, y)
    result = folded(model, shapes={"photo": (24, 20)})
    assert result.report.remaining_ops == 0
    assert result.model.input_shape == (None, 24, 20, 3)
    result = fold(model, verify=False)
    assert result.report.remaining_ops == 0
    assert result.model.input_shape == (None, None, None, 3)
    result = fold(model)
    assert result.proof.passed
    assert result.model.input_shape == (None, None, None, 3)


def test_norms_of_raw_features_can_be_kept(randomized):
    """Folded, they make the weights of the first layer as different as the features are."""
    x = keras.Input((6,))
    sizes = np.array([0.01, 0.1, 1.0, 50.0, 2e3, 2.8e5])
    y = kl.Rescaling(2.0)(kl.Normalization(mean=np.zeros(6), variance=sizes**2)(x))
    model = randomized(keras.Model(x, NORM()(kl.Dense(4)(y))))
    data = np.random.default_rng(0).normal(size=(8, 6)) * sizes
    folded, kept = (fold(model, keep_input_norms=keep, inputs=data) for keep in (False, True))
    assert folded.proof.passed
    assert kept.proof.passed
    assert [record.outcome for record in folded.report.records] == ["folded"] * 3
    assert [record.outcome for record in kept.report.records] == ["kept", "kept", "folded"]
    assert "norms of inputs are kept" in kept.report.records[0].reason
    assert max(record.range_growth for record in folded.report.records) > 1.5
    assert kept.report.records[2].range_growth == 1.0

    def coarse(network):
        """Return the outputs with weights in float16."""
        twin = keras.models.clone_model(network)
        twin.set_weights(network.get_weights())
        for layer in twin.layers:
            if isinstance(layer, kl.Dense):
                layer.set_weights([np.float32(np.float16(w)) for w in layer.get_weights()])
        return np.asarray(twin(data.astype("f4")))

    exact = np.asarray(model(data.astype("f4")))
    errors = [np.abs(coarse(result.model) - exact).max() for result in (folded, kept)]
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("behind", [[], [kl.ZeroPadding1D(1)]])
def test_a_shift_along_another_axis_than_the_channels(padding, behind):
    """Scale one for all, shift along time, and as many time steps as channels."""
    norm = kl.BatchNormalization(axis=1, scale=False)
    model = chain((5, 5), norm, *behind, kl.Conv1D(4, 3, padding=padding))
    norm.set_weights([np.arange(5.0), np.zeros(5), np.ones(5)])
    x = np.random.default_rng(0).normal(size=(3, 5, 5)).astype("f4")
    result = fold(model, verify=False)
    np.testing.assert_allclose(result.model(x), model(x), atol=1e-5)
    assert fold(model).proof.rolled_back == ()


@pytest.mark.parametrize("shape", [(5, 5, 4), (4, 5, 5), (5, 3)])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_vector_is_added_on_the_axis_that_keras_chooses(shape, axis, randomized):
    """On TensorFlow, a vector of the size of axis 1 or of the last axis is added on that axis."""
    vector = np.arange(1.0, shape[axis] + 1, dtype=np.float32)
    vector = vector.reshape([-1] + [1] * (len(shape) - axis - 1))
    x = keras.Input(shape)
    y = kl.BatchNormalization()(kl.Dense(shape[-1])(x) + vector)
    model = randomized(keras.Model(x, kl.Dense(2)(y)))
    folded = fold(model, verify=False).model
    samples = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    np.testing.assert_allclose(folded(samples), model(samples), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("axis", "folds"), [(1, 0), (2, 1)])
def test_repeated_features_have_another_axis(axis, folds, randomized):
    """Two features repeated twice: the sizes of the axes do not tell them apart."""
    x = keras.Input((2,))
    model = keras.Model(x, kl.BatchNormalization(axis=axis)(kl.RepeatVector(2)(kl.Dense(2)(x))))
    result = fold(randomized(model), verify=False)
    samples = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    np.testing.assert_allclose(result.model(samples), model(samples), rtol=1e-4, atol=1e-4)
    assert result.report.folded == folds


@pytest.mark.parametrize(
    "between",
    [
        lambda: [kl.AveragePooling2D(2)],
        lambda: [kl.MaxPooling2D(2)],
        lambda: [kl.UpSampling2D(2)],
        lambda: [kl.Cropping2D(1)],
        lambda: [kl.Dropout(0.5)],
        lambda: [kl.Permute((2, 1, 3))],
    ],
)
def test_a_channel_of_ones_passes_through_layers_in_front_of_the_norm(between, folded):
    """A convolution before them provides it, and one that pads with zeros reads it."""
    layers = [kl.Conv2D(6, 3, activation="relu"), *between(), NORM()]
    model = chain((8, 8, 3), *layers, kl.Conv2D(3, 3, padding="same"))
    result = folded(model)
    assert result.report.remaining_ops == 0
    assert kinds(result.model) == [k for k in kinds(model) if k != "BatchNormalization"]


def test_a_norm_on_another_axis_does_not_ignore_a_channel_of_ones(folded):
    """The other norm is an output, so that it must not have a channel more."""
    x = keras.Input((8, 8, 3))
    y = kl.Conv2D(4, 3, activation="relu")(x)
    model = keras.Model(x, [kl.Conv2D(3, 3, padding="same")(NORM()(y)), NORM(axis=1)(y)])
    result = folded(model)
    assert [tuple(output.shape) for output in result.model.outputs] == [
        (None, 6, 6, 3),
        (None, 6, 6, 4),
    ]
    first, second = result.report.records
    assert first.outcome != "folded"
    assert second.outcome == "kept"


def test_the_reason_names_the_axis_of_the_channels(folded):
    x = keras.Input((8, 8, 3))
    model = keras.Model(x, kl.ReLU()(NORM(axis=1, name="n")(kl.Conv2D(4, 3, name="conv")(x))))
    (record,) = folded(model).report.records
    assert "the norm is on axis 1, 'conv'" in record.reason
    assert "its channels on axis 3" in record.reason
