"""Protects the swap of norms: inference stays bit-identical, statistics are carried over."""

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers


def values(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def in_training(model, x, steps=3):
    """Return the model with statistics, gammas and betas as training might leave them."""
    rng = np.random.default_rng(1)
    for norm in norms(model):
        if norm.gamma is not None:
            norm.gamma.assign(rng.normal(size=norm.gamma.shape) + 0.5)
        if norm.beta is not None:
            norm.beta.assign(rng.normal(size=norm.beta.shape))
        norm.moving_mean.assign(rng.normal(size=norm.moving_mean.shape) * 0.3)
        norm.moving_variance.assign(np.exp(rng.normal(size=norm.moving_variance.shape)))
    for _ in range(steps):
        model(x, training=True)
    return model


def norms(model):
    kinds = (layers.BatchNormalization, rl.BatchRenormalization)
    return [layer for layer in model._flatten_layers() if isinstance(layer, kinds)]


def assert_same_inference(model, twin, x):
    for ours, theirs in zip(keras.tree.flatten(twin(x)), keras.tree.flatten(model(x)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


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
    model = build(input_shape=(32, 32, 3), weights=None, classes=5)
    x = values((2, 32, 32, 3))
    in_training(model, x, steps=0)
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


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "float16"])
def test_inference_is_bit_identical_in_every_precision(policy):
    model = keras.Sequential(
        [
            layers.Input((6, 6, 4), dtype="float32"),
            layers.Conv2D(8, 3, dtype=policy),
            layers.BatchNormalization(dtype=policy),
        ]
    )
    x = values((4, 6, 6, 4))
    in_training(model, x)
    renorm = rl.to_renorm(model)
    assert renorm.layers[-1].dtype_policy.name == policy
    assert renorm.layers[-1].moving_variance.dtype == "float32"
    assert_same_inference(model, renorm, x)
    assert_same_inference(model, rl.to_batch_norm(renorm), x)


def test_every_setting_and_weight_of_a_norm_is_carried_over():
    class Own(keras.regularizers.Regularizer):
        """A regularizer without a config, from which Keras could not recreate it."""

        def __call__(self, w):
            return 0.1 * keras.ops.sum(w)

    own = Own()
    original = layers.BatchNormalization(
        axis=1,
        momentum=0.8,
        epsilon=1e-2,
        center=False,
        gamma_regularizer=own,
        gamma_constraint=keras.constraints.NonNeg(),
        gamma_initializer="zeros",
        name="the_norm",
    )
    model = keras.Sequential([layers.Input((3, 5)), original])
    (norm,) = rl.to_renorm(model).layers
    (back,) = rl.to_batch_norm(rl.to_renorm(model)).layers
    for twin in (norm, back):
        assert (twin.axis, twin.momentum, twin.epsilon) == (1, 0.8, 1e-2)
        assert (twin.center, twin.scale, twin.name) == (False, True, "the_norm")
        assert twin.gamma_regularizer is own
        assert isinstance(twin.gamma_constraint, keras.constraints.NonNeg)
        assert isinstance(twin.gamma_initializer, keras.initializers.Zeros)
        assert twin.gamma.shape == (3,)
        assert twin.beta is None


def test_frozen_layers_stay_frozen():
    model = keras.Sequential(
        [
            layers.Input((4,)),
            layers.BatchNormalization(name="frozen", trainable=False),
            layers.BatchNormalization(name="half"),
            layers.Dense(3, trainable=False),
            keras.Sequential([layers.Input((3,)), layers.BatchNormalization()], name="inner"),
        ]
    )
    model.get_layer("half").gamma.trainable = False
    model.get_layer("inner").trainable = False
    expected = [w.path.partition("half")[2] for w in model.trainable_weights]
    assert expected == ["/beta"]
    for twin in (rl.to_renorm(model), rl.to_batch_norm(rl.to_renorm(model))):
        assert [w.path.partition("half")[2] for w in twin.trainable_weights] == expected
        assert [x.trainable for x in twin.layers] == [x.trainable for x in model.layers]
    model.trainable = False
    assert not rl.to_renorm(model).trainable
    assert rl.to_renorm(model).trainable_weights == []


def masked_models():
    """Return models with their inputs, and the rows that the mask passes to the norm."""
    sentence, x = keras.Input((5,), dtype="int32"), np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0]])
    # Built while tests are collected, before the seed of each test is set.
    start = keras.initializers.RandomUniform(seed=0)
    embedding = layers.Embedding(7, 4, start, mask_zero=True)
    y = layers.BatchNormalization(momentum=0.5)(embedding(sentence))
    pooled = layers.GlobalAveragePooling1D()(y)
    yield keras.Model(sentence, pooled), x, np.asarray(embedding(x))[x != 0]
    series, mask = keras.Input((5, 4)), keras.Input((5,), dtype="bool")
    explicit = layers.BatchNormalization(momentum=0.5)(series, mask=mask)
    x = [values((2, 5, 4)), np.array([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]], bool)]
    yield keras.Model([series, mask], explicit), x, x[0][x[1]]


