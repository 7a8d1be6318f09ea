"""Protects the swap of norms: inference keeps its bits, training starts from seeded statistics."""

import keras
import numpy as np
import pytest
import renormlite as rl
import tensorflow as tf
from keras import layers


def drawn(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def draw_norms(model, seed=0):
    """Give every norm statistics as training might leave them, and gammas of either sign."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            n = layer.moving_mean.shape[0]
            layer.gamma.assign(rng.normal(size=n) + 0.5) if layer.scale else None
            layer.beta.assign(rng.normal(size=n)) if layer.center else None
            layer.moving_mean.assign(rng.normal(size=n) * 0.3)
            layer.moving_variance.assign(np.exp(rng.normal(size=n)))
    return model


def assert_same_inference(model, twin, x):
    for ours, theirs in zip(tf.nest.flatten(model(x)), tf.nest.flatten(twin(x)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def norms(model):
    return [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, layers.BatchNormalization | rl.BatchRenormalization)
    ]


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (keras.applications.MobileNetV2, 52),
        (keras.applications.MobileNetV3Small, 34),
        (keras.applications.EfficientNetB0, 49),
    ],
    ids=lambda b: getattr(b, "__name__", None),
)
def test_applications_there_and_back(build, count):
    model = draw_norms(build(input_shape=(32, 32, 3), weights=None, classes=5))
    x = drawn((2, 32, 32, 3))
    renorm = rl.to_renorm(model)
    assert {type(n) for n in norms(renorm)} == {rl.BatchRenormalization}
    assert len(norms(renorm)) == len(norms(model)) == count
    assert_same_inference(model, renorm, x)
    assert [layer.name for layer in renorm.layers] == [layer.name for layer in model.layers]
    back = rl.to_batch_norm(renorm)
    assert {type(n) for n in norms(back)} == {layers.BatchNormalization}
    assert_same_inference(model, back, x)
    for ours, theirs in zip(back.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def branching_model():
    """Nested models, a norm called twice, TimeDistributed, channels first, two outputs."""
    inner = keras.Sequential(
        [layers.Input((6, 6, 4)), layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization()]
    )
    block_in = keras.Input((6, 6, 4))
    block = keras.Model(block_in, layers.ReLU()(layers.BatchNormalization(scale=False)(block_in)))
    shared = layers.BatchNormalization(axis=1, epsilon=1e-2, momentum=0.8, name="shared")
    image, other = keras.Input((6, 6, 4), name="image"), keras.Input((6, 6, 4), name="other")
    x, y = shared(inner(image)) * 2.0, shared(block(other))
    frames = layers.TimeDistributed(layers.BatchNormalization(gamma_regularizer="l2"))(x)
    frozen = layers.BatchNormalization(name="frozen", trainable=False)(layers.Add()([frames, y]))
    return keras.Model(
        {"image": image, "other": other}, [layers.Flatten()(frozen), layers.Flatten()(y)]
    )


def test_every_shape_of_model():
    model = draw_norms(branching_model())
    x = {"image": drawn((3, 6, 6, 4)), "other": drawn((3, 6, 6, 4), 1)}
    renorm = rl.to_renorm(model, bounds=(2.0, 1.0))
    assert_same_inference(model, renorm, x)
    assert {type(n) for n in norms(renorm)} == {rl.BatchRenormalization}
    assert len(norms(renorm)) == len(norms(model)) == 5
    shared = renorm.get_layer("shared")
    assert (shared.axis, shared.epsilon, shared.momentum) == (1, 1e-2, 0.8)
    assert not renorm.get_layer("frozen").trainable
    assert shared.r_max.value == 2.0
    assert_same_inference(model, rl.to_batch_norm(renorm), x)
    timed = next(n for n in renorm.layers if isinstance(n, layers.TimeDistributed))
    assert isinstance(timed.layer.gamma_regularizer, keras.regularizers.L2)


@pytest.mark.parametrize("renorm_momentum", [0.99, 0.9])
def test_keras_renorm_layers_keep_their_bounds_and_statistics(renorm_momentum):
    peer = layers.BatchNormalization(
        renorm=True, renorm_momentum=renorm_momentum, renorm_clipping={"rmax": 2.0, "dmax": 0.5}
    )
    model = keras.Sequential([layers.Input((4,)), peer])
    for seed in range(30):
        model(drawn((16, 4), seed) * 3 + 2, training=True)
    renorm = rl.to_renorm(model)
    layer = renorm.layers[0]
    assert (layer.r_max.value, layer.d_max.value) == (2.0, 0.5)
    assert layer.renorm_momentum == (None if renorm_momentum == 0.99 else renorm_momentum)
    x = drawn((16, 4), 99) * 3 + 2
    assert_same_inference(model, renorm, x)
    if layer.renorm_momentum is not None:
        np.testing.assert_allclose(layer.renorm_mean, peer.renorm_mean)
    # Keras starts sigma at sqrt(variance), not sqrt(variance + epsilon): 5e-4 apart, and decaying.
    np.testing.assert_allclose(layer(x, training=True), peer(x, training=True), atol=5e-3)


def test_no_jump_after_the_first_training_step():
    """Training a converted model starts where inference was: r and d see seeded statistics."""
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(momentum=0.8)(layers.Conv2D(6, 3)(inputs))
    model = keras.Model(inputs, layers.BatchNormalization(momentum=0.8)(layers.Dense(4)(x)))
    data = drawn((64, 8, 8, 3)) * 2 + 1
    for _ in range(70):
        model(data, training=True)  # 0.8**70 = 2e-7: the statistics are those of this data
    renorm = rl.to_renorm(model, bounds=(3.0, 5.0))
    before = renorm(data, training=False)
    np.testing.assert_allclose(renorm(data, training=True), before, atol=1e-4)
    np.testing.assert_allclose(renorm(data, training=False), before, atol=1e-4)
    assert [int(n.step) for n in norms(renorm)] == [1, 1]


def test_our_own_layers_convert_too():
    model = keras.Sequential(
        [
            layers.Input((4,)),
            rl.LearnedRenormalization(r_max=2.0, name="learned"),
            rl.BatchRenormalization(r_max=1.5, d_max=0.5, renorm_momentum=0.9, name="renorm"),
        ]
    )
    for seed in range(3):
        model(drawn((16, 4), seed) * 3 + 2, training=True)
    model.layers[0].r.assign([0.5, 1.0, 1.5, 9.0])
    x = drawn((8, 4), 9)
    plain, renorm = rl.to_batch_norm(model), rl.to_renorm(model)
    assert_same_inference(model, plain, x)
    assert_same_inference(model, renorm, x)
    assert plain.get_layer("learned").gamma_constraint.high == 2.0
    twin, original = renorm.get_layer("renorm"), model.get_layer("renorm")
    for ours, theirs in zip(twin.get_weights(), original.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert twin.get_config() == original.get_config()


@keras.saving.register_keras_serializable(package="tests")
class Block(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.BatchNormalization(name="hidden")

    def build(self, input_shape):
        self.norm.build(input_shape)

    def call(self, x):
        return self.norm(x)


class Subclassed(keras.Model):
    def call(self, x):
        return x


def test_what_cannot_be_swapped_is_refused_by_name():
    with pytest.raises(rl.UserError, match=r"block \(Block\) holds hidden \(BatchNormalization\)"):
        rl.to_renorm(keras.Sequential([layers.Input((4,)), Block(name="block")]))
    with pytest.raises(rl.UserError, match="Expected a built model"):
        rl.to_renorm(keras.Sequential([layers.BatchNormalization()]))
    subclassed = Subclassed()
    subclassed(drawn((2, 3)))
    with pytest.raises(rl.UserError, match=r"subclass of keras\.Model"):
        rl.to_renorm(subclassed)


def test_the_original_is_left_alone():
    model = draw_norms(keras.Sequential([layers.Input((4,)), layers.BatchNormalization()]))
    before = model.get_weights()
    rl.to_renorm(model)(drawn((8, 4)), training=True)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
