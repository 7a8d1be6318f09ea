"""Protects that every kind of Keras model and every kind of norm is read, or refused in words."""

import keras
import numpy as np
import pytest
from keras import layers as kl
from renormlite import (
    BatchRenormalization,
    ChannelAffine,
    UserError,
    export_model,
    fold,
    register_affine,
)
from renormlite.export.fold import Affine, float64_twin, inspect
from renormlite.export.fold.declarations import returns_integers
from renormlite.export.fold.keras_graph import read_graph
from renormlite.models.mlperf_tiny import NETWORKS


@keras.saving.register_keras_serializable(package="renormlite-tests")
class Block(kl.Layer):
    """A composite layer, as users write them."""

    def __init__(self, filters=4, **options):
        super().__init__(**options)
        self.filters = filters
        self.conv = kl.Conv2D(filters, 3, padding="same")
        self.norm = kl.BatchNormalization()

    def build(self, input_shape):
        self.conv.build(input_shape)
        self.norm.build((*input_shape[:-1], self.filters))

    def call(self, x, training=False):
        return keras.ops.relu(self.norm(self.conv(x), training=training))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable(package="renormlite-tests")
class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = [Block(), Block()]
        self.head = kl.Dense(3)

    def call(self, x, training=False):
        for block in self.blocks:
            x = x[..., :3] + block(x, training=training)[..., :3]
        return self.head(keras.ops.mean(x, axis=(1, 2)))


def test_subclassed_model_is_traced(randomized, state_of):
    model = Subclassed()
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("f4")
    model(x)
    randomized(model)
    before = state_of(model)
    result = fold(model)
    assert state_of(model) == before
    assert result.proof.passed
    assert result.report.folded == 2
    np.testing.assert_allclose(result.model(x), model(x), atol=1e-4)


def test_composite_layer_is_traced(folded):
    model = keras.Sequential([kl.Input((8, 8, 3)), Block(), Block(), kl.Flatten(), kl.Dense(2)])
    result = folded(model)
    assert result.report.folded == 2
    assert not any(isinstance(layer, Block) for layer in result.model.layers)


def test_composite_layer_that_cannot_be_traced_is_kept_and_reported(folded):
    class Stubborn(Block):
        def call(self, x, training=False):
            if float(keras.ops.max(x)) > 1e9:  # needs a number, which a symbolic tensor has not
                return x
            return super().call(x, training=training)

    x = keras.Input((8, 8, 3))
    layer = Stubborn()
    layer.compute_output_spec = lambda x, training=False: keras.KerasTensor((None, 8, 8, 4))
    model = keras.Model(x, layer(x))
    (record,) = inspect(model).report.records
    assert record.outcome == "kept"
    assert "could not be read" in record.reason
    assert record.remaining_ops == ("norm",)


def test_unbuilt_model_is_an_error():
    with pytest.raises(UserError, match="not built"):
        fold(Subclassed())
    with pytest.raises(UserError, match="Expected a Keras model"):
        fold("digits.keras")


def test_nested_models_and_names(folded):
    inner = keras.Sequential(
        [kl.Input((8, 8, 3)), kl.Conv2D(4, 3, name="conv"), kl.BatchNormalization(name="norm")],
        name="inner",
    )
    middle_input = keras.Input((8, 8, 3))
    middle = keras.Model(middle_input, kl.ReLU(name="act")(inner(middle_input)), name="middle")
    x = keras.Input((8, 8, 3), name="image")
    y = kl.Conv2D(3, 3, padding="same", name="conv")(x)
    y = kl.BatchNormalization(name="norm")(y)
    model = keras.Model(x, middle(y), name="outer")
    result = folded(model)
    assert result.report.folded == 2
    assert {"conv", "inner_conv"} <= {layer.name for layer in result.model.layers}
    assert result.model.output_names == ["middle"]
    assert result.model.name == "outer"