@pytest.mark.parametrize(
    ("model", "x", "rows"), list(masked_models()), ids=["implicit", "explicit"]
)
def test_masks_of_the_graph_reach_the_swapped_norm(model, x, rows):
    renorm = rl.to_renorm(model, bounds=(1.0, 0.0))
    assert_same_inference(model, renorm, x)
    np.testing.assert_allclose(renorm(x, training=True), model(x, training=True), rtol=1e-5)
    np.testing.assert_allclose(norms(renorm)[0].moving_mean, rows.mean(0), rtol=1e-5)


def small_model(**arguments):
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(**arguments)(layers.Conv2D(6, 3)(inputs))
    return keras.Model(inputs, layers.BatchNormalization(**arguments)(layers.Dense(4)(x)))


def test_no_jump_after_the_first_training_step():
    """The first step of a converted model starts from the statistics that inference used."""
    model, data = small_model(momentum=0.8), values((64, 8, 8, 3)) * 2 + 1
    for _ in range(70):
        model(data, training=True)  # 0.8**70 = 2e-7: the statistics are those of this data
    renorm = rl.to_renorm(model, bounds=(3.0, 5.0))
    before = renorm(data, training=False)
    np.testing.assert_allclose(renorm(data, training=True), before, atol=1e-4)
    np.testing.assert_allclose(renorm(data, training=False), before, atol=1e-4)
    assert [int(n.step) for n in norms(renorm)] == [1, 1]


def test_the_first_step_on_a_small_batch_is_inference_where_batch_norm_jumps():
    """The purpose of the swap: a batch of 2 is far from the moving statistics."""
    model, data = small_model(momentum=0.8), values((64, 8, 8, 3)) * 2 + 1
    for _ in range(70):
        model(data, training=True)
    renorm, few = rl.to_renorm(model, bounds=(None, None)), data[:2] * 1.5
    inference = np.asarray(model(few))
    np.testing.assert_allclose(renorm(few, training=True), inference, atol=1e-4)
    assert np.abs(np.asarray(model(few, training=True)) - inference).max() > 0.3


def test_ramps_of_the_paper_start_as_batch_normalization():
    model, x = small_model(), values((4, 8, 8, 3))
    in_training(model, x)
    renorm = rl.to_renorm(model, bounds=("paper", "paper"))
    np.testing.assert_allclose(
        renorm(x, training=True), model(x, training=True), rtol=1e-4, atol=1e-5
    )


def test_a_trained_model_has_no_bounds_and_an_untrained_one_settles_first():
    model, few = small_model(momentum=0.8), values((2, 8, 8, 3)) * 2 + 1
    untrained = rl.to_renorm(model)
    for norm in (*norms(untrained), *norms(rl.to_renorm(untrained, momentum=0.5))):
        assert isinstance(norm.r_max, rl.Settling)
        assert norm.warm_up
    in_training(model, values((64, 8, 8, 3)))
    renorm = rl.to_renorm(model)
    assert [(n.r_max.value, n.warm_up) for n in norms(renorm)] == [(None, False)] * 2
    before = np.asarray(model(few))
    np.testing.assert_allclose(renorm(few, training=True), before, atol=1e-4)
    assert np.abs(np.asarray(model(few, training=True)) - before).max() > 0.3


def test_one_trained_norm_among_untrained_ones_is_recognized():
    model = small_model()
    norms(model)[0].moving_mean.assign(np.full(6, 0.1))
    first, second = norms(rl.to_renorm(model))
    assert (first.r_max.value, first.d_max.value) == (None, None)
    assert isinstance(second.r_max, rl.Settling)
    assert (first.warm_up, second.warm_up) == (False, True)


