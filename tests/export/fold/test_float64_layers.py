"""Protects layers that lack float64: their replacements compute what the layers compute."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as kl
from renormlite import fold
from renormlite.export.fold.float64_layers import OwnPrecision, channels_last, replacement


class Scaled(keras.Layer):
    """Multiplies in its own precision; also returns where the greatest number is."""

    def call(self, x, *, factor):
        y = x * factor
        return {"y": y, "at": keras.ops.argmax(y, axis=-1)}


def test_a_layer_computes_in_its_own_precision():
    x = np.array([[1 / 3, 2 / 3]])
    layer = OwnPrecision(Scaled(dtype="float32"), dtype="float64")
    found = layer(keras.ops.convert_to_tensor(x), factor=keras.ops.convert_to_tensor(np.array(0.1)))
    assert found["y"].dtype == "float64"
    np.testing.assert_array_equal(found["y"], np.float32(x) * np.float32(0.1))
    assert "int" in keras.backend.standardize_dtype(found["at"].dtype)
    np.testing.assert_array_equal(found["at"], [1])


def test_integers_reach_a_layer_as_they_are():
    """In float16 the row 2049 would become 2048."""
    table = kl.Embedding(2051, 1, dtype="float16")
    table.build((None, 1))
    table.embeddings.assign(np.arange(2051)[:, None] % 2)
    layer = OwnPrecision(table, dtype="float64")
    assert float(layer(keras.ops.convert_to_tensor(np.array([[2049]])))[0, 0, 0]) == 1.0


@pytest.mark.parametrize("order", ["channels_last", "channels_first"])
def test_bilinear_upsampling(order):
    """Half-pixel centers: a step from 0 to 1 becomes 0, 1/4, 3/4, 1."""
    layer = kl.UpSampling2D(2, interpolation="bilinear", data_format=order)
    x = np.array([[0.0, 1.0], [0.0, 1.0]])
    x = x[None, :, :, None] if order == "channels_last" else x[None, None]
    (got,) = np.asarray(replacement(layer, "up")(x)).reshape(1, 4, 4)
    np.testing.assert_allclose(got, np.tile([0, 0.25, 0.75, 1], (4, 1)), rtol=0, atol=1e-15)


@pytest.mark.parametrize("order", ["channels_last", "channels_first"])
@pytest.mark.parametrize(("kind", "reduce"), [("Max", np.max), ("Average", np.mean)])
def test_pooling_of_volumes(order, kind, reduce):
    layer = getattr(kl, f"{kind}Pooling3D")((2, 3, 2), (2, 1, 1), data_format=order)
    x = np.random.default_rng(0).normal(size=(4, 5, 4))
    windows = np.lib.stride_tricks.sliding_window_view(x, (2, 3, 2))[::2]
    expected = reduce(windows, axis=(3, 4, 5))
    given = x[None, ..., None] if order == "channels_last" else x[None, None]
    got = np.asarray(replacement(layer, "pool")(given)).reshape(expected.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-14)


def test_layers_with_float64_kernels_are_not_replaced():
    assert replacement(kl.UpSampling2D(2), "up") is None
    assert replacement(kl.MaxPooling2D(), "pool") is None
    last = kl.Conv2D(2, 3)
    assert channels_last(last, "conv") is last
    dense = kl.Dense(2)
    assert channels_last(dense, "dense") is dense


@pytest.mark.parametrize(
    "layer",
    [
        kl.Dot(1),
        kl.Subtract(),
        lambda x: kl.Permute((2, 1))(kl.Reshape((1, 3))(x[0])),
        lambda x: kl.MaxPooling1D(2)(kl.RepeatVector(2)(x[0])),
        lambda x: kl.ZeroPadding1D(1)(kl.Reshape((3, 1))(x[0])),
    ],
)
def test_a_nested_model_reads_integers_as_floats(layer):
    """Keras declares the integers as floats, and converts them at the input of a nested model."""
    a, b = keras.Input((3,), dtype="int32"), keras.Input((3,), dtype="int32")
    read = layer([a, b])
    inner = keras.Input(read.shape[1:])
    model = keras.Model([a, b], keras.Model(inner, kl.ELU()(inner))(read))
    x = [np.array([[1, -2, 3]], np.int32), np.array([[-4, 5, -1]], np.int32)]
    found = np.asarray(fold(model, verify=False).model(x))
    np.testing.assert_allclose(found, np.asarray(model(x)), rtol=1e-6)
    assert np.any(found < 0) or not isinstance(layer, kl.Dot)


@pytest.mark.parametrize("norm", [kl.LayerNormalization, kl.RMSNormalization])
def test_a_norm_of_integers_truncates_as_in_keras(norm):
    """Keras declares the joined integers as floats, and converts the norm of them to integers."""
    a, b = keras.Input((3,), dtype="int32"), keras.Input((1,), dtype="int32")
    made = norm(epsilon=0)
    model = keras.Model([a, b], made(kl.Reshape((4,))(kl.Concatenate()([a, b]))))
    shift = [np.array([0.1, 0.9, -0.5, 0.3])]
    made.set_weights([np.array([2, 3, 5, 7.0]), *shift[: len(made.weights) - 1]])
    x = np.array([[1, 5, -3], [1, 2, 8]], np.int32), np.array([[9], [-4]], np.int32)
    whole = np.concatenate(x, 1).astype(np.float64)
    if norm is kl.LayerNormalization:
        centred = whole - whole.mean(1, keepdims=True)
        real = centred / whole.std(1, keepdims=True) * [2, 3, 5, 7] + [0.1, 0.9, -0.5, 0.3]
    else:
        real = whole / np.sqrt((whole**2).mean(1, keepdims=True)) * [2, 3, 5, 7]
    assert np.abs(real - np.round(real)).min() > 1e-3  # no rounding error can matter
    result = fold(model)
    assert result.proof.passed
    np.testing.assert_array_equal(np.asarray(result.model(list(x))), np.trunc(real))
    np.testing.assert_array_equal(np.asarray(model(list(x))), np.trunc(real))