def test_many_inputs_and_outputs_keep_their_structure(folded):
    inputs = {"b": keras.Input((6,), name="b"), "a": keras.Input((5,), name="a")}
    y = kl.Concatenate()([kl.Dense(4)(inputs["b"]), kl.Dense(4)(inputs["a"])])
    y = kl.BatchNormalization()(y)
    model = keras.Model(inputs, {"z": kl.Dense(2)(y), "y": [y, inputs["a"]]})
    result = folded(model)
    assert set(result.model.input) == {"a", "b"}
    assert [t.name for t in result.model.inputs] == [t.name for t in model.inputs]
    keras.tree.assert_same_structure(result.model.output, model.output)


def test_mask_and_training_arguments(folded):
    tokens = keras.Input((7,), dtype="int32")
    x = kl.Embedding(10, 6, mask_zero=True)(tokens)
    x = kl.BatchNormalization()(kl.TimeDistributed(kl.Dense(4))(x))
    x = kl.LSTM(3)(x)
    model = keras.Model(tokens, kl.BatchNormalization()(x, training=False))
    result = fold(model)
    assert result.proof.passed
    assert [r.outcome for r in result.report.records] == ["folded", "kept"]


def test_norm_called_with_training_is_refused():
    x = keras.Input((8, 8, 3))
    model = keras.Model(x, kl.BatchNormalization()(kl.Conv2D(4, 3)(x), training=True))
    result = fold(model, verify=False)
    assert "training=True" in result.report.records[0].reason
    assert result.report.records[0].remaining_ops == ("norm",)


@pytest.mark.parametrize(
    "norm",
    [kl.LayerNormalization, lambda: kl.GroupNormalization(2), kl.RMSNormalization],
)
def test_norms_that_are_not_affine_are_refused(norm, folded):
    model = keras.Sequential([kl.Input((8, 8, 3)), kl.Conv2D(4, 3), norm(), kl.Conv2D(2, 1)])
    (record,) = folded(model).report.records
    assert record.outcome == "kept"
    assert "statistics of that sample" in record.reason


def test_preprocessing_layers_fold(folded):
    model = keras.Sequential(
        [
            kl.Input((8, 8, 3)),
            kl.Rescaling(1 / 127.5, offset=-1),
            kl.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0]),
            kl.Rescaling([1.0, 2.0, 3.0]),
            kl.Conv2D(4, 3),
        ]
    )
    result = folded(model)
    assert result.report.folded == 3
    assert len(result.model.layers) == 2


def test_adapted_and_inverted_normalization(folded):
    data = np.random.default_rng(0).normal(2, 3, (50, 6)).astype("f4")
    normalization = kl.Normalization()
    normalization.adapt(data)
    x = keras.Input((6,))
    y = kl.Dense(3)(normalization(x))
    y = kl.Normalization(mean=[1.0, 2, 3], variance=[1.0, 4, 9], invert=True)(y)
    assert folded(keras.Model(x, y)).report.folded == 2


def test_normalization_along_two_axes_is_kept(folded):
    normalization = kl.Normalization(axis=(1, 2))
    normalization.adapt(np.random.default_rng(0).normal(2, 3, (50, 4, 6)).astype("f4"))
    x = keras.Input((4, 6))
    (record,) = folded(keras.Model(x, kl.Dense(3)(normalization(x)))).report.records
    assert "2 axes" in record.reason


def test_norm_written_by_hand(folded):
    x = keras.Input((8, 8, 3))
    y = kl.Conv2D(3, 3)(x)
    y = (y - np.array([1.0, 2.0, 3.0], "f4")) * np.array([2.0, -1.0, 0.5], "f4") + np.ones(3, "f4")
    result = folded(keras.Model(x, kl.ReLU()(y)))
    assert result.report.remaining_ops == 0
    assert len(result.model.layers) == 3


def test_hard_swish_as_separate_operators_is_kept(folded):
    """Converters recognize it as one operation only if no part of it is folded."""
    x = keras.Input((8, 8, 3))
    y = kl.BatchNormalization()(kl.Conv2D(4, 3)(x))
    y = y * keras.ops.relu6(y + 3.0) * (1.0 / 6.0)
    result = folded(keras.Model(x, kl.Conv2D(2, 1)(y)))
    assert [r.outcome for r in result.report.records] == ["folded"]
    assert len(result.model.operations) == 7


