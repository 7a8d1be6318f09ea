"""Protects that layers without a single operator become primitives that compute the same."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops
from renormlite.artifacts.network import network_arrays, network_of
from renormlite.artifacts.precisions import UNIT_ROUNDOFF
from renormlite.export.fold import float64_twin
from renormlite.export.network.write import build_network
from renormlite.reference.gradients import evaluated, gradients
from renormlite.reference.network import (
    evaluate_network,
    evaluate_node,
    node_error_bound,
    opaque_layers,
)
from renormlite.reference.noise import expected_noise

IMAGE, LINE, ROW, CLIP = (6, 5, 4), (4, 6), (8,), (3, 5, 5, 2)


@keras.saving.register_keras_serializable("expansion")
class Scale(kl.Layer):
    """A layer of the user's own, with weights."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), name="factor")
        self.shift = self.add_weight(shape=(shape[-1],), name="shift")

    def call(self, x):
        return x * self.factor + self.shift


@keras.saving.register_keras_serializable("expansion")
def squared(x):
    """An activation of the user's own."""
    return x * x


def attention(x):
    return kl.MultiHeadAttention(2, 3)(x, x)


def space_to_depth(x):
    parts = ops.reshape(x, (-1, 3, 2, 5, 1, 4))
    return ops.reshape(ops.transpose(parts, (0, 1, 3, 2, 4, 5)), (-1, 3, 5, 8))


LAYERS = {
    "layer norm": (IMAGE, kl.LayerNormalization),
    "layer norm of two axes": (IMAGE, lambda: kl.LayerNormalization(axis=(1, 3))),
    "group norm": (IMAGE, lambda: kl.GroupNormalization(2)),
    "rms norm": (LINE, kl.RMSNormalization),
    "unit norm": (ROW, kl.UnitNormalization),
    "norm in training": (
        IMAGE,
        lambda: lambda x: kl.BatchNormalization()(x, training=True),
    ),
    "attention": (LINE, lambda: attention),
    "grouped attention": (LINE, lambda: lambda x: kl.GroupQueryAttention(3, 4, 2)(x, x)),
    "additive attention": (LINE, lambda: lambda x: kl.AdditiveAttention()([x, x * 0.5])),
    "lstm": (LINE, lambda: kl.LSTM(3)),
    "gru": (LINE, lambda: kl.GRU(3, return_sequences=True)),
    "rnn": (LINE, lambda: kl.SimpleRNN(3, go_backwards=True)),
    "bidirectional": (LINE, lambda: kl.Bidirectional(kl.LSTM(2))),
    # Keras draws the masks of these in inference too, where nothing reads them.
    "lstm with dropout": (LINE, lambda: kl.LSTM(3, dropout=0.2, recurrent_dropout=0.1)),
    "both directions with dropout": (LINE, lambda: kl.Bidirectional(kl.GRU(2, dropout=0.2))),
    "conv lstm": (CLIP, lambda: kl.ConvLSTM2D(2, 3, padding="same")),
    "time distributed": (CLIP, lambda: kl.TimeDistributed(kl.Conv2D(2, 3, strides=2))),
    "resizing": (IMAGE, lambda: kl.Resizing(4, 9)),
    "resizing bicubic": (IMAGE, lambda: kl.Resizing(7, 8, interpolation="bicubic")),
    "resizing padded": (IMAGE, lambda: kl.Resizing(9, 4, pad_to_aspect_ratio=True, fill_value=0.5)),
    "resizing padded at the sides": (IMAGE, lambda: kl.Resizing(4, 9, pad_to_aspect_ratio=True)),
    "resizing cropped": (IMAGE, lambda: kl.Resizing(4, 9, crop_to_aspect_ratio=True)),
    "resizing nearest": (IMAGE, lambda: kl.Resizing(4, 9, interpolation="nearest")),
    "adaptive pooling": (IMAGE, lambda: kl.AdaptiveAveragePooling2D(3)),
    "dot": (LINE, lambda: lambda x: kl.Dot(axes=(2, 2))([x, x * x])),
    "activation of one's own": (LINE, lambda: kl.Conv1D(3, 3, activation=squared)),
    "grouped, own activation": (LINE, lambda: kl.Conv1D(4, 3, groups=2, activation=ops.celu)),
    "transposed, own activation": (IMAGE, lambda: kl.Conv2DTranspose(3, 3, 2, activation=squared)),
    "transposed 3-D, own activation": (
        CLIP,
        lambda: kl.Conv3DTranspose(3, 2, 2, padding="same", activation=squared),
    ),
    "einsum, own activation": (
        LINE,
        lambda: kl.EinsumDense("...b,bz->...z", 3, bias_axes="z", activation=squared),
    ),
    "einsum of an inner axis, own activation": (
        IMAGE,
        lambda: kl.EinsumDense("...ab,az->...zb", (3, 4), activation=squared),
    ),
    "dilated, own activation": (
        LINE,
        lambda: kl.Conv1D(4, 2, dilation_rate=2, padding="same", activation=squared),
    ),
    "dilated in two dimensions, own activation": (
        IMAGE,
        lambda: kl.Conv2D(3, 2, dilation_rate=(2, 3), activation=squared),
    ),
    "dilated causally, own activation": (
        LINE,
        lambda: kl.Conv1D(4, 2, dilation_rate=3, padding="causal", activation=squared),
    ),
    "roll of two axes": (IMAGE, lambda: lambda x: ops.roll(x, (1, -2), (1, 2))),
    "depthwise, own activation": (LINE, lambda: kl.DepthwiseConv1D(3, activation=squared)),
    "custom layer": (IMAGE, Scale),
    "slice": (IMAGE, lambda: lambda x: x[:, ::2, -1, 1:]),
    "split": (LINE, lambda: lambda x: kl.Concatenate()(ops.split(x, 3, axis=-1)[:2])),
    "statistics": (IMAGE, lambda: lambda x: ops.mean(x, axis=(1, 2)) + ops.std(x, axis=(1, 2))),
    "matmul": (LINE, lambda: lambda x: ops.matmul(x, ops.transpose(x, (0, 2, 1)))),
    "log of sqrt": (LINE, lambda: lambda x: ops.log(1.0 + ops.sqrt(ops.abs(x)))),
    "where": (LINE, lambda: lambda x: ops.where(x > 0.1, x, ops.exp(x))),
    "space to depth": (IMAGE, lambda: space_to_depth),
    "einsum": (LINE, lambda: lambda x: ops.einsum("bij,bkj->bik", x, x)),
    "cumsum": (LINE, lambda: lambda x: ops.cumsum(x, axis=1)),
    "quotients": (LINE, lambda: lambda x: x / (1.0 + x * x) + x**3),
    "sort": (LINE, lambda: lambda x: ops.top_k(x, 3)[0] + ops.sort(x, axis=-1)[..., :3]),
    "extremes": (LINE, lambda: lambda x: ops.max(x, axis=1) * ops.min(x, axis=1)),
    "product": (LINE, lambda: lambda x: ops.prod(x, axis=2)),
    "moves": (
        LINE,
        lambda: lambda x: ops.flip(ops.roll(ops.tile(x, (1, 2, 1)), 1, axis=1), axis=2),
    ),
    "padding": (LINE, lambda: lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 1)), mode="reflect")),
    "waves": (LINE, lambda: lambda x: ops.sin(x) * ops.cos(x) + ops.erf(x)),
    "stack": (LINE, lambda: lambda x: ops.stack([x, x * 2.0], axis=1)),
    "norms of vectors": (
        LINE,
        lambda: lambda x: ops.normalize(x, axis=-1) * ops.norm(x, axis=-1, keepdims=True),
    ),
}

