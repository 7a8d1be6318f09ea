"""Protects against silence on files that do not compute the trained model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
import renormlite as rl
import tensorflow as tf
from keras import layers
from onnx import numpy_helper
from renormlite.artifacts.network import Network, Node
from renormlite.export.formats import onnx as onnx_format
from renormlite.export.formats import tflite
from renormlite.export.formats.onnx_external import write_model
from renormlite.export.formats.rewrites import with_vector_sums
from renormlite.export.wrong_files import beyond_noise, logarithmic_layers, notes_on_outputs
from renormlite.reference.file_noise import finite_in_half, noise_in_half

TRUTH = np.linspace(-1, 1, 40).reshape(4, 10)


def _altered(graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Replace 0.7 by 7, as a faulty converter might."""
    for node in graph_def.node:
        if node.op == "Const" and node.attr["dtype"].type == tf.float32:
            value = tf.make_ndarray(node.attr["value"].tensor)
            if np.all(value == np.float32(0.7)):
                node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(10 * value))
    return graph_def


@pytest.mark.parametrize(
    ("precision", "wrong"), [("float32", "rounding"), ("float16", "half precision explains")]
)
def test_no_file_of_a_faulty_converter_is_left(precision, wrong, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tflite, "with_vector_sums", lambda g: _altered(with_vector_sums(g)))
    image = keras.Input((4, 4, 3))
    up = layers.Conv2DTranspose(3, 3, use_bias=False, name="up")(image) + 0.7
    message = rf"net\.{precision}\.tflite would be wrong: 100 % of output 'add[_0-9]*' differ "
    message += rf".* {wrong}.* instead .* layer 'add[_0-9]*' wrongly"
    with pytest.raises(rl.UserError, match=message):
        rl.export_model(
            keras.Model(image, up),
            tmp_path / "net",
            formats=("tflite",),
            precisions=(precision,),
        )
    assert list((tmp_path / "net").iterdir()) == []


def _perceptron() -> keras.Model:
    keras.utils.set_random_seed(0)
    x = keras.Input((24,), name="x")
    return keras.Model(x, layers.Dense(6, name="y")(layers.Dense(24, activation="relu")(x)))


def _scaled(factor: float, kind: int):
    """Return a writer of .onnx files that multiplies the greatest constant of a type."""

    def write(model: onnx.ModelProto, path: Path, held: object) -> None:
        alike = [t for t in model.graph.initializer if t.data_type == kind]
        if alike:
            largest = max(alike, key=lambda t: len(t.raw_data))
            array = numpy_helper.to_array(largest)
            changed = (array * factor).astype(array.dtype)
            largest.CopyFrom(numpy_helper.from_array(changed, largest.name))
        write_model(model, path, held)

    return write


@pytest.mark.parametrize(("factor", "is_left"), [(1.1, False), (1 + 2**-11, True)])
def test_a_wrong_weight_in_half_precision_is_refused(factor, is_left, tmp_path, monkeypatch):
    # Half a step of half precision is rounding; a tenth of a kernel is not.
    writer = _scaled(factor, onnx.TensorProto.FLOAT16)
    monkeypatch.setattr(onnx_format, "write_model", writer)

    def export() -> rl.Manifest:
        options = {"formats": ("onnx",), "precisions": ("float16",)}
        return rl.export_model(_perceptron(), tmp_path / "net", **options)

    if is_left:
        assert export().artifacts[0].notes == ()
    else:
        with pytest.raises(rl.UserError, match=r"float16\.onnx would be wrong: .* half precision"):
            export()


@pytest.mark.parametrize("size", [6.0e4, 7.0e4])
def test_values_near_the_end_of_half_precision_are_written(size, tmp_path) -> None:
    model = _perceptron()
    samples = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    greatest = np.abs(np.asarray(model(samples))).max()
    last = model.get_layer("y")
    last.set_weights([last.get_weights()[0] * size / greatest, np.zeros(6)])
    manifest = rl.export_model(model, tmp_path / "net", precisions=("float16",), inputs=samples)
    assert [a.format for a in manifest.artifacts] == ["tflite", "onnx"]
    for artifact in manifest.artifacts:
        assert any("exceed 65504" in note for note in artifact.notes) == (size > 65504)


def test_numbers_that_half_precision_loses_explain_nan() -> None:
    # 0 / 1e-12 is 0, and 0 / 0 in half precision NaN; 7e4 is infinite there.
    def node(name: str, op: str, *inputs: str, **constants: np.ndarray) -> Node:
        return Node(name, op, name, inputs, (None, 2), {}, {}, constants)

    least = node("least", "constant", "x", constant=np.full(2, 1e-12, np.float32))
    factor = node("y", "multiply", "x", constant=np.full(2, 7.0, np.float32))
    quotient = Network({"x": (None, 2)}, {"y": "y"}, (least, node("y", "divide", "x", "least")))
    product = Network({"x": (None, 2)}, {"y": "y"}, (factor,))
    for network, x, finite in (
        (quotient, [[0.0, 1.0]], [False, False]),
        (quotient, [[0.0, 0.0]], [False, False]),
        (product, [[1e4, 9e3]], [False, True]),
    ):
        assert finite_in_half(network, {"x": np.array(x)})["y"][0].tolist() == finite