def test_residual_channel_affines_can_be_folded_later(folded):
    model = keras.Sequential([kl.Input((8, 8, 3)), kl.Conv2D(4, 3), ChannelAffine(), kl.ReLU()])
    assert folded(model).report.folded == 1


def test_subclass_of_a_norm(folded):
    class Renamed(kl.BatchNormalization):
        pass

    class Different(kl.BatchNormalization):
        def call(self, inputs, training=None, mask=None):
            return inputs * 2

    first = keras.Sequential([kl.Input((8, 8, 3)), kl.Conv2D(4, 3), Renamed()])
    second = keras.Sequential([kl.Input((8, 8, 3)), kl.Conv2D(4, 3), Different()])
    assert folded(first).report.folded == 1
    assert "overrides" in folded(second).report.records[0].reason


class Scale(kl.Layer):
    def build(self, shape):
        self.s = self.add_weight(shape=(shape[-1],), name="s", initializer="random_normal")

    def call(self, x):
        return x * self.s * self.s


def test_registered_norm_folds(folded):
    class Mine(Scale):
        pass

    x = [kl.Input((6,)), kl.Dense(4), Mine(), kl.Dense(3)]
    assert folded(keras.Sequential(x)).report.records == ()
    register_affine(Mine)(lambda layer: Affine.of(layer.s.numpy().astype("float64") ** 2, 0.0))
    x = [kl.Input((6,)), kl.Dense(4), Mine(), kl.Dense(3)]
    assert folded(keras.Sequential(x)).report.folded == 1


def test_wrongly_registered_norm_is_detected_and_kept(randomized):
    class Wrong(Scale):
        pass

    register_affine(Wrong)(lambda layer: Affine.of(layer.s.numpy(), 0.0))  # forgets the square
    layers = [kl.Input((6,)), kl.Dense(4), kl.BatchNormalization(), kl.ReLU()]
    layers += [kl.Dense(4), Wrong(name="wrong"), kl.Dense(5), kl.BatchNormalization()]
    result = fold(randomized(keras.Sequential(layers)))
    assert result.proof.passed
    assert result.proof.rolled_back == ("wrong",)
    assert [r.outcome for r in result.report.records] == ["folded", "kept", "folded"]
    assert any(isinstance(layer, Wrong) for layer in result.model.layers)


def test_registration_must_be_of_a_layer_and_give_an_affine():
    class Nothing(Scale):
        pass

    with pytest.raises(UserError, match="Keras layer class"):
        register_affine(np.ndarray)
    register_affine(Nothing)(lambda layer: 3.0)
    with pytest.raises(UserError, match="must return an Affine"):
        fold(keras.Sequential([kl.Input((6,)), Nothing()]))


def test_wrong_fold_is_detected_and_undone(randomized, monkeypatch):
    """A rule that ignores zero padding, as other tools do, is caught by the proof."""
    from renormlite.export.fold.linear_layers import conv

    monkeypatch.setattr(conv, "zero_padding", lambda layer, shape: "")
    same = {"padding": "same", "activation": "relu"}
    layers = [
        kl.Input((8, 8, 3)),
        kl.Conv2D(4, 3, **same),
        kl.BatchNormalization(name="valid"),
        kl.Conv2D(4, 3, activation="relu"),
        kl.BatchNormalization(name="bordered"),
        kl.Conv2D(4, 3, **same),
        kl.BatchNormalization(name="bordered_too"),
        kl.Conv2D(4, 3, **same),
    ]
    result = fold(randomized(keras.Sequential(layers)))
    assert result.proof.passed
    assert set(result.proof.rolled_back) == {"bordered", "bordered_too"}
    outcomes = {r.name: r.outcome for r in result.report.records}
    assert outcomes == {"valid": "folded", "bordered": "kept", "bordered_too": "kept"}
    assert "was undone" in result.report.records[1].reason


