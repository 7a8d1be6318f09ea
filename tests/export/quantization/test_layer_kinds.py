"""Protects every kind of layer: it computes the file's integers, or is refused with the reason."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import renormlite as rl
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from keras import layers as kl
from keras import ops

SLOPES = keras.initializers.RandomUniform(0.05, 0.5, seed=0)

# Each layer on a map (8, 8, 6).
MAPS: dict[str, Callable] = {
    "conv": lambda x: kl.Conv2D(4, 3, activation="relu6")(x),
    "grouped conv": lambda x: kl.Conv2D(4, 3, groups=2)(x),
    "transposed conv": lambda x: kl.Conv2DTranspose(4, 3, strides=2)(x),
    "depthwise": lambda x: kl.DepthwiseConv2D(3, depth_multiplier=2)(x),
    "separable": lambda x: kl.SeparableConv2D(4, 3)(x),
    "leaky relu": lambda x: kl.LeakyReLU(0.2)(x),
    "prelu": lambda x: kl.PReLU(shared_axes=[1, 2], alpha_initializer=SLOPES)(x),
    "elu": lambda x: kl.ELU()(x),
    "exponential": lambda x: kl.Activation("exponential")(x),
    "tanh": lambda x: kl.Activation("tanh")(x),
    "sigmoid": lambda x: ops.sigmoid(x),
    "silu": lambda x: kl.Activation("silu")(x),
    "gelu": lambda x: kl.Activation("gelu")(x),
    "hard silu": lambda x: kl.Activation("hard_silu")(x),
    "hard sigmoid": lambda x: kl.Activation("hard_sigmoid")(x),
    "hard tanh": lambda x: kl.Activation("hard_tanh")(kl.Conv2D(3, 1)(x)),
    "hard tanh alone": lambda x: kl.Activation("hard_tanh")(x),
    "relu with a maximum": lambda x: kl.ReLU(0.5)(kl.Conv2D(3, 1)(x)),
    "norm": lambda x: kl.BatchNormalization()(kl.MaxPooling2D()(x)),
    "mean": lambda x: kl.GlobalAveragePooling2D()(x),
    "greatest": lambda x: kl.GlobalMaxPooling2D()(x),
    "max pool": lambda x: kl.MaxPooling2D(3, strides=2, padding="same")(x),
    "average pool": lambda x: kl.AveragePooling2D(2)(x),
    "padding": lambda x: kl.ZeroPadding2D(1)(x),
    "cropping": lambda x: kl.Cropping2D(1)(x),
    "permute": lambda x: kl.Permute((2, 1, 3))(x),
    "nearest": lambda x: kl.UpSampling2D(2)(x),
    "bilinear": lambda x: kl.UpSampling2D((2, 3), interpolation="bilinear")(x),
    "resizing": lambda x: kl.Resizing(5, 11)(x),
    "time, convolution": lambda x: kl.TimeDistributed(kl.Conv2D(3, 3, padding="same"))(frames(x)),
    "time, pool": lambda x: kl.TimeDistributed(kl.MaxPooling2D())(frames(x)),
    "einsum over two axes": lambda x: kl.EinsumDense("abcd,cde->abe", (None, 5), bias_axes="e")(x),
    "reshape": lambda x: ops.reshape(x, (-1, 32, 12)),
    "slice": lambda x: x[:, 1:5],
}
# Each layer on a sequence (16, 24), which all of them share.
SEQUENCES: dict[str, Callable] = {
    "causal": lambda x: kl.Conv1D(4, 3, padding="causal")(x),
    "transposed": lambda x: kl.Conv1DTranspose(4, 3, strides=2, padding="same")(x),
    "depthwise": lambda x: kl.DepthwiseConv1D(3)(x),
    "separable": lambda x: kl.SeparableConv1D(4, 3)(x),
    "dense": lambda x: kl.Dense(5)(x),
    "time": lambda x: kl.TimeDistributed(kl.Dense(4, activation="relu"))(x),
    "einsum": lambda x: kl.EinsumDense("abc,cde->abde", (None, 2, 5), bias_axes="de")(x),
    "mean": lambda x: kl.GlobalAveragePooling1D()(x),
    "greatest": lambda x: kl.GlobalMaxPooling1D()(x),
    "average pool": lambda x: kl.AveragePooling1D(2)(x),
    "softmax": lambda x: kl.Softmax()(x),
}
PAIRS = (kl.Add, kl.Subtract, kl.Multiply, kl.Average, kl.Maximum, kl.Minimum, kl.Concatenate)


def frames(x):
    return kl.Reshape((4, 4, 4, 6))(x)


def every_kind(without: tuple[str, ...] = ()) -> tuple[keras.Model, list[str]]:
    """Return a network with one output for each kind, and the names of the kinds."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    x = kl.Conv2D(6, 3, padding="same", name="map")(image)
    y = kl.Conv2D(6, 3, padding="same", activation="relu", name="other")(image)
    z = kl.Reshape((16, 24), name="sequence")(x)
    made = {name: layer(x) for name, layer in MAPS.items()}
    made |= {f"sequence, {name}": layer(z) for name, layer in SEQUENCES.items()}
    made |= {f"pair, {pair.__name__}": pair()([x, y]) for pair in PAIRS}
    made["vector, hard sigmoid"] = kl.Activation("hard_sigmoid")(kl.Dense(7)(kl.Flatten()(x)))
    kept = {name: value for name, value in made.items() if name not in without}
    outputs = [kl.Identity()(value) for value in kept.values()]
    return keras.Model(image, outputs), list(kept)


