"""Random Keras networks of all public layers, for properties that hold for every network.

The seed determines the network. It is small, it runs, and it has extreme weights and statistics.
With `dtype="float64"` Keras computes the same network in float64: an oracle that is independent of
renormlite.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers as kl
from renormlite import BatchRenormalization, ChannelAffine

_LARGEST = 1500  # numbers in one sample of any tensor

_ACTIVATIONS = [
    *(None, None, None, "relu", "relu", "leaky_relu", "relu6", "celu", "elu", "gelu", "tanh"),
    *("hard_shrink", "soft_shrink", "hard_sigmoid", "hard_silu", "hard_tanh", "log_sigmoid"),
    *("log_softmax", "softmax", "mish", "selu", "sigmoid", "silu", "softplus", "softsign"),
    *("sparse_plus", "sparse_sigmoid", "sparsemax", "squareplus", "tanh_shrink"),
]


@keras.saving.register_keras_serializable(package="renormlite-tests")
def squared(x: Any) -> Any:
    """A custom activation."""
    return x * x * 0.5 - 1.0


@keras.saving.register_keras_serializable(package="renormlite-tests")
class Block(kl.Layer):
    """A composite custom layer: two layers, a norm and an operation."""

    def __init__(self, width: int = 3, **options: Any) -> None:
        super().__init__(**options)
        self.width = width
        self.dense = kl.Dense(width, activation="hard_shrink")
        self.norm = kl.BatchNormalization()
        self.act = kl.ReLU()

    def build(self, input_shape: Any) -> None:
        self.dense.build(input_shape)
        self.norm.build((*input_shape[:-1], self.width))

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.act(self.norm(self.dense(x), training=training)) + 0.5

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape[:-1], self.width)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable(package="renormlite-tests")
class Scaled(kl.Layer):
    """A custom layer with a weight and a function."""

    def build(self, input_shape: Any) -> None:
        self.gain = self.add_weight(shape=(input_shape[-1],), name="gain", initializer="ones")

    def call(self, x: Any) -> Any:
        return keras.ops.sin(x * self.gain)


def random_model(seed: int, dtype: str = "float32") -> keras.Model:
    """Return a random network.

    Args:
        seed: Seed of all random choices.
        dtype: Precision of the computation; the weights are the same numbers for every dtype.
    """
    before = keras.config.floatx()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            keras.utils.set_random_seed(seed)
            model = _Network(np.random.default_rng(seed)).model(f"random_{seed}")
        set_odd_weights(model, seed)
        return model
    finally:
        keras.config.set_floatx(before)
        keras.config.set_dtype_policy(before)


def random_inputs(model: keras.Model, seed: int, samples: int = 3) -> Any:
    """Return inputs in the structure that the model expects."""
    rng = np.random.default_rng(seed)
    arrays = [
        rng.normal(size=(samples, *tensor.shape[1:])).astype("float32")
        if "float" in tensor.dtype
        else rng.integers(0, 4, (samples, *tensor.shape[1:])).astype(tensor.dtype)
        for tensor in model.inputs
    ]
    if isinstance(model, keras.Sequential):
        return arrays[0]
    return keras.tree.pack_sequence_as(model.input, arrays)


def set_odd_weights(model: keras.Model, seed: int) -> None:
    """Set random weights; some gammas of norms are zero, tiny or negative, some variances zero."""
    rng = np.random.default_rng(seed)
    mild = rng.random() < 0.6
    for variable in model.weights:
        if "float" not in variable.dtype:
            continue
        shape, name = variable.shape, variable.name
        if "variance" in name or name == "moving_stddev":
            values = rng.uniform(0.2, 3.0, shape)
            if not mild:
                values = np.where(rng.random(shape) < 0.1, 0.0, values)
        elif name in {"gamma", "scale", "r"}:
            values = rng.uniform(0.4, 2.0, shape)
            if not mild:
                odd = rng.choice([1.0, 0.0, 1e-30, -1.0], shape, p=[0.7, 0.1, 0.1, 0.1])
                values = values * odd
        else:
            fan_in = max(1, math.prod(shape[:-1])) if len(shape) > 1 else 2
            values = rng.normal(size=shape) * min(0.7, 1.5 / math.sqrt(fan_in))
        # Rounded, so that both precisions hold the same numbers.
        variable.assign(np.asarray(values, np.float32))


Make = Callable[["_Network", Any], Any]
_CATALOGUE: dict[str, tuple[tuple[int, ...], Make]] = {}


def _layer(*ranks: int) -> Callable[[Make], Make]:
    """Register a function that calls a new layer on tensors of some ranks."""

    def enter(make: Make) -> Make:
        _CATALOGUE[make.__name__] = ranks, make
        return make

    return enter


@dataclass
class _Network:
    """Grows a network, one call at a time.

    Attributes:
        rng: Source of every choice.
        depth: Number of networks in which it is nested.
        pool: Tensors that a layer can read.
        shared: Layers that were called, with the shape of their input.
        names: Number of nested networks so far.
    """

    rng: np.random.Generator
    depth: int = 0
    pool: list[Any] = field(default_factory=list)
    shared: list[tuple[Any, Any]] = field(default_factory=list)
    names: int = 0

    def pick(self, *options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def size(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def tensor(self, *ranks: int) -> Any:
        fits = [t for t in self.pool[-5:] if not ranks or len(t.shape) in ranks]
        return fits[-1] if self.chance(0.5) else self.pick(*fits)

    def activation(self) -> Any:
        name = self.pick(*_ACTIVATIONS)
        if self.chance(0.06):
            return squared
        if self.chance(0.06):
            return self.pick(kl.LeakyReLU(0.2), kl.ReLU(6.0), kl.PReLU(), kl.ReLU())
        return name

    def model(self, name: str) -> keras.Model:
        inputs = [self.source(f"in{i}") for i in range(self.pick(1, 1, 1, 2))]
        self.pool = list(inputs)
        for _ in range(self.size(4, 16)):
            self.step()
        made = [t for t in self.pool if all(t is not x for x in inputs)] or self.pool
        outputs = [made[-1], *(self.pick(*made) for _ in range(self.pick(0, 0, 1, 2)))]
        structure: Any = outputs if len(outputs) > 1 else outputs[0]
        if len(outputs) > 1 and self.chance(0.3):
            structure = {f"out{i}": t for i, t in enumerate(outputs)}
        given: Any = inputs if len(inputs) > 1 else inputs[0]
        if len(inputs) > 1 and self.chance(0.3):
            given = {t.name: t for t in inputs}
        return keras.Model(given, structure, name=name)

    def source(self, name: str) -> Any:
        if self.chance(0.12):
            return keras.Input((self.size(3, 6),), dtype="int32", name=name)
        rank = self.pick(2, 3, 3, 4, 4, 4, 5)
        sizes = {2: (), 3: (self.size(4, 8),), 4: (6, self.size(4, 7)), 5: (3, 4, 5)}[rank]
        return keras.Input((*sizes, self.size(2, 5)), name=name)

    def step(self) -> None:
        """Add one more call; calls that Keras refuses are left out."""
        roll = self.rng.random()
        with contextlib.suppress(Exception):
            if roll < 0.3:
                results = self.norm()
            elif roll < 0.38 and self.shared:
                results = self.again()
            elif roll < 0.48:
                results = self.join()
            elif roll < 0.54 and self.depth < 2:
                results = self.nested()
            else:
                x = self.tensor()
                fits = [make for ranks, make in _CATALOGUE.values() if len(x.shape) in ranks]
                results = self.pick(*fits)(self, x) if "int" not in x.dtype else _tokens(self, x)
            for result in results if isinstance(results, (list, tuple)) else [results]:
                if _is_usable(result):
                    self.pool.append(result)

    def apply(self, layer: Any, x: Any) -> Any:
        """Call a layer; it can be called again on a tensor of the same shape."""
        result = layer(x)
        self.shared.append((layer, tuple(x.shape)))
        return result

    def again(self) -> Any:
        layer, shape = self.pick(*self.shared)
        fits = [t for t in self.pool if tuple(t.shape) == shape and "float" in t.dtype]
        return layer(self.pick(*fits))

    def norm(self) -> Any:
        x = self.tensor(2, 3, 4, 5)
        axis = self.pick(-1, -1, -1, -1, self.size(1, len(x.shape) - 1))
        layer = self.pick(
            lambda: kl.BatchNormalization(axis=axis, center=self.chance(0.8)),
            lambda: kl.BatchNormalization(axis=axis, scale=self.chance(0.8)),
            lambda: BatchRenormalization(axis=axis),
            lambda: kl.BatchNormalization(renorm=True, axis=axis),
            lambda: ChannelAffine(axis=axis),
            lambda: kl.Rescaling(self.pick(0.5, 2.0), self.pick(0.0, -1.0)),
            lambda: kl.Normalization(
                mean=self.rng.normal(size=x.shape[-1]).tolist(),
                variance=self.rng.uniform(0.5, 2, x.shape[-1]).tolist(),
                invert=self.chance(0.3),
            ),
        )()
        return self.apply(layer, x)

    def join(self) -> Any:
        x = self.tensor()
        alike = [t for t in self.pool if t.shape == x.shape and t.dtype == x.dtype]
        y = self.pick(*alike)
        kind = self.pick("layer", "layer", "concat", "dot", "operator", "broadcast", "stack")
        if kind == "layer":
            merges = kl.Add, kl.Subtract, kl.Average, kl.Maximum, kl.Minimum, kl.Multiply
            several = [x, y, self.pick(*alike)]
            merge = self.pick(*merges)
            return merge()(several if merge is not kl.Subtract and self.chance(0.2) else [x, y])
        if kind == "concat":
            return kl.Concatenate(axis=self.pick(-1, -1, self.size(1, len(x.shape) - 1)))([x, y])
        if kind == "dot":
            return kl.Dot(axes=len(x.shape) - 1, normalize=self.chance(0.3))([x, y])
        if kind == "stack":
            return keras.ops.stack([x, y], axis=self.size(1, len(x.shape) - 1))
        if kind == "broadcast":
            return self.pick(keras.ops.add, keras.ops.multiply)(
                x, keras.ops.mean(y, axis=len(y.shape) - 2, keepdims=True)
            )
        return self.pick(
            lambda: x + y,
            lambda: x - y,
            lambda: x * y,
            lambda: keras.ops.maximum(x, y),
            lambda: keras.ops.where(x > 1000.0, x, y),
        )()

    def nested(self) -> Any:
        """Call a model inside this one, once or twice."""
        x = self.tensor(2, 3, 4)
        inside = _Network(self.rng, self.depth + 1)
        inner = keras.Input(x.shape[1:])
        inside.pool = [inner]
        for _ in range(self.size(1, 5)):
            inside.step()
        outputs = inside.pool[-1:] if self.chance(0.7) else inside.pool[-2:]
        if inner in outputs and len(outputs) == 1:
            outputs = [kl.Identity()(inner)]
        self.names += 1
        # Users have models with the same name in different parents.
        name = self.pick("block", "tower") + f"_{self.depth}_{self.names}"
        model = keras.Model(inner, outputs if len(outputs) > 1 else outputs[0], name=name)
        results = list(keras.tree.flatten(model(x)))
        if self.chance(0.4):
            fits = [t for t in self.pool if t.shape == x.shape]
            results += keras.tree.flatten(model(self.pick(*fits)))
        return results


def _is_usable(result: Any) -> bool:
    shape = getattr(result, "shape", None)
    return (
        isinstance(result, keras.KerasTensor)
        and shape is not None
        and 2 <= len(shape) <= 5
        and None not in shape[1:]
        and 0 < math.prod(shape[1:]) <= _LARGEST
        and "float" in result.dtype
    )


def _tokens(net: _Network, x: Any) -> Any:
    """Call a layer that takes integers below 4."""
    layer = net.pick(
        lambda: kl.Embedding(4, net.size(2, 5), mask_zero=net.chance(0.4)),
        lambda: kl.Embedding(6, net.size(2, 5)),
        lambda: kl.CategoryEncoding(4, output_mode=net.pick("multi_hot", "count")),
        lambda: kl.IntegerLookup(vocabulary=[1, 2, 3], output_mode="multi_hot"),
        lambda: kl.Hashing(5, output_mode="multi_hot"),
        lambda: kl.Discretization([0.5, 1.5], output_mode="multi_hot"),
    )()
    return layer(x)


def _spatial(net: _Network, n: int) -> dict[str, Any]:
    """Return compatible kernel size, strides, dilation and padding."""
    kernel = net.size(1, 3)
    dilation = net.pick(1, 1, 1, 2)
    strides = net.pick(1, 1, 1, 2) if dilation == 1 else 1
    padding = net.pick("valid", "same", "same", *(["causal"] if n == 1 else []))
    return {
        "kernel_size": kernel,
        "strides": strides,
        "dilation_rate": dilation,
        "padding": padding,
    }


def _n(x: Any, *classes: Any) -> Any:
    """Return the class for the number of spatial axes of a tensor."""
    return classes[len(x.shape) - 3]


@_layer(3, 4, 5)
def conv(net: _Network, x: Any) -> Any:
    channels = x.shape[-1]
    groups = net.pick(1, 1, *([2] if channels % 2 == 0 else []), channels)
    groups = groups if len(x.shape) < 5 else 1
    layer = _n(x, kl.Conv1D, kl.Conv2D, kl.Conv3D)(
        groups * net.size(1, 3),
        groups=groups,
        use_bias=net.chance(0.6),
        activation=net.activation(),
        **_spatial(net, len(x.shape) - 2),
    )
    return net.apply(layer, x)


@_layer(3, 4)
def depthwise(net: _Network, x: Any) -> Any:
    options = _spatial(net, 2)
    layer = _n(x, kl.DepthwiseConv1D, kl.DepthwiseConv2D)(
        **options, depth_multiplier=net.pick(1, 1, 2), activation=net.activation()
    )
    return net.apply(layer, x)


@_layer(3, 4)
def separable(net: _Network, x: Any) -> Any:
    layer = _n(x, kl.SeparableConv1D, kl.SeparableConv2D)(
        net.size(2, 5), **_spatial(net, 2), activation=net.activation()
    )
    return net.apply(layer, x)


@_layer(3, 4, 5)
def transposed(net: _Network, x: Any) -> Any:
    layer = _n(x, kl.Conv1DTranspose, kl.Conv2DTranspose, kl.Conv3DTranspose)(
        net.size(1, 4),
        net.size(1, 3),
        strides=net.pick(1, 1, 2),
        padding=net.pick("valid", "same"),
        activation=net.activation(),
        use_bias=net.chance(0.6),
    )
    return net.apply(layer, x)


@_layer(2, 3, 4, 5)
def dense(net: _Network, x: Any) -> Any:
    layer = kl.Dense(net.size(1, 5), use_bias=net.chance(0.6), activation=net.activation())
    return net.apply(layer, x)


@_layer(2, 3, 4)
def einsum(net: _Network, x: Any) -> Any:
    rank, out = len(x.shape), net.size(2, 4)
    letters = "abcd"[:rank]
    if net.chance(0.4):
        equation, shape, bias = f"...{letters[-1]},{letters[-1]}z->...z", out, "z"
    elif rank == 3 and net.chance(0.5):
        equation, shape, bias = "abc,bz->azc", (out, x.shape[-1]), net.pick("z", "c", "zc", None)
    else:
        equation = f"{letters},{letters[-1]}z->{letters[:-1]}z"
        shape, bias = (*x.shape[1:-1], out), net.pick("z", None)
    layer = kl.EinsumDense(equation, shape, bias_axes=bias, activation=net.activation())
    return net.apply(layer, x)


@_layer(3, 4, 5)
def pooling(net: _Network, x: Any) -> Any:
    kind = net.pick(
        (kl.MaxPooling1D, kl.MaxPooling2D, kl.MaxPooling3D),
        (kl.AveragePooling1D, kl.AveragePooling2D, kl.AveragePooling3D),
    )
    size = net.pick(1, 2, 2, 3)
    return net.apply(_n(x, *kind)(size, net.pick(None, 1, 2), padding=net.pick("valid", "same")), x)


@_layer(3, 4, 5)
def global_pooling(net: _Network, x: Any) -> Any:
    kind = net.pick(
        (kl.GlobalMaxPooling1D, kl.GlobalMaxPooling2D, kl.GlobalMaxPooling3D),
        (kl.GlobalAveragePooling1D, kl.GlobalAveragePooling2D, kl.GlobalAveragePooling3D),
    )
    return net.apply(_n(x, *kind)(keepdims=net.chance(0.3)), x)


@_layer(3, 4)
def adaptive_pooling(net: _Network, x: Any) -> Any:
    # Adaptive max pooling of Keras crashes the process on TensorFlow for some sizes.
    kind = _n(x, kl.AdaptiveAveragePooling1D, kl.AdaptiveAveragePooling2D)
    return net.apply(kind(net.size(1, 3)), x)


@_layer(3, 4, 5)
def resampling(net: _Network, x: Any) -> Any:
    if len(x.shape) == 4 and net.chance(0.6):
        method = net.pick("nearest", "bilinear", "bicubic")
        return net.apply(kl.UpSampling2D(net.pick(1, 2), interpolation=method), x)
    return net.apply(_n(x, kl.UpSampling1D, kl.UpSampling2D, kl.UpSampling3D)(2), x)


@_layer(3, 4, 5)
def bordering(net: _Network, x: Any) -> Any:
    kind = net.pick(
        (kl.ZeroPadding1D, kl.ZeroPadding2D, kl.ZeroPadding3D),
        (kl.Cropping1D, kl.Cropping2D, kl.Cropping3D),
    )
    return net.apply(_n(x, *kind)(1), x)


@_layer(4)
def images(net: _Network, x: Any) -> Any:
    layer = net.pick(
        lambda: kl.Resizing(
            net.size(3, 7), net.size(3, 7), interpolation=net.pick("bilinear", "nearest")
        ),
        lambda: kl.CenterCrop(3, 3),
        lambda: kl.RandomFlip(),
        lambda: kl.RandomRotation(0.1),
        lambda: kl.RandomContrast(0.2),
        lambda: kl.RandomCrop(3, 3),
    )()
    return layer(x)


@_layer(2, 3, 4, 5)
def activation(net: _Network, x: Any) -> Any:
    name = net.activation() or "relu"
    layer = net.pick(
        lambda: kl.Activation(name),
        lambda: kl.Activation("linear"),
        lambda: kl.ReLU(net.pick(None, 6.0), net.pick(0.0, 0.1), net.pick(0.0, 0.0, 0.5)),
        lambda: kl.LeakyReLU(net.pick(0.1, 0.3)),
        lambda: kl.ELU(net.pick(1.0, 0.5)),
        lambda: kl.PReLU(shared_axes=net.pick(None, [1], list(range(1, len(x.shape) - 1)) or None)),
        lambda: kl.Softmax(axis=net.pick(-1, 1)),
        lambda: kl.Lambda(lambda v: v * 2.0 - 1.0),
        lambda: Scaled(),
        lambda: Block(net.size(2, 4)),
    )()
    return net.apply(layer, x)


@_layer(2, 3, 4, 5)
def statistics(net: _Network, x: Any) -> Any:
    """Add a norm that uses the statistics of each sample."""
    channels = x.shape[-1]
    layer = net.pick(
        lambda: kl.LayerNormalization(),
        lambda: kl.GroupNormalization(net.pick(1, channels)),
        lambda: kl.RMSNormalization(),
        lambda: kl.UnitNormalization(),
        lambda: kl.SpectralNormalization(kl.Dense(net.size(2, 4))),
    )()
    if isinstance(layer, kl.SpectralNormalization):
        # It casts its outputs to the type of its input. For integers that Keras declares as floats,
        # such as those of IntegerLookup, it returns integers.
        x = keras.ops.cast(x, x.dtype)
    return net.apply(layer, x)


@_layer(2, 3, 4, 5)
def regularization(net: _Network, x: Any) -> Any:
    rank = len(x.shape)
    options = [
        lambda: kl.Dropout(0.3),
        lambda: kl.GaussianDropout(0.3),
        lambda: kl.GaussianNoise(0.3),
        lambda: kl.AlphaDropout(0.3),
        lambda: kl.ActivityRegularization(0.1),
        lambda: kl.Identity(),
    ]
    if rank > 2:
        options.append(
            lambda: _n(x, kl.SpatialDropout1D, kl.SpatialDropout2D, kl.SpatialDropout3D)(0.3)
        )
    return net.apply(net.pick(*options)(), x)


@_layer(2, 3, 4, 5)
def layout(net: _Network, x: Any) -> Any:
    rank, size = len(x.shape), math.prod(x.shape[1:])
    order = [int(a) + 1 for a in net.rng.permutation(rank - 1)]
    options = [
        lambda: kl.Flatten(),
        lambda: kl.Permute(order),
        lambda: kl.Reshape((size // x.shape[-1], x.shape[-1])),
        lambda: kl.Reshape((x.shape[-1], -1)),
        lambda: kl.Reshape((*x.shape[1:-1], 1, x.shape[-1])),
    ]
    if rank == 2:
        options.append(lambda: kl.RepeatVector(net.size(2, 4)))
    return net.apply(net.pick(*options)(), x)


@_layer(3)
def recurrent(net: _Network, x: Any) -> Any:
    units, sequences = net.size(2, 4), net.chance(0.6)
    common = {"return_sequences": sequences, "go_backwards": net.chance(0.2)}
    layer = net.pick(
        lambda: kl.LSTM(units, **common),
        lambda: kl.GRU(units, **common),
        lambda: kl.SimpleRNN(units, **common),
        lambda: kl.Bidirectional(kl.GRU(units, return_sequences=sequences)),
        lambda: kl.RNN(kl.LSTMCell(units), return_sequences=sequences),
        lambda: kl.RNN([kl.GRUCell(units), kl.SimpleRNNCell(units)], return_sequences=sequences),
    )()
    return net.apply(layer, x)


@_layer(4, 5)
def recurrent_convolution(net: _Network, x: Any) -> Any:
    layer = {4: kl.ConvLSTM1D, 5: kl.ConvLSTM2D}[len(x.shape)](
        net.size(1, 3), 2, padding="same", return_sequences=net.chance(0.5)
    )
    return net.apply(layer, x)


@_layer(3)
def attention(net: _Network, x: Any) -> Any:
    return net.pick(
        lambda: kl.Attention(use_scale=net.chance(0.5))([x, x]),
        lambda: kl.AdditiveAttention()([x, x]),
        lambda: kl.MultiHeadAttention(2, 3)(x, x),
        lambda: kl.GroupQueryAttention(3, 2, 1)(x, x),
    )()


@_layer(3, 4, 5)
def time_distributed(net: _Network, x: Any) -> Any:
    inner = [
        lambda: kl.Dense(net.size(2, 4), activation=net.activation()),
        lambda: kl.BatchNormalization(),
        lambda: kl.BatchNormalization(axis=net.pick(1, -1)),
        lambda: kl.LayerNormalization(),
        lambda: kl.Flatten(),
    ]
    if len(x.shape) > 3:
        one_less = keras.KerasTensor((None, *x.shape[2:]))
        inner += [
            lambda: _n(one_less, kl.Conv1D, kl.Conv2D)(3, 2, padding="same", activation="relu"),
            lambda: _n(one_less, kl.MaxPooling1D, kl.MaxPooling2D)(2),
        ]
    return net.apply(kl.TimeDistributed(net.pick(*inner)()), x)


@_layer(3)
def masking(net: _Network, x: Any) -> Any:
    return kl.Masking(mask_value=net.pick(0.0, 99.0))(x)


@_layer(2, 3, 4, 5)
def operation(net: _Network, x: Any) -> Any:
    ops, rank = keras.ops, len(x.shape)
    axis = net.size(1, rank - 1)
    vector = net.rng.normal(size=x.shape[-1]).astype("float32")
    return net.pick(
        lambda: x + vector,
        lambda: vector - x,
        lambda: x * vector,
        lambda: x / (np.abs(vector) + 0.5),
        lambda: x * 2.0 - 1.0,
        lambda: -x,
        lambda: ops.abs(x),
        lambda: ops.square(x) * 0.3,
        lambda: ops.sqrt(ops.abs(x) + 1.0),
        lambda: ops.relu(x),
        lambda: ops.leaky_relu(x),
        lambda: ops.sigmoid(x),
        lambda: ops.clip(x, -1.0, 1.0),
        lambda: ops.mean(x, axis=axis, keepdims=net.chance(0.5)),
        lambda: ops.sum(x, axis=axis, keepdims=True),
        lambda: ops.max(x, axis=axis),
        lambda: ops.transpose(x, [0, *[int(a) + 1 for a in net.rng.permutation(rank - 1)]]),
        lambda: ops.reshape(x, (-1, math.prod(x.shape[1:]))),
        lambda: ops.flip(x, axis),
        lambda: ops.roll(x, 1, axis),
        lambda: ops.concatenate([x, -x], axis),
        lambda: ops.expand_dims(x, axis),
        lambda: ops.repeat(x, 2, axis),
        lambda: ops.pad(x, [[0, 0], *[[1, 0]] * (rank - 1)]),
        lambda: x[:, 1:],
        lambda: x[..., :-1],
        lambda: list(ops.split(x, [1], axis)),
        lambda: ops.matmul(x, ops.transpose(x, [0, *range(1, rank - 2), rank - 1, rank - 2])),
        lambda: ops.softmax(x, axis=-1),
        lambda: ops.normalize(x, axis=-1),
        lambda: ops.cumsum(x, axis=axis),
        lambda: ops.logsumexp(x, axis=axis, keepdims=True),
    )()


def public_layers() -> Iterator[str]:
    """Yield the names of all public Keras layers."""
    for name in sorted(dir(kl)):
        if isinstance(getattr(kl, name), type) and issubclass(getattr(kl, name), kl.Layer):
            yield name
