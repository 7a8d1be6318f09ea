"""Protects `compare` of two integer files: other ranges, scales and factors are no fault."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from renormlite import compare_files
from renormlite.artifacts.graphs import read_graph
from renormlite.reference.file_networks import network_of_file
from renormlite.reference.file_weights import match_weights
from renormlite.reference.network import evaluate_network
from renormlite.runtime_checks.foreign.equalized import with_scaled_channels
from stock_converter import converter_of

FACTORS = np.array([0.3, 0.5, 1, 2, 4, 7], np.float32)


def converted(model, samples, *, per_tensor=False) -> bytes:
    """Return an int8 .tflite file made by the stock converter."""
    import tensorflow as tf

    converter = converter_of(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter._experimental_disable_per_channel = per_tensor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converter's, on statistics of the inputs
        return converter.convert()


def with_kernel(data: bytes, place: int, change) -> bytes:
    """Return a file with the integers of one kernel changed."""
    import flatbuffers

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(data), 0))
    graph = model.subgraphs[0]
    linear = [op for op in graph.operators if model.operatorCodes[op.opcodeIndex].builtinCode in
              (3, 4, 9)]  # fmt: skip
    buffer = model.buffers[graph.tensors[linear[place].inputs[1]].buffer]
    buffer.data = change(np.asarray(buffer.data, np.uint8).view(np.int8)).view(np.uint8)
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def changed_at(place: int):
    """Return a change of one number of a kernel by half its range."""

    def change(kernel):
        found = kernel.copy()
        found[place] += np.int8(-100 if found[place] > 0 else 100)
        return found

    return change


@pytest.fixture(scope="module")
def files(build_network, coarse_export, tmp_path_factory):
    """Files of one network in other integers, and of other networks, by name."""
    samples = np.random.default_rng(5).normal(size=(16, 8, 8, 1)).astype("f4")
    model = build_network()
    data = {
        "base": converted(model, samples),
        "wide": converted(model, samples * 1.7),
        "tensor": converted(model, samples, per_tensor=True),
    }
    stem, down = model.get_layer("stem"), model.get_layer("down")
    stem.set_weights([w * FACTORS for w in stem.get_weights()])
    kernel, bias = down.get_weights()
    down.set_weights([kernel / FACTORS[:, None], bias])
    data["equalized"] = converted(model, samples)
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(0, 0.4, w.shape) for w in model.get_weights()])
    data["other"] = converted(model, samples)
    for name in ("wide", "equalized"):
        shuffled = np.random.default_rng(2).permutation
        data[f"{name}, shuffled"] = with_kernel(data[name], 3, shuffled)
        data[f"{name}, altered"] = with_kernel(data[name], 1, changed_at(5))
    folder = tmp_path_factory.mktemp("integers")
    for name, content in data.items():
        (folder / f"{name}.tflite").write_bytes(content)
    paths = {name: folder / f"{name}.tflite" for name in data}
    return {**paths, "onnx": coarse_export / "tiny.int8.onnx"}


@pytest.fixture(scope="module")
def samples():
    return np.random.default_rng(6).normal(size=(8, 8, 8, 1)).astype("f4")


PAIRS = [
    ("base", "wide"), ("wide", "tensor"), ("base", "equalized"), ("onnx", "equalized"),
    ("equalized", "onnx"), ("onnx", "wide"),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_other_integers_of_one_network(files, samples, a, b):
    report = compare_files(files[a], files[b], samples)
    assert report.passed, [result.reason for result in report.results]


def test_another_training(files, samples):
    report = compare_files(files["wide"], files["other"], samples)
    (wrong,) = [result for result in report.results if not result.passed]
    assert any("another training" in f.message for f in wrong.findings if not f.passed)


@pytest.mark.parametrize(
    ("b", "layer"),
    [
        ("wide, shuffled", "point"),
        ("wide, altered", "down"),
        ("equalized, shuffled", "point"),
        ("equalized, altered", "down"),
    ],
)
def test_one_changed_kernel_is_named(files, samples, b, layer):
    report = compare_files(files["base"], files[b], samples)
    (wrong,) = [result for result in report.results if not result.passed]
    named = [f.subject for f in wrong.findings if not f.passed and f.check in ("weights", "ops")]
    assert layer in named[0]


def test_network_with_the_factors_of_a_file(files, samples):
    """The file's own weights compute what the network computes, so the factors cancel."""
    graphs = {name: read_graph(files[name], "tflite") for name in ("base", "equalized", "other")}
    network = network_of_file(graphs["base"], "tflite")
    scaled = with_scaled_channels(network, graphs["equalized"])
    matches = match_weights(scaled, graphs["equalized"], foreign=True)
    assert all(match.state == "equal" for match in matches)
    plain, found = (
        next(iter(evaluate_network(net, {next(iter(net.inputs)): samples}).values()))
        for net in (network, scaled)
    )
    # The two files round their weights to other steps, no more.
    assert np.linalg.norm(found - plain) < 0.1 * np.linalg.norm(plain)
    assert with_scaled_channels(network, graphs["other"]) is None
    assert with_scaled_channels(network, graphs["base"]) is None


def test_weights_of_an_integer_file_are_known_to_half_a_step(files):
    graph = read_graph(files["base"], "tflite")
    network = network_of_file(graph, "tflite")
    node = next(node for node in network.nodes if node.op == "conv")
    op = next(op for op in graph.ops if op.kind == "CONV_2D")
    steps = graph.tensors[op.inputs[1]].quantization
    expected = np.broadcast_to(steps.scales / 2, node.weights["kernel"].shape)
    np.testing.assert_allclose(node.errors["kernel"], expected, rtol=1e-6)
