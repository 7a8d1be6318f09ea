"""Protects the proof: it runs for every model that Keras runs, and says what it cannot prove."""

import keras
import numpy as np
import pytest
import renormlite as rl
import tensorflow as tf
from keras import layers as kl
from renormlite import UserError, fold

BN = kl.BatchNormalization
# The proof compares in float64: a few hundred roundings of 1.1e-16.
ROUNDING = 1e-13


def proved(model, randomized, **options):
    result = fold(randomized(model), **options)
    assert result.proof.passed, result.proof.sentence
    assert result.proof.worst < ROUNDING
    assert not result.proof.rolled_back
    return result


@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        ((None, 3), lambda: kl.Cropping1D(20)),
        ((None, 3), lambda: kl.Reshape((-1, 5, 3))),
        ((None, 3), lambda: kl.Reshape((-1, 7, 3))),
        ((None, None, 3), lambda: kl.Cropping2D(40)),
        ((None, None, 3), lambda: kl.Reshape((16, 16, 3))),
        ((None, None, 3), lambda: kl.MaxPooling2D(3)),
    ],
)
def test_free_sizes_are_set_to_what_the_network_accepts(shape, layer, randomized):
    x = keras.Input(shape)
    proved(keras.Model(x, BN()(kl.Dense(4)(layer()(x)))), randomized)


def test_free_sizes_come_from_real_inputs(randomized):
    x = keras.Input((None, 3))
    model = randomized(keras.Model(x, BN()(kl.Dense(4)(kl.Reshape((33, 3))(x)))))
    problem = fold(model).proof
    assert not problem.passed
    assert "give real inputs" in problem.sentence
    assert "reshape" in problem.sentence
    result = fold(model, inputs=np.ones((3, 33, 3)))
    assert result.proof.passed
    assert result.proof.samples == {"random": 2, "border": 2, "extreme": 2, "real": 3}


@pytest.mark.parametrize("inputs", [np.ones((3, 4)), np.ones((0, 8, 3)), [np.ones((3, 8, 3))] * 2])
def test_real_inputs_that_do_not_fit_are_refused(inputs):
    x = keras.Input((8, 3))
    with pytest.raises(UserError, match="Received"):
        fold(keras.Model(x, BN()(kl.Dense(4)(x))), inputs=inputs)


@pytest.mark.parametrize("make", [kl.Conv2D, kl.SeparableConv2D, kl.Conv2DTranspose])
@pytest.mark.parametrize("pool", [kl.MaxPooling2D, kl.AveragePooling2D])
def test_channels_first(make, pool, randomized):
    x = keras.Input((3, 8, 8))
    y = BN(axis=1)(make(4, 3, padding="same", data_format="channels_first")(x))
    y = pool(2, data_format="channels_first")(y)
    y = kl.Dense(3)(kl.Flatten(data_format="channels_first")(y))
    model = keras.Model(x, y)
    assert proved(model, randomized).report.folded == 1
    # The twin computes with channels last what the network computes compiled.
    images = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype("f4")
    expected = tf.function(model, jit_compile=True)(images)
    np.testing.assert_allclose(rl.float64_twin(model)(images), expected, atol=1e-5)


def test_fixed_batch_and_state(randomized):
    x = keras.Input(batch_shape=(4, 8, 3))
    y = BN()(kl.Dense(3)(kl.LSTM(5, stateful=True)(x)))
    result = proved(keras.Model(x, y), randomized, inputs=np.ones((6, 8, 3)))
    assert result.proof.samples == {"random": 4, "border": 4, "extreme": 4, "real": 8}


def test_text_and_lookups(randomized):
    text = kl.TextVectorization(max_tokens=20, output_sequence_length=6)
    text.adapt(["a b c d", "b c"])
    words, word = keras.Input((), dtype="string"), keras.Input((3,), dtype="string")
    y = kl.Flatten()(kl.Embedding(20, 4)(text(words)))
    z = kl.Flatten()(kl.Embedding(4, 4)(kl.StringLookup(vocabulary=["u", "v"])(word)))
    model = keras.Model([words, word], BN()(kl.Dense(3)(kl.Concatenate()([y, z]))))
    result = proved(model, randomized)
    fed = [tf.constant(["a d", "zebra c"]), tf.constant([["u", "v", "w"]] * 2)]
    np.testing.assert_allclose(result.model(fed), model(fed), atol=1e-5)