def test_layers_that_only_keras_evaluates_are_judged_by_their_own_errors(tmp_path) -> None:
    truth = {"y": TRUTH}
    single = {"y": TRUTH.astype(np.float32)}
    opaque = Node("y", "opaque", "y", ("x",), (None, 10), {"why": "a test"}, {})
    network = Network({"x": (None, 10)}, {"y": "y"}, (opaque,))
    noise = noise_in_half(network, {"x": TRUTH}, truth, single)["y"]
    assert not beyond_noise(TRUTH.astype(np.float16), TRUTH, noise).any()
    # A few roundings of half precision, and a tenth of the values.
    assert not beyond_noise(TRUTH * (1 + 2**-10), TRUTH, noise).any()
    assert beyond_noise(TRUTH * 1.1, TRUTH, noise).mean() > 0.5


def test_notes_say_what_is_far(tmp_path: Path) -> None:
    def notes(precision: str, given: np.ndarray, ratio: float = 100.0) -> tuple[str, ...]:
        single = TRUTH.astype(np.float32)
        described = dataclasses.replace(artifact, precision=precision, snr_db={"y": ratio})
        return notes_on_outputs(described, {"y": given}, {"y": TRUTH}, {"y": single})

    x = keras.Input((10,), name="x")
    model = keras.Model(x, layers.Dense(10, name="y")(x))
    (artifact,) = rl.export_model(model, tmp_path, formats=("tflite",)).artifacts
    one = TRUTH.copy()
    one[1, 2] += 0.5
    assert notes("float32", TRUTH + 1e-4) == ()
    assert "1 of 40 elements of output 'y' differ" in notes("float32", one)[0]
    with pytest.raises(rl.UserError, match="100 % of output 'y' differ"):
        notes("float32", TRUTH + 0.5)
    with pytest.raises(rl.UserError, match="100 % of output 'y' differ"):
        notes("float32", np.full_like(TRUTH, np.nan))
    assert notes("int8", TRUTH + 0.5, 30.0) == ()
    assert "-5.0 dB from the trained model" in notes("int8", TRUTH + 0.5, -5.0)[0]
    assert "NaN or infinite" in notes("float16", TRUTH * np.inf, 30.0)[0]


def _mel(sound: keras.KerasTensor) -> keras.KerasTensor:
    layer = layers.MelSpectrogram(128, 64, num_mel_bins=16, sampling_rate=8000, name="spec")
    return layer(sound)


def _powers(sound: keras.KerasTensor) -> keras.KerasTensor:
    real, imaginary = keras.ops.stft(sound, 128, 64, 128)
    return keras.ops.log10(keras.ops.maximum(real * real + imaginary * imaginary, 1e-10))


@pytest.mark.parametrize("spectrum", [_mel, _powers])
def test_logarithms_of_integers_are_advised_to_be_floats(
    spectrum: Callable[[keras.KerasTensor], keras.KerasTensor], tmp_path: Path
) -> None:
    x = keras.Input((1000,), name="x")
    model = keras.Model(x, layers.Dense(3, name="y")(spectrum(x)))
    rng = np.random.default_rng(0)
    tones = np.sin(np.arange(1000) * rng.uniform(0.1, 2, (32, 1)))
    samples = (tones * 10 ** rng.uniform(-3, 0, (32, 1))).astype(np.float32)
    options = {"formats": ("tflite",), "precisions": ("int8",), "calibration": samples}
    (plain,) = rl.export_model(model, tmp_path, **options).artifacts
    advice = re.search(r"in float \(--keep-float (\S+)\), export another", plain.notes[-1])
    assert advice
    named = advice[1].split(",")
    assert (named == ["spec"]) == (spectrum is _mel)
    (kept,) = rl.export_model(model, tmp_path, keep_float=named, **options).artifacts
    assert plain.snr_db["y"] < 10 < 30 < kept.snr_db["y"]


def test_layers_with_a_kernel_are_not_what_a_logarithm_is_taken_of() -> None:
    kernel = {"kernel": np.eye(2, dtype=np.float32)}
    nodes = (
        Node("d", "dense", "dense", ("x",), (None, 2), {}, kernel),
        Node("s", "square", "square", ("d",), (None, 2), {}, {}),
        Node("m", "dense", "logmel", ("s",), (None, 2), {}, kernel),
        Node("l", "log", "logmel", ("m",), (None, 2), {}, {}),
        Node("e", "dense", "last", ("l",), (None, 2), {}, kernel),
        Node("t", "tanh", "tanh", ("e",), (None, 2), {}, {}),
    )
    network = Network({"x": (None, 2)}, {"t": "t"}, nodes)
    assert logarithmic_layers(network) == ["square", "logmel"]


def test_outputs_of_integers_have_no_ratio_but_a_share(tmp_path: Path) -> None:
    x = keras.Input((8,), name="x")
    scores = layers.Dense(6, name="scores")
    model = keras.Model(x, keras.ops.argmax(scores(x), axis=-1))
    samples = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32) ** 3
    manifest = rl.export_model(
        model, tmp_path / "net", precisions=("int8",), calibration="random", inputs=samples
    )
    golden = np.load(tmp_path / "net" / "golden.npz")
    real = golden["kind"] == "real"
    label = manifest.outputs[0].name
    wanted = np.asarray(model(golden["input:x"]))[real]
    for artifact in manifest.artifacts:
        assert artifact.snr_db == {label: None}
        text = " ".join(artifact.notes)
        assert not re.search(r"dB (on the real samples|from)", text)
        share = float((golden[f"artifact:{artifact.file}:{label}"][real] == wanted).mean())
        assert 0 < share < 1
        assert f"{100 * share:.3g} % of output {label!r} equal the trained model's" in text
