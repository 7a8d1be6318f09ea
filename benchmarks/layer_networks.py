"""Networks with the layers and functions that converters split, fuse or compute in other ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import renormlite as rl
from check_networks import smooth_inputs
from keras import layers, ops

# Standard deviation of the logits.
_LOGITS = 2.0

LAYER_NETWORKS: dict[str, Callable[[], keras.Model]] = {}


def network(build: Callable[[], keras.Model]) -> Callable[[], keras.Model]:
    """Register a network in the table."""
    LAYER_NETWORKS[build.__name__] = build
    return build


@keras.saving.register_keras_serializable("layer_networks")
class Scale(layers.Layer):
    """A custom layer: a factor and an offset for each channel."""

    def build(self, shape: Sequence[int | None]) -> None:
        """Create the weights."""
        self.factor = self.add_weight(shape=(shape[-1],), initializer="ones", name="factor")
        self.offset = self.add_weight(shape=(shape[-1],), initializer="zeros", name="offset")

    def call(self, x: object) -> object:
        """Apply the affine map."""
        return x * self.factor + self.offset


def _scores(x: object) -> object:
    return layers.Dense(6, activation="softmax", name="scores")(x)


@network
def normalizations() -> keras.Model:
    """Normalizations over a sample."""
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same")(image)
    x = layers.ReLU()(layers.GroupNormalization(4)(x))
    x = layers.ReLU()(layers.LayerNormalization()(layers.Conv2D(8, 3, strides=2)(x)))
    x = layers.RMSNormalization()(layers.Conv2D(8, 1)(x))
    x = layers.UnitNormalization()(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, _scores(x))


@network
def attention() -> keras.Model:
    """Attention on a sequence, with dense layers of rank 3."""
    series = keras.Input((16, 8), name="series")
    x = layers.Dense(8, activation="gelu")(series)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(x, x)])
    x = layers.LayerNormalization()(x)
    return keras.Model(series, _scores(layers.GlobalAveragePooling1D()(x)))


@network
def recurrent() -> keras.Model:
    """Recurrent layers, unrolled in the files."""
    series = keras.Input((6, 4), name="series")
    x = layers.LSTM(6, return_sequences=True, unroll=True)(series)
    x = layers.GRU(5, unroll=True)(x)
    return keras.Model(series, _scores(x))


@network
def tokens() -> keras.Model:
    """An embedding, with integer inputs."""
    words = keras.Input((12,), dtype="int32", name="words")
    x = layers.Embedding(20, 8)(words)
    x = layers.Conv1D(8, 3, padding="same", activation="relu")(x)
    return keras.Model(words, _scores(layers.GlobalMaxPooling1D()(x)))


@network
def sequences() -> keras.Model:
    """One-dimensional convolutions with biases, and activations of several operators."""
    series = keras.Input((32, 4), name="series")
    x = layers.Conv1D(8, 3, padding="same")(series)
    x = layers.PReLU(shared_axes=[1])(x)
    x = layers.Conv1D(8, 3, dilation_rate=2, padding="causal", activation="silu")(x)
    x = layers.Conv1D(8, 3, activation="mish")(rl.BatchRenormalization()(x))
    x = layers.Dense(8, activation="selu")(x)
    x = layers.Dense(8, activation="softplus")(layers.AveragePooling1D(2)(x))
    return keras.Model(series, _scores(layers.GlobalAveragePooling1D()(x)))


@network
def resizing() -> keras.Model:
    """Changes of resolution, adaptive pools, hard functions."""
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="hard_tanh")(image)
    x = layers.Resizing(10, 10)(x)
    x = layers.Conv2D(8, 3, activation="hard_sigmoid")(x)
    x = ops.depth_to_space(x, 2)
    x = layers.AdaptiveAveragePooling2D((4, 4))(layers.Conv2D(6, 3)(x))
    return keras.Model(image, _scores(layers.Flatten()(x)))


@network
def functions() -> keras.Model:
    """Functions of keras.ops."""
    image = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(8, 3, padding="same")(image)
    left, right = ops.split(x, 2, axis=-1)
    x = ops.abs(left) + ops.sqrt(ops.square(right) + 1.0)
    x = ops.log(1.0 + x[:, 1:7, 1:7, :]) * ops.where(x[:, 1:7, 1:7] > 1.0, 1.0, 0.5)
    x = ops.transpose(ops.reshape(x, (-1, 36, 4)), (0, 2, 1))
    x = ops.matmul(x, layers.Dense(6)(ops.reshape(x, (-1, 36, 4))))
    return keras.Model(image, _scores(layers.Flatten()(ops.mean(x, axis=1))))


@network
def merges() -> keras.Model:
    """Merges of two branches."""
    first, second = keras.Input((10,), name="first"), keras.Input((10,), name="second")
    a, b = layers.Dense(12)(first), layers.Dense(12)(second)
    x = layers.Maximum()([a, b])
    x = layers.Concatenate()([x, layers.Multiply()([a, b]), layers.Subtract()([a, b])])
    x = layers.Dense(8, activation="tanh")(x)
    return keras.Model([first, second], layers.Dot(-1)([x, layers.Dense(8)(a)]))


@network
def affines() -> keras.Model:
    """Affine layers that a converter merges into the previous or next layer."""
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Rescaling(0.5, offset=-0.1)(image)
    x = layers.ReLU()(Scale()(layers.Conv2D(8, 3)(x)))
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(x))
    x = layers.LeakyReLU(negative_slope=0.2)(x)
    x = layers.Conv2DTranspose(8, 3, strides=2)(rl.BatchRenormalization()(x))
    return keras.Model(image, _scores(layers.GlobalMaxPooling2D()(x)))


@network
def embedding_vector() -> keras.Model:
    """A vector of length 1 from layers without biases."""
    image = keras.Input((12, 12, 1), name="image")
    x = layers.Conv2D(8, 3, use_bias=False)(image)
    x = layers.Flatten()(layers.LeakyReLU(negative_slope=0.3)(x))
    return keras.Model(image, layers.UnitNormalization()(layers.Dense(8, use_bias=False)(x)))


def _settle(model: keras.Model, rng: np.random.Generator) -> None:
    """Set values of biases, offsets and statistics, as training would."""
    for variable in model.weights:
        name = variable.path.rpartition("/")[2]
        if name in ("bias", "beta", "moving_mean", "offset"):
            variable.assign(rng.normal(0, 0.2, variable.shape))
        elif name in ("gamma", "moving_variance", "factor", "alpha", "scale"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))


def _soften(model: keras.Model, samples: dict[str, np.ndarray]) -> None:
    """Scale the last layer so that its probabilities are neither all equal nor all 0 and 1."""
    last = model.layers[-1]
    if isinstance(last, layers.Dense) and last.name == "scores":
        features = keras.Model(model.inputs, last.input)(samples)
        logits = ops.matmul(features, last.kernel)
        last.kernel.assign(last.kernel * (_LOGITS / ops.std(logits)))


def _samples(model: keras.Model, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        x.name: rng.integers(0, 20, (32, *x.shape[1:])).astype("int32")
        if x.dtype == "int32"
        else smooth_inputs(x.shape[1:], rng, 32)
        for x in model.inputs
    }


def export_layers(
    name: str,
    directory: Path,
    precisions: Sequence[str],
    formats: tuple[str, ...] = ("tflite", "onnx"),
) -> None:
    """Export one of these networks, in the precisions that its operators have."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = LAYER_NETWORKS[name]()
    _settle(model, rng)
    samples = _samples(model, rng)
    _soften(model, samples)
    wanted = list(precisions)
    while True:
        try:
            rl.export_model(
                model,
                directory,
                formats=formats,
                precisions=tuple(wanted),
                calibration=samples,
                inputs={name: x[:16] for name, x in samples.items()},
            )
            return
        except rl.UserError as refusal:
            print(name, "is refused:", refusal, flush=True)
            rule = str(refusal).split(". ")[0]  # what follows may offer other precisions
            named = [one for one in wanted if one in rule]
            if not named:
                raise
            wanted.remove(named[0])