def test_embedding_behind_a_float_input(randomized):
    x = keras.Input((7,))
    proved(
        keras.Model(x, BN()(kl.Dense(3)(kl.Flatten()(kl.Embedding(2, 4)(kl.Reshape((7,))(x)))))),
        randomized,
    )


class Table(kl.Layer):
    """Holds a float32 tensor that no config carries."""

    def __init__(self, **options):
        super().__init__(**options)
        self.table = tf.constant(np.random.default_rng(3).normal(size=4), "float32")

    def call(self, x):
        return x * self.table + tf.constant(1.0, tf.float32)


def test_layer_with_a_float32_constant(randomized):
    x = keras.Input((6, 6, 3))
    y = Table(name="table")(BN()(kl.Conv2D(4, 3)(x)))
    result = proved(keras.Model(x, kl.ReLU()(BN()(kl.Conv2D(4, 3)(y)))), randomized)
    assert result.proof.handed_over == ("table",)
    assert result.report.folded == 2
    assert result.model.get_layer("table").table.dtype == "float32"


def test_constants_are_copied_if_the_class_changes_them(randomized):
    class Drawn(Table):
        def __init__(self, **options):
            super().__init__(**options)
            self.table = tf.random.normal((4,))

        def call(self, x):
            return x * self.table

    x = keras.Input((6, 6, 3))
    model = keras.Model(x, BN()(kl.Conv2D(2, 1)(Drawn()(kl.Conv2D(4, 3)(x)))))
    result = proved(model, randomized)
    assert result.proof.handed_over == ()
    images = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("f4")
    np.testing.assert_allclose(result.model(images), model(images), atol=1e-5)


def test_layer_whose_config_restores_a_different_layer_is_refused(randomized):
    class Forgetful(kl.Layer):
        def __init__(self, factor=1.0, **options):
            super().__init__(**options)
            self.factor = factor

        def call(self, x):
            return x * self.factor

        def get_config(self):
            return kl.Layer.get_config(self) if False else {"name": self.name}

    x = keras.Input((6,))
    model = keras.Model(x, BN()(kl.Dense(4)(Forgetful(3.0, name="forgetful")(x))))
    with pytest.raises(UserError, match=r"'forgetful' \(Forgetful\) computes something else"):
        fold(model)


def test_resizing_computes_in_float32(randomized):
    x = keras.Input((8, 8, 3))
    y = kl.Resizing(13, 11, name="resize")(BN()(kl.Conv2D(4, 3)(x)))
    result = proved(keras.Model(x, BN()(kl.Conv2D(4, 3)(y))), randomized)
    assert result.proof.handed_over == ("resize",)


def test_integer_outputs_are_compared_without_a_false_difference(randomized):
    """Rounding may decide between equal classes; what goes into the decision is compared."""
    x = keras.Input((8, 8, 3))
    y = BN()(kl.Conv2D(4, 3)(x))
    result = proved(keras.Model(x, [keras.ops.argmax(y, -1), keras.ops.sign(y)]), randomized)
    assert len(result.proof.handed_over) == 2


def test_wrong_fold_in_front_of_a_float32_layer_is_found(randomized, monkeypatch):
    from renormlite.export.fold.linear_layers import conv

    monkeypatch.setattr(conv, "zero_padding", lambda layer, shape: "")
    x = keras.Input((8, 8, 3))
    y = BN(name="bordered")(kl.Conv2D(4, 3, activation="relu")(x))
    y = kl.Resizing(5, 5)(kl.Conv2D(4, 3, padding="same")(y))
    result = fold(randomized(keras.Model(x, y)))
    assert result.proof.rolled_back == ("bordered",)