def test_a_first_batch_does_not_replace_trained_statistics():
    model = keras.Sequential([layers.Input((4,)), layers.BatchNormalization(momentum=0.8)])
    trained = rl.to_renorm(model)
    for seed in range(3):
        for kind in (model, trained):
            kind(values((64, 4), seed), training=True)
    few = values((2, 4), 5) * 9 + 7
    for start in (
        rl.to_renorm(model),
        rl.to_renorm(model, step=3, bounds=("settling", "settling")),
        rl.to_renorm(trained, step=0),
        rl.to_renorm(trained, step=3),
    ):
        norm = start.layers[0]
        moved = 0.8 * np.asarray(norm.moving_mean) + 0.2 * few.mean(0)
        start(few, training=True)
        np.testing.assert_allclose(norm.moving_mean, moved, rtol=1e-5, atol=1e-6)
    kept = rl.to_renorm(trained).layers[0]  # its step counts the batches of its statistics
    assert (kept.warm_up, int(kept.step)) == (True, 3)


def test_bounds_momentum_and_step_can_be_set():
    r_max, d_max = rl.paper_schedule(1000)
    renorm = rl.to_renorm(small_model(), bounds=(r_max, d_max), momentum=0.9, step=700)
    for norm in norms(renorm):
        assert (norm.r_max, norm.d_max, norm.momentum, int(norm.step)) == (r_max, d_max, 0.9, 700)
    later = rl.to_renorm(renorm, bounds=(2.0, 1.0))
    assert [(n.r_max.value, n.momentum, int(n.step)) for n in norms(later)] == [(2.0, 0.9, 700)] * 2
    with pytest.raises(rl.UserError, match="Expected step to be at least 0"):
        rl.to_renorm(renorm, step=-1)


@pytest.mark.parametrize("own_momentum", [0.99, 0.9])
def test_keras_renorm_layers_keep_their_bounds_and_statistics(own_momentum):
    peer = layers.BatchNormalization(
        renorm=True,
        renorm_momentum=own_momentum,
        renorm_clipping={"rmax": 2.0, "rmin": 0.5, "dmax": 0.5},
    )
    model = keras.Sequential([layers.Input((4,)), peer])
    for seed in range(30):
        model(values((16, 4), seed) * 3 + 2, training=True)
    renorm = rl.to_renorm(model)
    layer, x = renorm.layers[0], values((16, 4), 99) * 3 + 2
    assert (layer.r_max.value, layer.d_max.value) == (2.0, 0.5)
    assert layer.renorm_momentum == (None if own_momentum == 0.99 else own_momentum)
    assert_same_inference(model, renorm, x)
    if layer.renorm_momentum is not None:
        np.testing.assert_array_equal(layer.renorm_mean, peer.renorm_mean)
        sigma = np.sqrt(np.asarray(layer.renorm_variance, float) + layer.epsilon)
        np.testing.assert_allclose(sigma, peer.renorm_stddev, rtol=1e-7)
    # Keras starts sigma at sqrt(variance), not sqrt(variance + epsilon): 5e-4 apart, and decaying.
    np.testing.assert_allclose(layer(x, training=True), peer(x, training=True), atol=5e-3)
    assert not rl.to_batch_norm(model).layers[0].renorm
    assert_same_inference(model, rl.to_batch_norm(model), x)