# Choices have no gradient to compare.
CHOICES = {
    "argmax": (LINE, lambda: lambda x: ops.argmax(x, axis=1)),
    "one hot": (LINE, lambda: lambda x: ops.one_hot(ops.cast(x * 2.0, "int32"), 3)),
    "indices": (LINE, lambda: lambda x: ops.top_k(x, 2)[1]),
    "rounding": (LINE, lambda: lambda x: ops.round(x * 3.0) + ops.floor(x) + ops.sign(x)),
    "buckets": (LINE, lambda: kl.Discretization(bin_boundaries=[-0.5, 0.0, 1.0])),
    "logic": (LINE, lambda: lambda x: ops.cast(ops.logical_and(x > 0, x < 1), "float32")),
    "remainder": (LINE, lambda: lambda x: ops.floor_divide(x, 0.5) + ops.mod(x, 0.7)),
}

# Keras writes an epsilon or a factor into the graph as a float32 number.
_LITERAL = 2.0**-22

# Central differences of functions of one value, and the literals again.
_GRADIENT = 1e-5


def build(shape, make) -> keras.Model:
    """Return a model of one layer with random weights."""
    x = keras.Input(shape, name="x")
    model = keras.Model(x, make()(x))
    rng = np.random.default_rng(5)
    for variable in model.weights:
        positive = "variance" in variable.path or "gamma" in variable.path
        variable.assign(rng.uniform(0.5 if positive else -1.0, 1.0, variable.shape))
    return model


