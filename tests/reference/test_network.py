"""Protects the NumPy walk: every operator equals Keras in float64, and bounds what float32 does."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers as kl
from renormlite import UserError
from renormlite.artifacts.network import Node, read_network
from renormlite.export.network.write import build_network, write_network
from renormlite.reference.gradients import evaluated, gradients
from renormlite.reference.network import (
    evaluate_network,
    evaluate_node,
    node_error_bound,
    node_gradient,
    opaque_layers,
)
from renormlite.reference.noise import expected_noise
from renormlite.reference.operators import OPERATORS
from renormlite.runtime_checks.end_to_end.bounds import UNIT_ROUNDOFF

IMAGE, LINE, CUBE, ROW = (7, 6, 4), (9, 4), (5, 6, 4, 2), (12,)

LAYERS = {
    "conv same": (IMAGE, lambda: kl.Conv2D(6, 3, padding="same")),
    "conv strided same": (IMAGE, lambda: kl.Conv2D(6, 3, strides=2, padding="same")),
    "conv strided even": (IMAGE, lambda: kl.Conv2D(6, (2, 4), strides=(2, 3), padding="same")),
    "conv dilated": (IMAGE, lambda: kl.Conv2D(6, 2, dilation_rate=2, padding="same")),
    "conv valid gelu": (IMAGE, lambda: kl.Conv2D(6, 3, activation="gelu")),
    "conv grouped": (IMAGE, lambda: kl.Conv2D(6, 3, groups=2, padding="same")),
    "conv1d causal": (LINE, lambda: kl.Conv1D(5, 3, padding="causal", dilation_rate=2)),
    "conv3d": (CUBE, lambda: kl.Conv3D(3, (2, 3, 2), strides=(1, 2, 1), padding="same")),
    "depthwise": (IMAGE, lambda: kl.DepthwiseConv2D(3, depth_multiplier=2, padding="same")),
    "depthwise strided": (IMAGE, lambda: kl.DepthwiseConv2D(3, strides=2, padding="same")),
    "depthwise1d": (LINE, lambda: kl.DepthwiseConv1D(3, activation="relu6")),
    "separable": (IMAGE, lambda: kl.SeparableConv2D(6, 3, strides=2, activation="silu")),
    "transposed same": (IMAGE, lambda: kl.Conv2DTranspose(5, 3, strides=2, padding="same")),
    "transposed valid": (IMAGE, lambda: kl.Conv2DTranspose(5, (2, 3), strides=(3, 2))),
    "transposed short": (IMAGE, lambda: kl.Conv2DTranspose(5, 1, strides=2, padding="same")),
    "transposed1d": (LINE, lambda: kl.Conv1DTranspose(5, 4, strides=2, padding="same")),
    "dense": (ROW, lambda: kl.Dense(7, activation="softmax")),
    "dense on images": (IMAGE, lambda: kl.Dense(7, activation="tanh")),
    "einsum": (LINE, lambda: kl.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de")),
    "average pool same": (IMAGE, lambda: kl.AveragePooling2D(3, strides=2, padding="same")),
    "max pool same": (IMAGE, lambda: kl.MaxPooling2D(3, strides=2, padding="same")),
    "global average": (IMAGE, lambda: kl.GlobalAveragePooling2D(keepdims=True)),
    "global max": (LINE, lambda: kl.GlobalMaxPooling1D()),
    "flatten": (IMAGE, kl.Flatten),
    "reshape": (IMAGE, lambda: kl.Reshape((6, 28))),
    "permute": (IMAGE, lambda: kl.Permute((3, 1, 2))),
    "repeat": (ROW, lambda: kl.RepeatVector(3)),
    "zero padding": (IMAGE, lambda: kl.ZeroPadding2D(((1, 2), (0, 3)))),
    "cropping": (IMAGE, lambda: kl.Cropping2D(((1, 2), (0, 3)))),
    "upsampling": (IMAGE, lambda: kl.UpSampling2D((2, 3))),
    "bilinear": (IMAGE, lambda: kl.UpSampling2D(2, interpolation="bilinear")),
    "prelu": (IMAGE, lambda: kl.PReLU(alpha_initializer="random_normal")),
    "leaky": (IMAGE, lambda: kl.LeakyReLU(negative_slope=0.3)),
    "relu full": (IMAGE, lambda: kl.ReLU(max_value=1.5, negative_slope=0.1, threshold=0.2)),
    "softmax axis": (IMAGE, lambda: kl.Softmax(axis=1)),
    "affine": (IMAGE, lambda: rl.ChannelAffine()),
    "norm left": (IMAGE, lambda: kl.BatchNormalization(axis=2)),
    "rescaling": (IMAGE, lambda: kl.Rescaling(0.25, offset=-1.0)),
    "dropout": (IMAGE, lambda: kl.Dropout(0.5)),
    **{
        name: (ROW, lambda name=name: kl.Activation(name))
        for name in (
            "elu",
            "selu",
            "sigmoid",
            "hard_sigmoid",
            "hard_silu",
            "softplus",
            "softsign",
            "mish",
            "log_softmax",
        )
    },
}


def build(shape, make) -> keras.Model:
    """Return a model of one layer with random weights."""
    x = keras.Input(shape, name="x")
    model = keras.Model(x, make()(x))
    rng = np.random.default_rng(5)
    for variable in model.weights:
        low = 0.5 if "variance" in variable.path else -1.0
        variable.assign(rng.uniform(low, 1.5, variable.shape))
    return model


def float64_of(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """Return what Keras computes in float64 with the model's weights."""
    from renormlite.export.fold import float64_twin

    return np.asarray(float64_twin(model)(x.astype(np.float64)))