def test_keras_renorm_layers_whose_two_statistics_differ_keep_both():
    peer = layers.BatchNormalization(renorm=True)  # one momentum, but different statistics
    model = keras.Sequential([layers.Input((4,)), peer])
    peer.renorm_mean.assign([1.0, 2.0, 3.0, 4.0])
    layer = rl.to_renorm(model).layers[0]
    np.testing.assert_array_equal(layer.renorm_mean, [1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(layer.moving_mean, np.zeros(4))
    assert not layer.warm_up
    untrained = layers.BatchNormalization(renorm=True, renorm_momentum=0.9)
    assert rl.to_renorm(keras.Sequential([layers.Input((4,)), untrained])).layers[0].warm_up
    assert (layer.r_max.value, layer.d_max.value) == (None, None)


@pytest.mark.parametrize("clipping", [{"rmax": 3.0, "dmax": 5.0}, {"rmax": 2.0, "rmin": 0.25}])
def test_asymmetric_clipping_of_keras_asks_for_bounds(clipping):
    peer = layers.BatchNormalization(renorm=True, renorm_clipping=clipping, name="peer")
    model = keras.Sequential([layers.Input((4,)), peer])
    with pytest.raises(rl.UserError, match=r"peer clips r to .* bounds=\(\d\.0, 5\.0\)"):
        rl.to_renorm(model)
    assert rl.to_renorm(model, bounds=(3.0, 5.0)).layers[0].r_max.value == 3.0


def test_layers_of_renormlite_convert_too():
    model = keras.Sequential(
        [
            layers.Input((4,)),
            rl.LearnedRenormalization(r_max=2.0, name="learned"),
            rl.BatchRenormalization(
                r_max=1.5, d_max=0.5, renorm_momentum=0.9, virtual_batch_size=4, name="renorm"
            ),
        ]
    )
    for seed in range(3):
        model(values((16, 4), seed) * 3 + 2, training=True)
    model.layers[0].r.assign([0.5, 1.0, 1.5, 9.0])
    x = values((8, 4), 9)
    plain, renorm = rl.to_batch_norm(model), rl.to_renorm(model)
    assert_same_inference(model, plain, x)
    assert_same_inference(model, renorm, x)
    assert plain.get_layer("learned").gamma_constraint.high == 2.0
    twin, original = renorm.get_layer("renorm"), model.get_layer("renorm")
    for ours, theirs in zip(twin.get_weights(), original.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert twin.get_config() == original.get_config()


def test_where_selects_the_norms_to_swap():
    model = small_model()
    last = model.layers[-1].name
    renorm = rl.to_renorm(model, where=lambda layer: layer.name != last)
    assert [type(n).__name__ for n in norms(renorm)].count("BatchNormalization") == 1
    assert isinstance(renorm.get_layer(last), layers.BatchNormalization)
    x = values((2, 8, 8, 3))
    assert_same_inference(model, renorm, x)
    kept = rl.to_batch_norm(rl.to_renorm(model), where=lambda layer: layer.name == last)
    assert isinstance(kept.get_layer(last), layers.BatchNormalization)
    assert_same_inference(model, kept, x)


def test_a_model_without_norms_is_copied():
    model = keras.Sequential([layers.Input((4,)), layers.Dense(2)])
    assert_same_inference(model, rl.to_renorm(model), values((3, 4)))


def test_the_original_model_does_not_change():
    model = in_training(small_model(), values((4, 8, 8, 3)))
    before = model.get_weights()
    renorm = rl.to_renorm(model)
    rl.to_renorm(model)
    renorm(values((4, 8, 8, 3)), training=True)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    for layer in model.layers:  # fails for a layer that was called in a second graph
        assert layer.output.shape[0] is None
    assert not set(map(id, model._flatten_layers())) & set(map(id, renorm._flatten_layers()))


def test_the_copy_trains_saves_and_loads(tmp_path):
    model = small_model()
    # A loss that cannot be recreated from a config; copying the network does not need it.
    model.compile("sgd", loss=lambda y, p: keras.ops.mean(keras.ops.square(y - p)))
    renorm = rl.to_renorm(model, bounds=(3.0, 5.0))
    assert not renorm.compiled
    renorm.compile(keras.optimizers.SGD(1e-2), "mse")
    x, y = values((32, 8, 8, 3)), values((32, 6, 6, 4))
    losses = renorm.fit(x, y, batch_size=4, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    renorm.save(tmp_path / "renorm.keras")
    assert_same_inference(renorm, rl.load_model(tmp_path / "renorm.keras"), x)


class Shifted(layers.BatchNormalization):
    """A norm that does more than batch normalization."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=training, mask=mask) + 1.0


class Renamed(layers.BatchNormalization):
    """A norm that only has another name."""


def test_a_subclass_of_a_norm_is_a_norm_unless_it_computes_something_else():
    plain = keras.Sequential([layers.Input((4,)), Renamed()])
    x = values((3, 4))
    assert type(rl.to_renorm(plain).layers[0]) is rl.BatchRenormalization
    assert_same_inference(plain, rl.to_renorm(plain), x)
    other = keras.Sequential([layers.Input((4,)), Shifted(name="own"), layers.BatchNormalization()])
    with pytest.raises(rl.UserError, match=r"own \(Shifted\) is a BatchNormalization with a call"):
        rl.to_renorm(other)
    renorm = rl.to_renorm(other, where=lambda layer: layer.name != "own")
    assert_same_inference(other, renorm, x)


def test_models_that_cannot_be_converted_are_refused_in_one_line():
    with pytest.raises(rl.UserError, match="Expected a built model"):
        rl.to_renorm(keras.Sequential([layers.BatchNormalization()]))
    with pytest.raises(rl.UserError, match="Expected a Keras 3 model"):
        rl.to_renorm(layers.BatchNormalization())
    exact = layers.BatchNormalization(epsilon=0.0, name="exact")
    with pytest.raises(rl.UserError, match="exact has epsilon 0"):
        rl.to_renorm(keras.Sequential([layers.Input((4,)), exact]))
