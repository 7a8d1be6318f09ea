"""Protects that every kind of layer exports to standard operators and computes what Keras does."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers

Norm = rl.BatchRenormalization

# Both runtimes accumulate in float32: over these networks (a few hundred terms a sum, ten layers)
# rounding costs at most 2^-24 * sqrt(terms) * layers, below -120 dB; -110 leaves no room for a
# wrong weight and enough for another order of summation.
FLOAT32_SNR = 110.0


def conv1d() -> keras.Model:
    x = keras.Input((16, 4), name="x")
    y = Norm()(layers.Conv1D(8, 3, padding="same", use_bias=False)(x))
    return keras.Model(x, layers.ReLU(name="y")(y))


def conv1d_causal_dilated() -> keras.Model:
    x = keras.Input((16, 4), name="x")
    y = Norm()(layers.Conv1D(8, 3, padding="causal", dilation_rate=2, use_bias=False)(x))
    return keras.Model(x, layers.ReLU(name="y")(y))


def conv1d_grouped() -> keras.Model:
    x = keras.Input((16, 8), name="x")
    y = Norm()(layers.Conv1D(8, 3, groups=4, use_bias=False)(x))
    return keras.Model(x, layers.ReLU(name="y")(y))


def conv2d_grouped() -> keras.Model:
    x = keras.Input((12, 12, 8), name="x")
    y = layers.ReLU()(Norm()(layers.Conv2D(16, 3, groups=4, padding="same", use_bias=False)(x)))
    return keras.Model(x, layers.Conv2D(8, 3, groups=2, strides=2, name="y")(y))


def conv2d_dilated() -> keras.Model:
    x = keras.Input((16, 16, 3), name="x")
    y = layers.ReLU()(Norm()(layers.Conv2D(8, 3, dilation_rate=2, padding="same")(x)))
    return keras.Model(x, layers.DepthwiseConv2D(3, dilation_rate=2, padding="same", name="y")(y))


def conv3d() -> keras.Model:
    x = keras.Input((6, 6, 6, 4), name="x")
    y = Norm()(layers.Conv3D(8, 3, padding="same", use_bias=False)(x))
    return keras.Model(x, layers.ReLU(name="y")(y))


def conv3d_grouped() -> keras.Model:
    x = keras.Input((6, 6, 6, 4), name="x")
    y = layers.Conv3D(8, 3, groups=2, strides=(2, 1, 1), padding="same", use_bias=False)(x)
    return keras.Model(x, layers.ReLU(name="y")(Norm()(y)))


def conv3d_dilated() -> keras.Model:
    """Dilations, sizes and paddings that differ by axis; both kinds of padding."""
    x = keras.Input((9, 8, 7, 3), name="x")
    y = layers.Conv3D(4, (2, 3, 4), dilation_rate=(2, 1, 2), padding="same", use_bias=False)(x)
    y = layers.ReLU()(Norm()(y))
    return keras.Model(x, layers.Conv3D(3, (3, 2, 2), dilation_rate=(1, 2, 2), name="y")(y))


def conv3d_grouped_dilated() -> keras.Model:
    x = keras.Input((6, 7, 8, 4), name="x")
    y = layers.Conv3D(8, 3, groups=2, dilation_rate=2, padding="same", use_bias=False)(x)
    return keras.Model(x, layers.ReLU(name="y")(Norm()(y)))


def max_pooling_3d() -> keras.Model:
    x = keras.Input((7, 8, 9, 3), name="x")
    y = layers.MaxPooling3D((2, 3, 2), (1, 2, 2), padding="same")(layers.Conv3D(4, 1)(x))
    return keras.Model(x, layers.Conv3D(2, 1, name="y")(layers.MaxPooling3D((3, 2, 2))(y)))


def separable() -> keras.Model:
    x = keras.Input((12, 12, 4), name="x")
    y = layers.SeparableConv2D(8, 3, depth_multiplier=2, padding="same", use_bias=False)(x)
    return keras.Model(x, layers.ReLU(6.0, name="y")(Norm()(y)))


def transposed() -> keras.Model:
    x = keras.Input((8, 8, 3), name="x")
    y = Norm()(layers.Conv2DTranspose(8, 3, strides=2, padding="same", use_bias=False)(x))
    return keras.Model(x, layers.ReLU(name="y")(y))


def norm_after_activation() -> keras.Model:
    x = keras.Input((12, 12, 3), name="x")
    y = Norm()(layers.Conv2D(8, 3, padding="same", activation="relu")(x))
    y = Norm()(layers.DepthwiseConv2D(3, padding="same", activation="relu")(y))
    return keras.Model(x, layers.Conv2D(4, 3, padding="same", name="y")(y))


def norm_last() -> keras.Model:
    x = keras.Input((8,), name="x")
    return keras.Model(x, Norm(name="y")(layers.Dense(4, use_bias=False)(x)))


def squeeze_excite() -> keras.Model:
    x = keras.Input((8, 8, 4), name="x")
    y = layers.ReLU()(Norm()(layers.Conv2D(8, 3, padding="same", use_bias=False)(x)))
    gate = layers.GlobalAveragePooling2D(keepdims=True)(y)
    gate = layers.Conv2D(8, 1, activation="sigmoid")(gate)
    return keras.Model(x, layers.Conv2D(3, 1, name="y")(layers.Multiply()([y, gate])))


def resampling() -> keras.Model:
    x = keras.Input((8, 8, 3), name="x")
    y = layers.UpSampling2D()(layers.Conv2D(4, 3, padding="same")(x))
    y = layers.UpSampling2D(interpolation="bilinear")(y)
    y = layers.AveragePooling2D(3, 2, padding="same")(y)
    y = layers.Cropping2D(((1, 0), (0, 1)))(layers.ZeroPadding2D(1)(y))
    return keras.Model(x, layers.Permute((2, 1, 3), name="y")(y))


def activations() -> keras.Model:
    x = y = keras.Input((6, 6, 3), name="x")
    for name in ("relu6", "swish", "hard_swish", "elu", "selu", "softplus", "tanh", "sigmoid"):
        y = layers.Conv2D(4, 1, activation=name)(y)
    for name in ("hard_sigmoid", "leaky_relu", "mish", "exponential", "gelu"):
        y = layers.Conv2D(4, 1, activation=name)(y)
    return keras.Model(x, layers.PReLU(name="y", shared_axes=[1, 2])(y))


def attention() -> keras.Model:
    x = keras.Input((6, 8), name="x")
    return keras.Model(
        x, layers.LayerNormalization(name="y")(layers.MultiHeadAttention(2, 4)(x, x))
    )


def recurrent() -> keras.Model:
    x = keras.Input((6, 4), name="x")
    return keras.Model(x, layers.LSTM(5, name="y")(x))


def embedding() -> keras.Model:
    ids = keras.Input((6,), dtype="int32", name="x")
    y = layers.GlobalAveragePooling1D()(layers.Embedding(2, 4)(ids))
    return keras.Model(ids, layers.Dense(2, name="y")(y))


def pixels() -> keras.Model:
    """Takes the bytes of a camera."""
    x = keras.Input((8, 8, 3), dtype="uint8", name="x")
    y = layers.Conv2D(4, 3, use_bias=False)(layers.Rescaling(1 / 255)(x))
    return keras.Model(x, layers.ReLU(name="y")(Norm()(y)))


def einsum() -> keras.Model:
    x = keras.Input((5, 6), name="x")
    return keras.Model(x, Norm(name="y")(layers.EinsumDense("abc,cd->abd", (None, 4))(x)))


def normalization_layer() -> keras.Model:
    x = keras.Input((8, 8, 3), name="x")
    y = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])(x)
    return keras.Model(x, layers.Conv2D(4, 3, name="y")(y))


def siamese() -> keras.Model:
    encoder = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, use_bias=False), Norm(), layers.ReLU()],
        name="encoder",
    )
    left, right = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 3), name="right")
    return keras.Model([left, right], layers.Subtract(name="y")([encoder(left), encoder(right)]))


def half_precision() -> keras.Model:
    """A mixed_float16 model, as trained on a GPU."""
    policy = keras.mixed_precision.DTypePolicy("mixed_float16")
    x = keras.Input((8, 8, 3), name="x")
    y = layers.Conv2D(8, 3, use_bias=False, dtype=policy)(x)
    y = layers.ReLU(dtype=policy)(Norm(dtype=policy)(y))
    y = layers.GlobalAveragePooling2D(dtype=policy)(y)
    return keras.Model(x, layers.Dense(3, dtype=policy, name="y")(y))


NETWORKS = [
    activations,
    attention,
    conv1d,
    conv1d_causal_dilated,
    conv1d_grouped,
    conv2d_dilated,
    conv2d_grouped,
    conv3d,
    conv3d_dilated,
    conv3d_grouped,
    conv3d_grouped_dilated,
    einsum,
    embedding,
    half_precision,
    max_pooling_3d,
    norm_after_activation,
    norm_last,
    normalization_layer,
    pixels,
    recurrent,
    resampling,
    separable,
    siamese,
    squeeze_excite,
    transposed,
]

# What stock exporters leave behind, and ours may not where the batch is static.
FORBIDDEN = {
    "SPACE_TO_BATCH_ND",
    "BATCH_TO_SPACE_ND",
    "SHAPE",
    "PACK",
    "READ_VARIABLE",
    "StatefulPartitionedCall",
    "Shape",
}


@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_both_formats_compute_the_network(build, export, settled):
    manifest, _ = export(settled(build()))
    assert [a.format for a in manifest.artifacts] == ["tflite", "onnx"]
    for artifact in manifest.artifacts:
        assert [t.name for t in artifact.outputs] == ["y"]
        assert artifact.snr_db["y"] > FLOAT32_SNR
        assert {t.dtype for t in artifact.outputs} == {"float32"}
        if build not in (attention, recurrent):  # those compute with shapes and loop
            assert not FORBIDDEN & set(artifact.ops)


def _subclassed() -> keras.Model:
    class Small(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.conv = layers.Conv2D(4, 3, use_bias=False)
            self.norm = Norm()
            self.head = layers.Dense(3, name="y")

        def call(self, x: object, training: bool = False) -> object:
            return self.head(keras.ops.relu(self.norm(self.conv(x), training=training)))

    model = Small()
    model(np.zeros((1, 8, 8, 3), np.float32))
    return model


def test_a_subclassed_model_exports_under_the_names_of_its_trace(export, settled):
    manifest, _ = export(settled(_subclassed()))
    for artifact in manifest.artifacts:
        assert artifact.outputs[0].name == "y"
        assert artifact.snr_db["y"] > FLOAT32_SNR


def test_a_model_built_but_never_called_exports(export, settled):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3), name="pixels"),
            layers.Conv2D(4, 3, use_bias=False),
            Norm(),
            layers.Flatten(),
            layers.Dense(2, name="scores"),
        ]
    )
    manifest, _ = export(settled(model))
    assert manifest.inputs[0].name == "pixels"
    assert all(a.snr_db["scores"] > FLOAT32_SNR for a in manifest.artifacts)


@pytest.mark.parametrize(
    ("after", "padding"),
    [
        pytest.param(False, "same", id="norm-relu"),
        # Behind zero padding a shift from after the activation costs a channel; not so without.
        pytest.param(True, "valid", id="relu-norm"),
    ],
)
def test_operators_and_size_are_those_of_the_network_without_norms(
    after, padding, tmp_path, settled
):
    with_norms = rl.export_model(settled(_blocks(True, after, padding)), tmp_path / "net")
    without = rl.export_model(_blocks(False, after, padding), tmp_path / "twin" / "net")
    for ours, clean in zip(with_norms.artifacts, without.artifacts, strict=True):
        assert ours.ops == clean.ops
        assert ours.bytes == pytest.approx(clean.bytes, rel=1e-3)


def _blocks(norm: bool, after: bool, padding: str) -> keras.Model:
    x = keras.Input((32, 32, 3), name="x")
    y = x
    for width in (32, 64, 128):
        y = layers.Conv2D(width, 3, padding=padding, strides=2, use_bias=after or not norm)(y)
        if norm and not after:
            y = Norm()(y)
        y = layers.ReLU()(y)
        if norm and after:
            y = Norm()(y)
    return keras.Model(x, layers.Dense(10, name="y")(layers.Flatten()(y)))
