"""Protects where biases are in ONNX files: inside the product, so that a quantizer rounds once."""

from __future__ import annotations

import keras
import numpy as np
import onnx
import pytest
import renormlite as rl
from keras import layers as kl

SEQUENCE, IMAGE = (10, 4), (8, 8, 3)

# Layer, its input, and how many sums are left.
LAYERS = {
    "Conv1D": (lambda: kl.Conv1D(5, 3, padding="same"), SEQUENCE, 0),
    "Conv1D, causal and dilated": (
        lambda: kl.Conv1D(5, 3, padding="causal", dilation_rate=2, activation="relu"),
        SEQUENCE,
        0,
    ),
    "SeparableConv1D": (lambda: kl.SeparableConv1D(5, 3), SEQUENCE, 0),
    "DepthwiseConv1D": (lambda: kl.DepthwiseConv1D(3), SEQUENCE, 0),
    "Conv1DTranspose": (lambda: kl.Conv1DTranspose(5, 3, strides=2), SEQUENCE, 0),
    "Dense on sequences": (lambda: kl.Dense(5, activation="relu"), SEQUENCE, 0),
    "Dense on images": (lambda: kl.Dense(5), IMAGE, 0),
    "EinsumDense": (lambda: kl.EinsumDense("abc,cd->abd", (10, 5), bias_axes="d"), SEQUENCE, 1),
    # The products of input and state, and c = f * c + i * g, in each of two steps.
    "LSTM": (lambda: kl.LSTM(3), (2, 4), 3),
}


def _with_biases(model: keras.Model) -> keras.Model:
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name == "bias":
            weight.assign(generator.normal(0, 0.5, weight.shape))
    return model


def _samples(shape: tuple[int, ...]) -> np.ndarray:
    steps = np.random.default_rng(0).normal(0, 1, (24, *shape))
    return np.cumsum(np.cumsum(steps, axis=1), axis=2).astype(np.float32)


@pytest.mark.parametrize("name", LAYERS)
def test_a_bias_is_inside_its_product(name, export):
    make, shape, sums = LAYERS[name]
    x = keras.Input(shape, name="x")
    model = _with_biases(keras.Model(x, make()(x)))
    precisions = ("float32", "int8")
    manifest, folder = export(
        model, formats=("onnx",), precisions=precisions, inputs=_samples(shape), equalize="never"
    )
    for artifact in manifest.artifacts:
        added = [n for n in onnx.load(folder / artifact.file).graph.node if n.op_type == "Add"]
        assert len(added) <= sums
    full, integer = (next(iter(a.snr_db.values())) for a in manifest.artifacts)
    assert full > 120  # float32 sums of a few dozen products
    assert integer > 25  # 8 bits, less what a peak of 8 times the usual value costs


@pytest.mark.parametrize("merge", [kl.Add, kl.Multiply])
def test_a_computed_summand_is_not_made_a_bias(merge, export):
    """Keras adds a pooled (1, 1, C) as a bias, which a convolution must know beforehand."""
    x = keras.Input(IMAGE, name="x")
    pooled = kl.GlobalAveragePooling2D(keepdims=True)(kl.Conv2D(4, 3)(x))
    model = _with_biases(keras.Model(x, merge()([kl.Conv2D(4, 3)(x), pooled])))
    manifest, _ = export(
        model, precisions=("float32", "int8"), inputs=_samples(IMAGE), equalize="never"
    )
    for artifact in manifest.artifacts:
        least = 120 if artifact.precision == "float32" else 25
        assert next(iter(artifact.snr_db.values())) > least, artifact.file


def test_one_number_becomes_a_vector(tmp_path):
    """The quantizer of ONNX Runtime indexes every bias by channel."""
    x = keras.Input((6,), name="x")
    y = keras.layers.Dense(4, use_bias=False, activation="hard_sigmoid")(x)
    model = keras.Model(x, keras.layers.Dense(3, use_bias=False)(y) + 0.7)
    rl.export_model(
        model, tmp_path / "n", formats=("onnx",), precisions=("int8",), calibration="random"
    )
    graph = onnx.load(tmp_path / "n" / "n.int8.onnx").graph
    sizes = {entry.name: tuple(entry.dims) for entry in graph.initializer}
    made = {node.output[0]: node for node in graph.node}
    biases = [made[node.input[2]].input[0] for node in graph.node if node.op_type == "Gemm"]
    assert [sizes[name] for name in biases] == [(4,), (3,)]