def ill_conditioned(norm):
    """A network that takes the difference of two channels that differ in their last digits."""
    model = keras.Sequential(
        [kl.Input((8, 8, 3)), kl.Conv2D(2, 3), norm, kl.Conv2D(1, 3, use_bias=False)]
    )
    alike, _, difference = model.layers
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 1))
    near = kernel * (1 + 1e-6 * np.random.default_rng(1).normal(size=kernel.shape))
    alike.kernel.assign(np.concatenate([kernel, near], axis=-1))
    difference.kernel.assign(np.ones((3, 3, 2, 1)) * [[1.0], [-1.0]])
    return model


def test_tolerance_grows_for_a_network_that_amplifies_rounding():
    """No float64 evaluation of such a network is right to 1e-10; a wrong fold is wrong by more."""
    right = fold(ill_conditioned(kl.BatchNormalization()))
    assert right.report.folded == 1
    assert right.proof.passed
    assert 1e-10 < right.proof.worst <= right.proof.tolerance < 1e-7

    class Third(kl.Layer):
        def call(self, x):
            return x / 3

    register_affine(Third)(lambda layer: Affine.of(scale=0.3334, shift=0.0, axis=-1))
    wrong = fold(ill_conditioned(Third(name="third")))
    assert wrong.proof.passed
    assert wrong.proof.rolled_back == ("third",)


def test_network_that_amplifies_too_much_is_folded_without_proof(monkeypatch):
    monkeypatch.setattr("renormlite.export.fold.proof._AMPLIFIED_ROUNDINGS", 1e8)
    result = fold(ill_conditioned(kl.BatchNormalization()))
    assert result.report.folded == 1
    assert not result.proof.passed
    assert "not conclusive" in result.proof.sentence
    assert result.proof.rolled_back == ()


def test_real_inputs_are_used_in_the_proof(randomized):
    model = randomized(NETWORKS["image_classification"](BatchRenormalization))
    images = np.random.default_rng(0).uniform(size=(3, 32, 32, 3))
    assert fold(model, inputs=images).proof.samples["real"] == 3
    assert fold(model, inputs={"image": images}).proof.samples["real"] == 3
    with pytest.raises(UserError, match="inputs named"):
        fold(model, inputs={"picture": images})


def test_float64_twin_is_the_same_network(randomized):
    model = randomized(NETWORKS["keyword_spotting"](BatchRenormalization))
    twin = float64_twin(model)
    x = np.random.default_rng(0).normal(size=(2, 49, 10, 1))
    y = twin(x)
    assert y.dtype == "float64"
    np.testing.assert_allclose(model(x), y, atol=1e-5)
    assert twin.output_names == model.output_names


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_mlperf_tiny(name, after, folded):
    model = NETWORKS[name](BatchRenormalization, norm_after_activation=after)
    result = folded(model, positive=after)
    # With the norm after the activation one ADD stays before each zero-padded depthwise layer, and
    # before each zero-padded convolution of the residual network (of 16, 32 and 64 channels).
    left = {"keyword_spotting": 4, "visual_wake_words": 13, "image_classification": 4}
    left = left.get(name, 0) if after else 0
    assert result.report.remaining_ops == left
    twin = NETWORKS[name](None)
    layers = [type(layer).__name__ for layer in result.model.layers]
    kept = [kind for kind in layers if kind != "ChannelAffine"]
    assert kept == [type(layer).__name__ for layer in twin.layers]


def test_low_rank_updates_are_folded_in():
    model = keras.Sequential([kl.Input((6,)), kl.Dense(4), kl.BatchNormalization()])
    dense = model.layers[0]
    dense.enable_lora(2)
    dense.lora_kernel_b.assign(np.random.default_rng(0).normal(size=dense.lora_kernel_b.shape))
    result = fold(model)
    assert result.proof.passed
    assert result.report.folded == 1
    assert [w.name for w in result.model.weights] == ["kernel", "bias"]