def outputs_of(path: Path, samples: np.ndarray, **options) -> list[np.ndarray]:
    interpreter = Interpreter(str(path), **options)
    interpreter.allocate_tensors()
    places = [detail["index"] for detail in interpreter.get_output_details()]
    found = []
    for sample in samples:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], sample[None])
        interpreter.invoke()
        found.append([interpreter.get_tensor(place)[0].copy() for place in places])
    return [np.array(values) for values in zip(*found, strict=True)]


@pytest.mark.parametrize("rounding", ["float", "double"])
def test_every_kind_computes_the_integers_of_the_file(tmp_path: Path, rounding: str) -> None:
    samples = np.random.default_rng(0).normal(size=(40, 8, 8, 1)).astype(np.float32)
    # LiteRT's reference kernels are registered without ELU.
    model, names = every_kind(("elu",) if rounding == "double" else ())
    aware = rl.quantize_aware(model, samples=samples, rounding=rounding)
    rl.export_model(
        aware, tmp_path / "n", formats=("tflite",), precisions=("int8",), inputs=samples[:8]
    )
    options = {}
    if rounding == "double":
        options = {"experimental_op_resolver_type": OpResolverType.BUILTIN_REF}
    found = outputs_of(tmp_path / "n" / "n.int8.tflite", samples, **options)
    wanted = [np.array(value) for value in aware(samples)]
    assert all(len(np.unique(values)) > 3 for values in wanted)
    differing = {
        name: int((got != values).sum())
        for name, got, values in zip(names, found, wanted, strict=True)
        if (got != values).any()
    }
    assert differing == {}


REFUSED = {
    "Conv3D": (lambda: kl.Conv3D(2, 2), (4, 4, 4, 2), "volumes in floating point only"),
    "MaxPooling3D": (lambda: kl.MaxPooling3D(), (4, 4, 4, 2), "volumes in floating point only"),
    "LSTM": (lambda: kl.LSTM(3), (4, 2), "the other recurrent layers have no integer kernel"),
    "GRU": (lambda: kl.GRU(3), (4, 2), "the other recurrent layers have no integer kernel"),
    "Bidirectional": (lambda: kl.Bidirectional(kl.LSTM(3)), (4, 2), "have no integer kernel"),
    "LayerNormalization": (lambda: kl.LayerNormalization(), (4, 2), "statistics are of each"),
    "Activation": (lambda: kl.Activation("mish"), (4, 2), "float_layers"),
    "UpSampling2D": (
        lambda: kl.UpSampling2D(2, interpolation="bicubic"),
        (4, 4, 2),
        "float_layers",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_kinds_are_refused_with_the_reason(name: str) -> None:
    layer, shape, reason = REFUSED[name]
    value = keras.Input(shape)
    model = keras.Model(value, layer()(value))
    with pytest.raises(rl.UserError, match=rf"\({name}\) has no integer operator.*{reason}"):
        rl.quantize_aware(model)


def test_attention_is_refused_with_the_reason() -> None:
    value = keras.Input((4, 6))
    attended = kl.MultiHeadAttention(2, 3, name="attention")(value, value)
    with pytest.raises(rl.UserError, match=r"attention .*products of two activations"):
        rl.quantize_aware(keras.Model(value, attended))


def test_one_value_on_several_grids_stays_in_integers(tmp_path: Path) -> None:
    """Converters merge equal operators; a merged change of grid would compute in floats."""
    samples = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    keras.utils.set_random_seed(0)
    features = keras.Input((6,), name="features")
    a, b, c = (kl.Dense(5, name=name)(features) for name in "abc")
    outputs = [kl.Concatenate()([a, b]), kl.Concatenate()([a, c]), kl.Maximum()([a, c])]
    aware = rl.quantize_aware(keras.Model(features, outputs), samples=samples)
    rl.export_model(
        aware, tmp_path / "n", formats=("tflite",), precisions=("int8",), inputs=samples
    )
    found = outputs_of(tmp_path / "n" / "n.int8.tflite", samples)
    for got, wanted in zip(found, aware(samples), strict=True):
        np.testing.assert_array_equal(got, np.array(wanted))


def test_only_training_moves_the_ranges_behind_resizing():
    """Keras' resizing assumes training where nothing is said, and all later layers follow it."""
    x = keras.Input((4, 4, 2))
    y = kl.Dense(3)(kl.Flatten()(kl.UpSampling2D(2)(x)))
    model = rl.quantize_aware(keras.Model(x, y))
    samples = np.random.default_rng(0).normal(size=(8, 4, 4, 2)).astype(np.float32)

    def ranges():
        return [np.array(w) for w in model.weights if w.path.endswith(("low", "high"))]

    before = ranges()
    model(samples)
    np.testing.assert_equal(ranges(), before)
    model.compile("sgd", "mse")
    model.fit(samples, np.zeros((8, 3)), verbose=0)
    assert all(not np.array_equal(*pair) for pair in zip(ranges(), before, strict=True))