@pytest.mark.parametrize("name", LAYERS | CHOICES)
def test_primitives_compute_what_the_layer_does(name):
    shape, make = (LAYERS | CHOICES)[name]
    model = build(shape, make)
    network = build_network(model)
    assert opaque_layers(network) == []
    assert {node.layer for node in network.nodes} <= {layer.name for layer in model.operations}
    x = np.random.default_rng(1).normal(0, 1, (3, *shape)).astype(np.float32)
    (value,) = evaluate_network(network, {"x": x}).values()
    truth = np.asarray(float64_twin(model)(x.astype(np.float64), training=False))
    np.testing.assert_allclose(value, truth, rtol=_LITERAL, atol=_LITERAL * np.abs(truth).max())
    check_bound_and_noise(network, model, x)
    if name in LAYERS:
        check_gradient(network, model, x)


def check_bound_and_noise(network, model, x) -> None:
    """Keras' own float32 result is within the bound, and its size is what the noise model says."""
    values = {"x": x.astype(np.float64)}
    errors = {"x": np.zeros(x.shape)}
    for node in network.nodes:
        read = [values[n] for n in node.inputs]
        values[node.name] = evaluate_node(node, read)
        passed = [errors[n] for n in node.inputs]
        errors[node.name] = node_error_bound(
            node, read, values[node.name], passed, UNIT_ROUNDOFF["float32"]
        )
    (last,) = network.outputs.values()
    error = np.abs(np.asarray(model(x, training=False), np.float64) - values[last])
    assert np.all(error <= errors[last])
    (noise,) = expected_noise(network, {"x": x}).values()
    assert np.all(np.isfinite(noise))
    got = np.sqrt(np.mean(np.square(error.reshape(len(x), -1)), axis=1))
    assert np.all(got <= 5 * np.maximum(noise, 2.0**-24 * np.abs(values[last]).max()))