def test_layer_that_has_the_name_of_a_cut_off_activation(folded):
    x = keras.Input((8, 8, 3))
    y = kl.Conv2D(4, 3, activation="sigmoid", name="conv")(x)
    y = kl.Dropout(0.5, name="conv_activation")(kl.BatchNormalization()(y))
    result = folded(keras.Model(x, y))
    assert result.report.records[0].outcome == "kept"


def test_batch_reshaped_by_an_operation(folded):
    x = keras.Input((4, 6))
    y = kl.BatchNormalization()(kl.Dense(6, activation="tanh")(x))
    y = keras.ops.reshape(y, (-1, 3))
    (record,) = folded(keras.Model(x, kl.Dense(2)(y))).report.records
    assert record.outcome == "kept"


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_functions_that_cannot_be_serialized_are_kept():
    x = keras.Input((8, 8, 3))
    y = kl.BatchNormalization()(kl.Conv2D(4, 3)(x))
    y = kl.Activation(lambda v: v * 2)(y)
    y = kl.Dense(2, activation=lambda v: v * v)(kl.Flatten()(y))
    result = fold(keras.Model(x, y))
    assert result.proof.passed
    assert [record.outcome for record in result.report.records] == ["folded"]


@pytest.mark.parametrize("pooling", [kl.MaxPooling3D, kl.AveragePooling3D])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("strides", [None, 1])
def test_3d_pooling_is_computed_in_float64(pooling, padding, strides):
    """TensorFlow cannot do that on the CPU; what stands in must be what the layer computes."""
    x = keras.Input((5, 6, 7, 2))
    model = keras.Model(x, pooling((2, 3, 2), strides, padding)(x))
    volumes = np.random.default_rng(0).normal(size=(3, 5, 6, 7, 2)).astype(np.float32)
    expected = keras.ops.convert_to_numpy(model(volumes))
    twin = keras.ops.convert_to_numpy(float64_twin(model)(volumes.astype(np.float64)))
    assert twin.dtype == np.float64
    if pooling is kl.MaxPooling3D:
        np.testing.assert_array_equal(twin, expected)
    # Twelve numbers of at most 4 are added and divided in float32: 13 roundings.
    np.testing.assert_allclose(twin, expected, rtol=0, atol=13 * 2**-24 * 4)


@pytest.mark.parametrize("norm", [kl.LayerNormalization, lambda: kl.GroupNormalization(2)])
def test_norms_of_integers_normalize_in_integers(norm):
    """Keras declares the concatenation as floats, and divides integers by an integer deviation."""
    x = keras.Input((3,), dtype="int32")
    model = keras.Model(x, norm()(kl.Concatenate()([x, x])))
    given = np.array([[0, 7, 2], [5, 1, 1]], np.int32)
    expected = np.asarray(model(given))
    assert np.array_equal(expected, np.round(expected))
    for verify in (False, True):
        result = fold(model, verify=verify)
        assert np.array_equal(np.asarray(result.model(given)), expected)


def test_random_crop_to_another_size(tmp_path, randomized):
    """At inference, Keras returns the input of a RandomCrop, whose declared size is another."""
    x = keras.Input((6, 4, 3))
    norm = kl.BatchNormalization()(kl.RandomCrop(3, 3, name="crop")(x))
    deconvolved = kl.Conv2DTranspose(2, 3, padding="same")(norm)
    model = randomized(keras.Model(x, kl.GlobalMaxPooling2D()(deconvolved)))
    given = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype(np.float32)
    expected = np.asarray(model(given, training=False))
    found = np.asarray(fold(model, verify=False).model(given, training=False))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="RandomCrop 'crop' crops to 3 x 3 in training only"):
        export_model(model, tmp_path / "net")