@pytest.mark.parametrize("name", LAYERS)
def test_operator_equals_keras(name):
    shape, make = LAYERS[name]
    model = build(shape, make)
    network = build_network(model)
    assert not opaque_layers(network)
    x = np.random.default_rng(1).normal(0, 2, (3, *shape)).astype(np.float32)
    (value,) = evaluate_network(network, {"x": x}).values()
    truth = float64_of(model, x)
    assert value.shape == truth.shape
    # Keras rounds the constants of these two to float32, whatever the layer's type.
    exact = 2.0**-22 if name in ("leaky", "conv valid gelu") else 1e-12
    np.testing.assert_allclose(value, truth, rtol=exact, atol=exact)


@pytest.mark.parametrize("name", LAYERS)
def test_bound_holds_for_float32_and_is_not_loose(name):
    """Keras' float32 result is within the bound, which is small relative to the values."""
    shape, make = LAYERS[name]
    model = build(shape, make)
    network = build_network(model)
    x = np.random.default_rng(2).normal(0, 2, (3, *shape)).astype(np.float32)
    values: dict[str, np.ndarray] = {"x": x.astype(np.float64)}
    errors = {"x": np.zeros(x.shape)}
    for node in network.nodes:
        read = [values[n] for n in node.inputs]
        values[node.name] = evaluate_node(node, read)
        errors[node.name] = node_error_bound(
            node,
            read,
            values[node.name],
            [errors[n] for n in node.inputs],
            UNIT_ROUNDOFF["float32"],
        )
    (last,) = network.outputs.values()
    error = np.abs(np.asarray(model(x), np.float64) - values[last])
    assert np.all(error <= errors[last])
    assert errors[last].max() <= 1e-4 * np.abs(values[last]).max()


@pytest.mark.parametrize(("op", "bound"), [("tanh", 16 * 2.0**-24), ("exp", np.inf)])
def test_the_bound_of_an_infinite_value_is_a_number(op, bound):
    node = Node("a", op, "a", ("x",), (None, 1), {}, {})
    x = np.array([[np.inf]])
    error = np.zeros_like(x)
    assert node_error_bound(node, [x], evaluate_node(node, [x]), [error], 2.0**-24) == bound


def test_a_selection_of_whole_numbers_stays_whole():
    condition, ones, twos = np.array([[0, 1]]), np.array([[1, 1]]), np.array([[2, 2]])
    chosen = OPERATORS["select"].evaluate([condition, ones, twos], {}, {})
    assert chosen.dtype.kind == "i"
    assert chosen.tolist() == [[2, 1]]