@pytest.mark.parametrize(
    "last",
    [
        kl.Softmax(),
        kl.ReLU(max_value=6),
        keras.ops.tanh,
        *("softmax", "log_softmax", "sigmoid", "tanh", "hard_sigmoid", "relu6"),
    ],
    ids=lambda last: (
        last if isinstance(last, str) else getattr(last, "__name__", type(last).__name__)
    ),
)
def test_wrong_fold_in_front_of_a_saturated_output_is_found(last, randomized, monkeypatch):
    """Its outputs are the same whatever its inputs are, so its inputs are compared."""
    from renormlite.export.fold.linear_layers import conv

    monkeypatch.setattr(conv, "zero_padding", lambda layer, shape: "")
    x = keras.Input((8, 8, 3))
    y = BN(name="bordered")(kl.Conv2D(4, 3, activation="relu")(x))
    y = kl.Flatten()(kl.Conv2D(4, 3, padding="same")(y))
    named = isinstance(last, str)
    y = kl.Dense(2, activation=last if named else None, name="last")(y)
    model = randomized(keras.Model(x, y if named else last(y)))
    model.get_layer("last").bias.assign([1e4, -1e4])
    assert fold(model).proof.rolled_back == ("bordered",)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_network_without_numeric_outputs_is_not_proved(value, randomized):
    x = keras.Input((8, 8, 3))
    model = randomized(keras.Model(x, BN()(kl.Conv2D(4, 3, name="conv")(x))))
    model.get_layer("conv").kernel.assign(np.full((3, 3, 3, 4), value))
    proof = fold(model).proof
    assert not proof.passed
    assert np.isnan(proof.worst)
    assert "'kernel' of 'conv' contains NaN or infinity" in proof.sentence
    assert proof.to_json()["worst"] is None


def test_layer_that_does_not_run_is_named(randomized):
    class Broken(kl.Layer):
        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, dtype=x.dtype)

        def call(self, x):
            raise RuntimeError("no such device")

    x = keras.Input((6,))
    proof = fold(keras.Model(x, Broken(name="broken")(BN()(kl.Dense(4)(x))))).proof
    assert not proof.passed
    assert proof.sentence == "not proved: 'broken' (Broken): no such device"


def test_float64_twin_is_public(randomized):
    x = keras.Input((6, 3))
    model = randomized(keras.Model(x, kl.Dense(2, activation="tanh")(Table()(kl.Dense(4)(x)))))
    data = np.random.default_rng(0).normal(size=(5, 6, 3))
    outputs = rl.float64_twin(model)(data)
    assert outputs.dtype == "float64"
    np.testing.assert_allclose(outputs, model(data), atol=1e-5)


def test_two_outputs_of_one_shared_layer(randomized):
    """Both bear the name of the norm, which is gone."""
    a, b = keras.Input((8,)), keras.Input((8,))
    dense, norm = kl.Dense(4), BN(name="embedding")
    model = keras.Model([a, b], [norm(dense(a)), norm(dense(b))])
    result = proved(model, randomized)
    assert result.report.folded == 1
    assert result.model.output_names == model.output_names == ["embedding", "embedding"]


@pytest.mark.parametrize("kind", [keras.layers.BatchNormalization, rl.BatchRenormalization])
def test_a_negative_variance_is_named(kind) -> None:
    norm = kind(name="norm")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), norm])
    norm.moving_variance.assign([1.0, -5.0])
    with pytest.raises(rl.UserError, match=r"at least 0\. Received: -5 in the norm 'norm'"):
        rl.fold(model)
    norm.moving_variance.assign([1.0, -1e-6])  # epsilon makes it positive
    assert rl.fold(model).report.folded


def test_an_input_that_no_memory_holds_is_refused() -> None:
    image = keras.Input((2**20, 2**20, 2), name="image")
    model = keras.Model(image, keras.layers.Conv2D(3, 1)(image))
    with pytest.raises(rl.UserError, match=r"'image' has 2\.2e\+12 numbers, and at most 2\.7e\+08"):
        rl.fold(model)