@pytest.mark.parametrize(
    ("equation", "shape", "output"),
    [
        ("...d,dz->...z", (4, 2, 3), (3,)),  # Keras declares (None, 2, 4, 3)
        ("...d,dz->...z", (4, 4, 3), (3,)),
        ("ab...,bz->az...", (3, 4, 2), (3,)),
        ("abcd,dz->abcz", (4, 2, 3), (None, None, 3)),
    ],
)
def test_einsum_whose_declared_axes_may_be_reversed(equation, shape, output, randomized):
    """A shift behind zero padding differs at the borders, which depends on the true sizes."""
    x = keras.Input(shape)
    y = kl.EinsumDense(equation, output_shape=output)(x)
    norm = kl.BatchNormalization(axis=-1)
    z = kl.Conv2D(3, 3, padding="same", groups=1)(kl.Activation("tanh")(norm(y)))
    z = kl.Conv2D(3, 3, padding="same")(kl.BatchNormalization()(kl.Activation("relu")(z)))
    model = randomized(keras.Model(x, kl.GlobalAveragePooling2D()(z)))
    given = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    expected = np.asarray(model(given))
    for verify in (False, True):
        found = np.asarray(fold(model, verify=verify).model(given))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def joined_twice(kind):
    """A norm whose readers are joined: both calls of a shared one, or two branches behind it."""
    x = keras.Input((6,))
    h = kl.Activation("tanh")(x)
    norm = kl.BatchNormalization()
    if kind == "shared":
        one, other = norm(h), norm(h)
        affine = kl.BatchNormalization()(kl.BatchNormalization()(other))
        joined = kl.Add()([kl.Add()([one, affine]), other, h])
    else:
        n = norm(h)
        branches = [kl.Dropout(0.1)(n), kl.Dropout(0.2)(n), h]
        joined = {"add": kl.Add(), "average": kl.Average(), "maximum": kl.Maximum()}[kind](branches)
    return keras.Model(x, kl.Dense(3)(joined))


@pytest.mark.parametrize("kind", ["shared", "add", "average", "maximum"])
def test_branches_of_one_norm_that_are_joined(kind, randomized):
    """The sum of two branches has twice the shift of one; the proof must not be needed for that."""
    model = randomized(joined_twice(kind))
    given = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    expected = np.asarray(model(given))
    result = fold(model, verify=False)
    np.testing.assert_allclose(np.asarray(result.model(given)), expected, rtol=1e-4, atol=1e-5)
    assert not fold(model).proof.rolled_back


def test_the_path_of_a_layer_ends_with_its_nested_model():
    inner = keras.Sequential([kl.Dense(3, name="a"), kl.Dense(3, name="b")], name="block")
    inner.build((None, 4))
    x = keras.Input((4,))
    outer = keras.Model(x, kl.Dense(2, name="after")(inner(x)), name="outer")
    y = keras.Input((4,))
    model = keras.Model(y, kl.Dense(2, name="last")(outer(y)))
    paths = {path for path in read_graph(model).paths.values() if path != y.name}
    assert paths == {"outer/block/a", "outer/block/b", "outer/after", "last"}


@pytest.mark.parametrize(("inside", "outside"), [((4, 1), (4,)), ((4,), (4, 1)), ((4,), (4,))])
def test_a_nested_model_may_be_called_with_another_rank_and_dtype(inside, outside, randomized):
    """Keras adds or removes a last axis of one element, and casts."""
    inner_input = keras.Input(inside)
    y = kl.BatchNormalization()(kl.Dense(3)(kl.Flatten()(inner_input)))
    inner = keras.Model(inner_input, y)
    x = keras.Input(outside, dtype="int32")
    model = randomized(keras.Model(x, kl.ReLU()(inner(x))))
    result = fold(model)
    assert result.report.remaining_ops == 0
    data = np.arange(8).reshape(2, *outside)
    np.testing.assert_allclose(result.model(data), model(data), rtol=1e-4, atol=1e-4)


def test_a_report_without_a_fold_has_the_norms_of_inputs_folded(randomized):
    x = keras.Input((4,))
    model = randomized(keras.Model(x, kl.Dense(3)(kl.BatchNormalization()(x))))
    report, result = inspect(model), fold(model)
    assert report.report.records == result.report.records
    assert [record.outcome for record in report.report.records] == ["folded"]