def check_gradient(network, model, x) -> None:
    import tensorflow as tf

    values = evaluated(network, {"x": x})
    (last,) = network.outputs.values()
    by = np.random.default_rng(4).normal(size=values[last].shape)
    got = gradients(network, values, {last: by})["x"]
    point = tf.constant(x, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(point)
        total = tf.reduce_sum(float64_twin(model)(point, training=False) * by)
    truth = tape.gradient(total, point).numpy()
    np.testing.assert_allclose(got, truth, rtol=_GRADIENT, atol=_GRADIENT * np.abs(truth).max())


def test_weights_keep_their_bits_and_are_written_once():
    model = build(LINE, lambda: kl.LSTM(3))
    network = build_network(model)
    kernels = [node.weights["kernel"] for node in network.nodes if "kernel" in node.weights]
    assert len(kernels) > 4
    own = {np.asarray(v).tobytes() for v in model.weights}
    assert {kernel.tobytes() for kernel in kernels} <= own
    arrays = network_arrays(network)
    assert sum(array.size for array in arrays.values() if array.dtype == np.float32) < 2 * sum(
        int(np.prod(v.shape)) for v in model.weights
    )
    again = network_of(arrays, "network.npz")
    assert (
        len({id(node.weights["kernel"]) for node in again.nodes if "kernel" in node.weights}) == 2
    )
    x = np.random.default_rng(1).normal(size=(2, *LINE)).astype(np.float32)
    for first, second in zip(
        evaluate_network(network, {"x": x}).values(),
        evaluate_network(again, {"x": x}).values(),
        strict=True,
    ):
        np.testing.assert_array_equal(first, second)


def test_a_layer_name_that_graphs_refuse_changes_no_state():
    """Keras leaves a refused scope in front of the names of all weights to come."""
    x = keras.Input(ROW, name="x")
    norm = kl.LayerNormalization(name="schärfe €")
    network = build_network(keras.Model(x, norm(x)))
    assert not opaque_layers(network)
    assert norm.name == "schärfe €"
    later = kl.Dense(2, name="later")
    later.build((1, 2))
    assert later.kernel.path == "later/kernel"


def test_an_embedding_is_a_table():
    x = keras.Input((5,), name="x", dtype="int32")
    model = keras.Model(x, kl.Dense(2)(kl.Embedding(7, 4)(x)))
    network = build_network(model)
    assert opaque_layers(network) == []
    indices = np.array([[0, 6, 3, 3, 1]], np.int32)
    (value,) = evaluate_network(network, {"x": indices}).values()
    np.testing.assert_allclose(value, np.asarray(model(indices)), rtol=1e-5, atol=1e-6)


def test_two_outputs_of_one_layer():
    x = keras.Input(LINE, name="x")
    sequence, state = kl.GRU(3, return_sequences=True, return_state=True, name="gru")(x)
    model = keras.Model(x, [sequence, state])
    network = build_network(model)
    assert opaque_layers(network) == []
    data = np.random.default_rng(1).normal(size=(2, *LINE)).astype(np.float32)
    got = evaluate_network(network, {"x": data})
    for value, truth in zip(got.values(), model(data), strict=True):
        np.testing.assert_allclose(value, np.asarray(truth), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("why", "make"),
    [
        ("random numbers", lambda x: x + keras.random.normal((1, 6))),
        ("no primitive", lambda x: ops.cumprod(x, axis=1)),
    ],
)
def test_layers_without_primitives_stay_opaque(why, make):
    @keras.saving.register_keras_serializable("expansion")
    class Odd(kl.Layer):
        def call(self, x):
            return make(x)

    x = keras.Input(LINE, name="x")
    network = build_network(keras.Model(x, Odd(name="odd")(x)))
    assert opaque_layers(network) == ["odd"]
    assert network.nodes[0].attributes["why"]


MASKED = {
    "lstm": lambda x: kl.LSTM(3)(kl.Masking()(x)),
    "gru of steps, mean": lambda x: kl.GlobalAveragePooling1D()(
        kl.GRU(3, return_sequences=True)(kl.Masking()(x))
    ),
    "both directions behind layers that hand the mask on": lambda x: kl.Bidirectional(kl.LSTM(2))(
        kl.Dropout(0.5)(kl.ReLU()(kl.Dense(5)(kl.Masking()(x))))
    ),
    "attention": lambda x: attention(kl.Masking()(x)),
    "one of two masked": lambda x: kl.SimpleRNN(3)(
        kl.Concatenate()([kl.Masking()(x), kl.Dense(2)(x)])
    ),
    "sum": lambda x: kl.LSTM(3)(kl.Add()([kl.Masking()(x), kl.Masking(1.0)(x)])),
    "a norm between": lambda x: kl.LSTM(3)(kl.LayerNormalization()(kl.Masking()(x))),
    "softmax": lambda x: kl.Softmax(axis=1)(x, mask=ops.not_equal(x, 0.0)),
}


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.filterwarnings("ignore:Layer .* does not support mask")
def test_masks_are_followed(name):
    x = keras.Input(LINE, name="x")
    model = keras.Model(x, MASKED[name](x))
    network = build_network(model)
    assert not opaque_layers(network)
    samples = np.random.default_rng(0).normal(size=(3, *LINE)).astype(np.float32)
    samples[0, 2:], samples[1, 0], samples[2, 1:3] = 0, 0, 1
    (got,) = evaluate_network(network, {"x": samples}).values()
    np.testing.assert_allclose(got, model.predict(samples, verbose=0), rtol=1e-5, atol=1e-6)


def test_a_mask_of_indices_is_followed():
    ids = keras.Input((5,), dtype="int32", name="ids")
    model = keras.Model(ids, kl.LSTM(3)(kl.Embedding(7, 4, mask_zero=True)(ids)))
    network = build_network(model)
    assert not opaque_layers(network)
    samples = np.array([[1, 2, 0, 0, 0], [3, 0, 5, 6, 0]], np.int32)
    (got,) = evaluate_network(network, {"ids": samples}).values()
    np.testing.assert_allclose(got, model.predict(samples, verbose=0), rtol=1e-5, atol=1e-6)


def lookup(x):
    table = kl.IntegerLookup(vocabulary=[10, 20, 30], mask_token=0, num_oov_indices=3)
    return kl.Embedding(8, 2)(table(x))


INDICES = {
    "table": lookup,
    "counts": lambda x: kl.CategoryEncoding(40, output_mode="count")(x),
    "presence": lambda x: kl.CategoryEncoding(40, output_mode="multi_hot")(x),
    "sum of indices": lambda x: kl.Embedding(70, 2)(x + x[:, ::-1]),
}


@pytest.mark.parametrize("name", INDICES)
def test_whole_numbers_are_exact(name):
    # An index that may be off by a rounding would read any row.
    x = keras.Input((4,), dtype="int64", name="x")
    model = keras.Model(x, INDICES[name](x))
    network = build_network(model)
    assert not opaque_layers(network)
    samples = np.array([[10, 20, 30, 7], [0, 0, 30, 33]], np.int64)
    (got,) = evaluate_network(network, {"x": samples}).values()
    np.testing.assert_allclose(got, model.predict(samples, verbose=0), rtol=1e-6)
    (noise,) = expected_noise(network, {"x": samples}).values()
    assert np.all(noise <= 1e-6 * np.abs(got).max())


def test_elements_at_computed_indices_are_picked():
    x, places = keras.Input((6, 3), name="x"), keras.Input((2, 3), dtype="int32", name="places")
    model = keras.Model([x, places], ops.take_along_axis(x, places, axis=1))
    network = build_network(model)
    assert not opaque_layers(network)
    rng = np.random.default_rng(0)
    fed = {
        "x": rng.normal(size=(2, 6, 3)).astype(np.float32),
        "places": rng.integers(0, 6, (2, 2, 3)).astype(np.int32),
    }
    (got,) = evaluate_network(network, fed).values()
    np.testing.assert_array_equal(got, np.take_along_axis(fed["x"], fed["places"], 1))
