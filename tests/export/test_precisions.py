"""Protects every precision of every format: it runs, is as small and as exact as its bits allow."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
import renormlite as rl
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from renormlite.artifacts.flatbuffer import operator_name
from renormlite.export.formats import flatbuffer
from renormlite.export.formats.format_table import FORMAT_NAMES, precisions_of
from renormlite.export.formats.rewrites import with_separate_biases
from renormlite.models import mlperf_tiny

# `auto` searches; test_auto.py is about it.
ALL = [(name, p) for name in FORMAT_NAMES for p in precisions_of(name) if p != "auto"]

# Rounding a number to b bits costs 6.02 b dB of its signal at best. Between that and what a small
# network shows lie the spread of values below their maximum and the layers it goes through; 22 dB
# was never exceeded, and the next lower precision is at least 24 dB away.
BITS = {"float32": 24, "float16": 11, "int16x8": 8, "dynamic": 8, "int8": 8, "int4": 4}
LOSS = 22.0

# Weights dominate these files; the rest (graph, biases, scales) is given a quarter again.
SIZE = {"float32": 1, "float16": 1 / 2, "int16x8": 1 / 4, "dynamic": 1 / 4, "int8": 1 / 4}
SIZE["int4"] = 1 / 8


@pytest.mark.parametrize(("name", "precision"), ALL, ids=lambda value: value)
def test_precision(name, precision, small, images, export):
    manifest, folder = export(
        small, formats=(name,), precisions=(precision,), inputs=images, calibration=images
    )
    (artifact,) = manifest.artifacts
    assert artifact.file == f"net.{precision}{'.' + name}"
    assert artifact.snr_db["scores"] > 6.02 * BITS[precision] - LOSS
    assert (folder / artifact.file).exists()


def test_size_follows_the_bits(export, settled):
    model = settled(mlperf_tiny.anomaly_detection(rl.BatchRenormalization))
    for name in ("tflite", "onnx"):
        # Random calibration: ranges do not change the size.
        manifest, _ = export(
            model,
            formats=(name,),
            precisions=[p for f, p in ALL if f == name],
            calibration="random",
        )
        sizes = {a.precision: a.bytes for a in manifest.artifacts}
        for precision, size in sizes.items():
            assert size < 1.25 * SIZE[precision] * sizes["float32"]


def test_int8_is_per_channel_in_both_formats(small, images, export):
    _, folder = export(small, precisions=("int8",), inputs=images)
    model = flatbuffer.parse((folder / "net.int8.tflite").read_bytes())
    kernels = [t for t in model.subgraphs[0].tensors if t.shape is not None and len(t.shape) == 4]
    channels = [len(t.quantization.scale) for t in kernels if t.quantization.scale is not None]
    assert 8 in channels
    graph = onnx.load(folder / "net.int8.onnx").graph
    scales = {w.name: w.dims for w in graph.initializer}
    per_channel = [
        node
        for node in graph.node
        if node.op_type == "DequantizeLinear" and list(scales.get(node.input[1], [])) == [8]
    ]
    assert per_channel


@pytest.mark.parametrize(("precision", "dtype"), [("int8", "int8"), ("int16x8", "int16")])
def test_integer_inputs_and_outputs(precision, dtype, small, images, export):
    manifest, folder = export(
        small, formats=("tflite",), precisions=(precision,), inputs=images, quantized_io="integer"
    )
    (artifact,) = manifest.artifacts
    assert artifact.inputs[0].dtype == artifact.outputs[0].dtype == dtype
    assert artifact.inputs[0].scale > 0
    assert {"QUANTIZE", "DEQUANTIZE"}.isdisjoint(artifact.ops)
    details = Interpreter(str(folder / artifact.file)).get_input_details()[0]
    assert details["quantization"] == pytest.approx(
        (artifact.inputs[0].scale, artifact.inputs[0].zero_point)
    )
    assert artifact.snr_db["scores"] > 25


def test_int8_files_hold_no_float_computation(small, images, export):
    _, folder = export(small, formats=("tflite",), precisions=("int8",), inputs=images)
    model = flatbuffer.parse((folder / "net.int8.tflite").read_bytes())
    graph = model.subgraphs[0]
    floats = [i for i, t in enumerate(graph.tensors) if t.type == 0]
    assert sorted(floats) == sorted([*graph.inputs, *graph.outputs])


def test_quantizing_prints_no_irrelevant_warnings(small, images, export, capfd, caplog):
    export(small, precisions=("dynamic", "int8"), inputs=images)
    printed = capfd.readouterr().err
    assert "fully_quantize" not in printed
    assert "XNNPACK" not in printed
    assert not [record for record in caplog.records if record.name == "root"]


# Highest operator versions of tflite-runtime 2.14 (lite/core/kernels/register.cc of that release).
OLD_RUNTIME = {
    "CONV_2D": 8,
    "DEPTHWISE_CONV_2D": 7,
    "FULLY_CONNECTED": 11,
    "RESHAPE": 1,
    "QUANTIZE": 4,
    "DEQUANTIZE": 6,
}


@pytest.mark.parametrize("precision", ["float32", "float16", "dynamic", "int8", "int16x8", "int4"])
def test_operator_versions_are_those_of_tflite_runtime_2_14(precision, images, export, settled):
    # Dense layers of more than 1024 weights: smaller ones stay float in dynamic-range files.
    model = settled(mlperf_tiny.anomaly_detection(rl.BatchRenormalization))
    _, folder = export(model, formats=("tflite",), precisions=(precision,), calibration="random")
    parsed = flatbuffer.parse((folder / f"net.{precision}.tflite").read_bytes())
    versions = {operator_name(c): c.version for c in parsed.operatorCodes}
    assert "FULLY_CONNECTED" in versions
    for operator, version in versions.items():
        assert version <= OLD_RUNTIME[operator], operator


def test_half_precision_rounds_to_nearest_including_denormals(small, export):
    bias = np.array([1e-8, -2e-8, 4e-8, -6e-8, 0.1], np.float32)
    small.get_layer("scores").bias.assign(bias)
    _, folder = export(small, formats=("onnx",), precisions=("float16",))
    model = onnx.load(folder / "net.float16.onnx")
    arrays = [onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer]
    assert any(np.array_equal(array, bias.astype(np.float16)) for array in arrays)


def test_calibration_samples_become_real_samples_of_the_golden_set(small, images, export):
    """Else int8 would be judged on random numbers that no range was made for."""
    _, folder = export(small, formats=("tflite",), precisions=("int8",), calibration=images)
    with np.load(folder / "golden.npz") as golden:
        real = golden["input:image"][golden["kind"] == "real"]
    assert len(real) == 16
    assert all(any(np.array_equal(sample, image) for image in images) for sample in real)


def test_quantizing_without_samples_is_refused(small, export):
    with pytest.raises(rl.UserError, match="real samples"):
        export(small, precisions=("int8",))


def test_a_precision_without_a_format_is_refused(small, export):
    with pytest.raises(rl.UserError, match="int16x8"):
        export(small, formats=("onnx",), precisions=("int16x8",))


def test_a_format_skips_precisions_that_it_lacks(small, images, export):
    manifest, _ = export(small, precisions=("float32", "int16x8"), inputs=images)
    assert [(a.format, a.precision) for a in manifest.artifacts] == [
        ("tflite", "float32"),
        ("onnx", "float32"),
        ("tflite", "int16x8"),
    ]


def test_metadata_is_inside_the_files(small, images, export):
    manifest, folder = export(
        small,
        formats=("tflite", "onnx", "saved_model"),
        labels=["a", "b", "c", "d", "e"],
        preprocessing=rl.Preprocessing(mean=127.5, scale=1 / 127.5),
        description="five shapes",
    )
    tflite = flatbuffer.parse((folder / "net.float32.tflite").read_bytes())
    props = onnx.load(folder / "net.float32.onnx").metadata_props
    saved = (folder / "net.float32.saved_model" / "assets.extra" / "renormlite.json").read_text()
    inside = [
        json.loads(flatbuffer.get_metadata(tflite)["renormlite"]),
        json.loads({p.key: p.value for p in props}["renormlite"]),
        json.loads(saved),
    ]
    for found in inside:
        assert found["labels"] == ["a", "b", "c", "d", "e"]
        assert found["preprocessing"] == {"mean": 127.5, "scale": 1 / 127.5}
        assert found["description"] == "five shapes"
        assert found["source"] == {"model_name": "small", "sha256": None}
        assert found["versions"]["renormlite"] == rl.__version__
    assert manifest.metadata["labels"] == ["a", "b", "c", "d", "e"]


def test_weights_are_aligned_for_kernels_that_read_them_in_place(small, export):
    _, folder = export(small, formats=("tflite",))
    data = (folder / "net.float32.tflite").read_bytes()
    weights = np.asarray(small.get_layer("depth").kernel).ravel()
    # The folded weights differ; find any float buffer of the dense layer's size instead.
    model = flatbuffer.parse(data)
    buffers = [b.data for b in model.buffers if b.data is not None and len(b.data) >= 64]
    assert buffers
    assert weights.size
    for content in buffers:
        assert data.index(bytes(bytearray(content))) % 16 == 0


def test_16_bit_files_hold_differences_of_equal_constants(tmp_path: Path) -> None:
    """As in the filters of a mel spectrogram: a bias must not be shared, but this is none."""
    sound = keras.Input((512,), name="sound")
    mel = keras.layers.MelSpectrogram(64, 32, num_mel_bins=8, sampling_rate=8000, name="mel")
    model = keras.Model(sound, keras.layers.Dense(3)(keras.layers.Flatten()(mel(sound))))
    samples = np.random.default_rng(0).normal(size=(24, 512)).astype(np.float32)
    manifest = rl.export_model(
        model, tmp_path, formats=("tflite",), precisions=("int16x8",), inputs=samples
    )
    assert (manifest.artifacts[0].snr_db[manifest.outputs[0].name] or 0) > 6.02 * BITS[
        "int16x8"
    ] - LOSS
    assert rl.check_parity(tmp_path).passed


def test_biases_of_16_bit_files_are_constants_of_their_own() -> None:
    bias, other = np.array([[1, 2, 3], [4, 5, 7]], np.float32)
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, (1, 3), name="x")
        first, second = tf.constant(bias, name="bias"), tf.constant(other)
        product = (x + first) * (x + second) * (x + first)
        tf.add(product, first - second, name="y")
    result = with_separate_biases(graph.as_graph_def())
    names = [node.name for node in result.node]
    assert len(names) == len(set(names))
    assert len([node for node in result.node if node.op == "AddV2" and "bias" in node.input]) == 1
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(result, name="")
    with tf.compat.v1.Session(graph=graph) as session:
        got = session.run("y:0", {"x:0": np.ones((1, 3), np.float32)})
    wanted = np.square(1 + bias) * (1 + other) + bias - other
    np.testing.assert_allclose(got[0], wanted, rtol=1e-6)