@pytest.mark.parametrize(
    ("dtype", "layer", "right"),
    [
        ("int32", lambda: kl.Flatten(), True),
        ("int32", lambda: kl.Softmax(), False),
        ("float32", lambda: kl.Flatten(), False),
        ("int32", lambda: kl.Dense(2), False),
    ],
)
def test_integers_that_pass_through_layers_stay_integers(dtype, layer, right):
    """Flatten declares its own dtype, float32, and converts nothing."""
    x = keras.Input((2, 3))
    y = layer()(x)
    node = y._keras_history.operation._inbound_nodes[0]
    assert returns_integers(node, [dtype]) is right
    assert not returns_integers(node, [])


def test_a_picture_shows_the_activations_of_layers_separately(randomized):
    """An input, two convolutions, the activation of the first, and a norm between them."""
    x = keras.Input((8, 8, 3))
    y = kl.BatchNormalization()(kl.Conv2D(4, 3, activation="relu")(x))
    picture = inspect(randomized(keras.Model(x, kl.Conv2D(4, 3)(y)))).picture
    assert "before: 5 layers" in picture
    assert "after: 4 layers" in picture


@pytest.mark.parametrize("axis", [1, -1])
def test_a_report_of_channels_first_layers(axis, randomized):
    """A report reads the model as it is; the norm folds only on the axis of the channels."""
    x = keras.Input((3, 8, 8))
    y = kl.Conv2D(4, 3, data_format="channels_first")(x)
    model = randomized(keras.Model(x, kl.ReLU()(kl.BatchNormalization(axis=axis)(y))))
    (record,) = inspect(model).report.records
    assert (record.outcome == "folded") is (axis == 1)


@pytest.mark.parametrize(("verify", "says"), [(True, "proved in float64"), (False, "not proved")])
def test_a_result_describes_itself(verify, says, randomized):
    x = keras.Input((4,))
    model = randomized(keras.Model(x, kl.BatchNormalization(name="n")(kl.Dense(3, name="d")(x))))
    result = fold(model, verify=verify)
    assert (result.proof is None) is not verify
    for text in (repr(result), result._repr_html_()):
        assert f"1 of 1 norms folded, {says}" in text
    assert "folded" in result._repr_html_()


class WithoutConfig(kl.Layer):
    def __init__(self, function):
        super().__init__(name="custom")
        self.function = function

    def call(self, x):
        return self.function(x)


class HalfConfig(WithoutConfig):
    def get_config(self):
        return {"name": self.name}


class UnknownCell(kl.SimpleRNNCell):
    """Not registered, so that no layer around it can be rebuilt."""


def _unnamed(shape, dtype=None):
    return keras.ops.ones(shape, dtype)


@pytest.mark.parametrize(
    ("layer", "says", "advice"),
    [
        (lambda: WithoutConfig(keras.ops.sin), "it has none", "Give it a `get_config` that"),
        (lambda: HalfConfig(keras.ops.sin), "unexpected keyword", "Give it a `get_config` that"),
        (lambda: kl.RNN(UnknownCell(3)), "class 'UnknownCell'", "Register it."),
        (
            lambda: kl.Dense(3, kernel_initializer=_unnamed, name="d"),
            "initializer",
            "Keras cannot load such a layer either",
        ),
    ],
    ids=["no config", "half a config", "cell", "layer of Keras"],
)
def test_a_layer_that_cannot_be_rebuilt_is_refused_with_a_way_out(layer, says, advice):
    x = keras.Input((5, 3))
    made = layer()
    model = keras.Model(x, kl.BatchNormalization()(made(kl.Dense(3)(x))))
    with pytest.raises(UserError) as refusal:
        fold(model)
    message = str(refusal.value)
    assert message.startswith(f"The layer {made.name!r} ({type(made).__name__}) cannot be rebuilt")
    assert says in message
    assert advice in message