def test_branches_multiply_add_concatenate_and_constants():
    x = keras.Input(IMAGE, name="x")
    a = kl.Conv2D(4, 3, padding="same", name="a")(x)
    b = kl.Multiply()([a, x])
    c = kl.Concatenate()([kl.Add()([a, b]), kl.Maximum()([a, x]), 2.0 - x])
    model = keras.Model(x, [c, kl.GlobalAveragePooling2D(name="mean")(c)])
    network = build_network(model)
    assert not opaque_layers(network)
    data = np.random.default_rng(1).normal(size=(2, *IMAGE)).astype(np.float32)
    from renormlite.export.fold import float64_twin

    truths = float64_twin(model)(data.astype(np.float64))
    for value, truth in zip(evaluate_network(network, {"x": data}).values(), truths, strict=True):
        np.testing.assert_allclose(value, np.asarray(truth), rtol=1e-12, atol=1e-12)


def gradient_of_tensorflow(model: keras.Model, x: np.ndarray, by: list[np.ndarray]) -> np.ndarray:
    """Return the gradient by x of the outputs times ``by``, in float64 by TensorFlow's own tape."""
    import tensorflow as tf
    from renormlite.export.fold import float64_twin

    point = tf.constant(x, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(point)
        outputs = keras.tree.flatten(float64_twin(model)(point))
        total = sum(tf.reduce_sum(y * g) for y, g in zip(outputs, by, strict=True))
    return tape.gradient(total, point).numpy()


def check_gradient(model: keras.Model, shape: tuple[int, ...], exact: float) -> None:
    network = build_network(model)
    rng = np.random.default_rng(4)
    x = rng.normal(0, 1, (2, *shape)).astype(np.float32)
    values = evaluated(network, {"x": x})
    by = {value: rng.normal(size=values[value].shape) for value in network.outputs.values()}
    got = gradients(network, values, by)["x"]
    truth = gradient_of_tensorflow(model, x, list(by.values()))
    np.testing.assert_allclose(got, truth, rtol=exact, atol=exact * np.abs(truth).max())


# Central differences with a step of 2^-20 |x| round by 2^-52 / 2^-20: nine digits, some are summed.
_DIFFERENCES = 1e-8


@pytest.mark.parametrize("name", LAYERS)
def test_gradient_equals_tensorflow(name):
    shape, make = LAYERS[name]
    rounded = name in ("leaky", "conv valid gelu")  # their constants are float32 in Keras
    check_gradient(build(shape, make), shape, 2.0**-20 if rounded else _DIFFERENCES)


def test_gradient_of_branches():
    x = keras.Input(IMAGE, name="x")
    a = kl.Conv2D(4, 3, padding="same", name="a")(x)
    gate = kl.GlobalAveragePooling2D(keepdims=True)(kl.Activation("sigmoid")(a))
    c = kl.Concatenate()(
        [
            kl.Add()([a, kl.Multiply()([gate, x])]),
            kl.Maximum()([a, x]),
            kl.Minimum()([a, x]),
            kl.Average()([a, x, x]),
            kl.Subtract()([a, x]),
            2.0 - x,
        ]
    )
    model = keras.Model(x, [c, kl.GlobalMaxPooling2D(name="most")(c)])
    check_gradient(model, IMAGE, _DIFFERENCES)


def test_gradient_of_a_constant_is_zero():
    node = Node("c", "constant", "c", ("x",), (None, 3), {}, {"constant": np.ones(3)})
    x = np.ones((2, 5))
    value = evaluate_node(node, [x])
    (gradient,) = node_gradient(node, [x], value, np.ones_like(value))
    np.testing.assert_array_equal(gradient, np.zeros_like(x))


def test_file_keeps_bits_and_names(tmp_path):
    model = build(IMAGE, lambda: kl.Conv2D(6, 3, padding="same"))
    path = tmp_path / "network.npz"
    write_network(model, path, inputs=["picture"], outputs=["map"])
    network = read_network(path)
    assert list(network.inputs) == ["picture"]
    assert list(network.outputs) == ["map"]
    kernel = network.nodes[0].weights["kernel"]
    assert kernel.dtype == np.float32
    assert kernel.tobytes() == np.asarray(model.layers[1].kernel).tobytes()
    first = path.read_bytes()
    write_network(model, path, inputs=["picture"], outputs=["map"])
    assert path.read_bytes() == first


@keras.saving.register_keras_serializable("network")
class Cumulative(kl.Layer):
    """A layer whose arithmetic no operator of the network computes."""

    def call(self, x):
        return keras.ops.cumprod(x, axis=1)


def test_opaque_layer_is_written_as_opaque(tmp_path):
    model = build(IMAGE, lambda: Cumulative(name="per_sample"))
    network = write_network(model, tmp_path / "network.npz")
    assert opaque_layers(network) == ["per_sample"]
    with pytest.raises(UserError, match="'per_sample' cannot be evaluated outside Keras"):
        evaluate_network(network, {"x": np.zeros((1, *IMAGE), np.float32)})
    assert expected_noise(network, {"x": np.zeros((1, *IMAGE), np.float32)}) == {}


@pytest.mark.parametrize("damage", [b"", b"not an archive", b"PK\x03\x04 cut"])
def test_damaged_file(tmp_path, damage):
    path = tmp_path / "network.npz"
    path.write_bytes(damage)
    with pytest.raises(UserError, match=r"network\.npz is not a folded network"):
        read_network(path)


def test_noise_model_predicts_the_error_of_float32():
    """Over random networks, the float32 error of Keras is of the size that the model predicts."""
    ratios = []
    for seed in range(6):
        keras.utils.set_random_seed(seed)
        x = keras.Input((12, 12, 3), name="x")
        y = x
        for width in (8, 16, 16):
            y = kl.Conv2D(width, 3, padding="same", activation="relu")(y)
        model = keras.Model(x, kl.Dense(10)(kl.Flatten()(y)))
        data = np.random.default_rng(seed).normal(size=(16, 12, 12, 3)).astype(np.float32)
        error = np.asarray(model(data), np.float64) - float64_of(model, data)
        (noise,) = expected_noise(build_network(model), {"x": data}).values()
        ratios.append(np.sqrt(np.mean(error**2, axis=1)) / noise)
    pooled = float(np.sqrt(np.mean(np.square(ratios))))
    assert 0.1 < pooled < 1.0
    assert np.max(ratios) < 3.0


def test_relations_are_exact_between_known_numbers():
    """A result of 0 or 1 is no denormal number, so that a choice made by it is certain."""
    x = np.array([[-0.5, 0.25, 2.0]])
    node = Node(
        "zero",
        "equal",
        "zero",
        ("x",),
        (None, 3),
        {"constant_first": False},
        {"constant": np.zeros(1)},
    )
    output = evaluate_node(node, [x])
    bound = node_error_bound(node, [x], output, [np.zeros_like(x)], 2.0**-24)
    np.testing.assert_array_equal(bound, 0)
    near = node_error_bound(node, [x], output, [np.full_like(x, 0.3)], 2.0**-24)
    np.testing.assert_array_equal(near, [[0, 1, 0]])


def test_the_greatest_of_integers_behind_padding():
    """No integer is minus infinity, with which a pool of floats is padded."""
    node = Node(
        "pool", "max_pool", "pool", ("x",), (None, 2, 2, 1),
        {"pool_size": [3, 3], "strides": [2, 2], "padding": "same", "data_format": "channels_last"},
        {}, {}, {},
    )  # fmt: skip
    x = -np.arange(1, 17, dtype=np.int32).reshape(1, 4, 4, 1)
    assert evaluate_node(node, [x]).reshape(-1).tolist() == [-1, -3, -9, -11]


@pytest.mark.parametrize("dtype", [np.int32, np.bool_])
def test_weights_of_integers_and_truth_values_stay_floats(dtype):
    kernel, shift = np.array([[0.5, -0.25], [1.75, 2.0]], np.float32), np.array([0.5, 1])
    x = np.array([[1, 1], [0, 1]]).astype(dtype)
    dense = Node("y", "dense", "y", ("x",), (None, 2), {}, {"kernel": kernel})
    np.testing.assert_array_equal(evaluate_node(dense, [x]), [[2.25, 1.75], [1.75, 2.0]])
    affine = Node(
        "y", "affine", "y", ("x",), (None, 2), {"axis": 1}, {"scale": kernel[0], "shift": shift}
    )
    np.testing.assert_array_equal(evaluate_node(affine, [x]), [[1, 0.75], [0.5, 0.75]])
    if dtype is np.int32:
        table = Node("y", "gather", "y", ("x",), (None, 2, 2), {"axis": 0}, {"kernel": kernel})
        np.testing.assert_array_equal(evaluate_node(table, [x])[1], kernel)
