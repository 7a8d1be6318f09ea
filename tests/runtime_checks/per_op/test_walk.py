"""Protects the culprit: a fault planted in a file is found, named by its Keras layer, explained."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from renormlite import check_parity, export_model
from renormlite.artifacts.directory import read_export
from renormlite.artifacts.flatbuffer import pack, parse
from renormlite.artifacts.graphs import read_graph
from renormlite.reference.file_weights import match_weights
from renormlite.runtime_checks.per_op.reproducer import write_reproducer

FILE = "tiny.float32.onnx"


def rehash(export: Path, file: str) -> None:
    """Let the manifest take a changed file for the exported one, so that only numbers can tell."""
    manifest = export / "manifest.json"
    record = json.loads(manifest.read_text())
    data = (export / file).read_bytes()
    for artifact in record["artifacts"]:
        if artifact["file"] == file:
            artifact["sha256"] = hashlib.sha256(data).hexdigest()
            artifact["bytes"] = len(data)
    manifest.write_text(json.dumps(record))


def spoil(export: Path, change) -> None:
    """Change the ONNX file's graph and hide it."""
    model = onnx.load(export / FILE)
    change(model.graph)
    onnx.save(model, export / FILE)
    rehash(export, FILE)


def faults_of(export: Path, target: str = "onnxruntime"):
    report = check_parity(export, (target,), per_op=True)
    (result,) = report.results
    assert not report.passed
    return result.faults


def conv_of(graph, layer: str):
    """Return the convolution whose weights are those of a Keras layer, by its bias or kernel."""
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm") and any(layer in name for name in node.input):
            return node
    raise AssertionError(layer)


def constant(graph, name: str):
    return next(entry for entry in graph.initializer if entry.name == name)


@pytest.mark.parametrize("target", ["litert", "litert+reference", "onnxruntime", "tf-lite"])
def test_healthy_file_has_no_fault_and_every_op_is_checked(healthy_export, target):
    report = check_parity(healthy_export, (target,), per_op=True)
    (result,) = report.results
    assert report.passed
    assert not result.faults
    layers = {check.layer for check in result.ops}
    assert layers >= {"stem", "down_relu", "depth", "point", "scores"}
    assert all(0 <= check.ratio <= 1 for check in result.ops)
    assert max(check.ratio for check in result.ops) > 1e-3


def test_shifted_padding_is_named_and_explained(export):
    def change(graph):
        node = conv_of(graph, "down")
        pads = next(a for a in node.attribute if a.name == "pads")
        assert list(pads.ints) == [0, 0, 1, 1]
        pads.ints[:] = [1, 1, 0, 0]

    spoil(export, change)
    (fault,) = faults_of(export)
    assert fault.layer == "down"
    assert fault.kind == "padding"
    assert fault.op.kind == "Conv"
    assert "it pads [(1, 0), (1, 0)] where the network pads [(0, 1), (0, 1)]" in fault.message
    assert "allowed error" in fault.message


@pytest.mark.parametrize(("kind", "says"), [("Tanh", "tanh"), ("Identity", "no activation")])
def test_wrong_activation_is_named_and_explained(export, kind, says):
    def change(graph):
        relus = [node for node in graph.node if node.op_type == "Relu"]
        relus[1].op_type = kind

    spoil(export, change)
    fault = faults_of(export)[0]
    assert fault.layer == "down_relu"
    assert fault.kind == "activation"
    assert f"it computes {says} instead" in fault.message


def test_swapped_channels_are_named(export):
    def change(graph):
        entry = constant(graph, conv_of(graph, "point").input[1])
        values = numpy_helper.to_array(entry).copy()
        values[[1, 4]] = values[[4, 1]]
        entry.CopyFrom(numpy_helper.from_array(values, entry.name))

    spoil(export, change)
    fault = faults_of(export)[0]
    assert (fault.layer, fault.kind) == ("point", "weights")
    assert "16 / 64 weights" in fault.message


def test_one_bit_of_one_weight_is_found_exactly(export):
    """The smallest possible change is far below the noise; comparing the weights detects it."""
    place: list[int] = []

    def change(graph):
        entry = constant(graph, conv_of(graph, "scores").input[1])
        values = numpy_helper.to_array(entry).copy()
        place[:] = [37, 4]
        values[37, 4] = np.nextafter(values[37, 4], np.float32(9))
        entry.CopyFrom(numpy_helper.from_array(values, entry.name))

    spoil(export, change)
    report = check_parity(export, ("onnxruntime",))
    (result,) = report.results
    assert not report.passed
    assert {f.check for f in result.findings if not f.passed} >= {"weights"}
    fault = result.faults[0]
    assert (fault.layer, fault.kind) == ("scores", "weights")
    assert (
        f"1 / 1280 weights (0.0781 %) differ from those of the folded network; first at {place}"
        in (fault.message)
    )


def test_two_faults_are_both_named(export):
    def change(graph):
        for layer in ("stem", "point"):
            entry = constant(graph, conv_of(graph, layer).input[2])
            values = numpy_helper.to_array(entry) + np.float32(0.5)
            entry.CopyFrom(numpy_helper.from_array(values.astype(np.float32), entry.name))

    spoil(export, change)
    assert {fault.layer for fault in faults_of(export)} == {"stem", "point"}


def test_nan_in_a_weight_is_named(export):
    def change(graph):
        entry = constant(graph, conv_of(graph, "down").input[1])
        values = numpy_helper.to_array(entry).copy()
        values[0, 0, 0, 0] = np.nan
        entry.CopyFrom(numpy_helper.from_array(values, entry.name))

    spoil(export, change)
    assert faults_of(export)[0].layer == "down"


def test_wrong_activation_that_changes_no_value_is_found(export):
    """relu6 instead of relu on small inputs: the attribute in the file is compared as well."""
    from renormlite.artifacts.graphs.base import GraphOp
    from renormlite.runtime_checks.per_op.culprit import static_faults
    from renormlite.runtime_checks.per_op.op_results import OpCheck

    op = GraphOp(3, "CONV_2D", "", (), (), {"fusedActivationFunction": 3})
    network = read_export(export).read_network(read_export(export).artifacts[0])
    check = OpCheck("stem", "stem", (), op, 0.0, 0.0, 0.0, 0.0)
    (fault,) = static_faults([check], read_graph(export / FILE, "onnx"), network.nodes)
    assert "applies relu6 where the network has relu" in fault.message


@pytest.mark.parametrize(
    ("kind", "filed", "sound"),
    [
        ("MINIMUM", 32750, True),  # 254.998, within half a step of 255
        ("MINIMUM", 32700, False),  # 254.61
        ("MAXIMUM", 32750, False),
    ],
)
def test_limit_of_a_relu_may_be_an_op_of_its_own(kind, filed, sound):
    """TFLite's converter fuses the relu of clip(x, 0, 255) with a convolution, not the limit."""
    from renormlite.artifacts.graphs.base import ArtifactGraph, GraphOp, GraphTensor, Quantization
    from renormlite.artifacts.network import Node
    from renormlite.runtime_checks.per_op.culprit import static_faults
    from renormlite.runtime_checks.per_op.op_results import OpCheck

    sixteen = np.dtype(np.int16)
    steps = Quantization(np.array([255 / 32750.3]), np.array([0]), sixteen)
    limit = np.array(filed, np.int16)
    tensors = {
        key: GraphTensor(key, key, (1, 2), sixteen, steps, data)
        for key, data in (("x", None), ("conv", None), ("limit", limit), ("y", None))
    }
    conv = GraphOp(0, "CONV_2D", "", ("x",), ("conv",), {"fusedActivationFunction": 1})
    ops = (conv, GraphOp(1, kind, "", ("conv", "limit"), ("y",), {}))
    graph = ArtifactGraph(tensors, ("x",), ("y",), lambda: ops)
    clip = Node("clip", "relu", "clip", ("conv",), (None, 2), {"max_value": 255.0}, {})
    check = OpCheck("clip", "clip", (), conv, 0.0, 0.0, 0.0, 0.0)
    found = [fault.message for fault in static_faults([check], graph, [clip])]
    said = "layer 'clip': op 0 (CONV_2D) applies relu where the network has clip(0, 255); on these"
    assert found == ([] if sound else [f"{said} inputs both give the same"])


@pytest.mark.parametrize("file", [FILE, "tiny.float32.tflite"])
def test_every_weight_of_a_healthy_file_is_found_bit_for_bit(healthy_export, file):
    export = read_export(healthy_export)
    artifact = next(a for a in export.artifacts if a.file == file)
    network = export.read_network(artifact)
    matches = match_weights(network, read_graph(healthy_export / file, artifact.format))
    assert {match.state for match in matches} == {"equal"}
    assert len(matches) == sum(len(node.weights) for node in network.nodes) == 10


def test_one_op_reproduces_the_fault(export, tmp_path):
    """The op at fault, cut out, fails by itself on the inputs it had, and names the same layer."""

    def change(graph):
        node = conv_of(graph, "down")
        pads = next(a for a in node.attribute if a.name == "pads")
        pads.ints[:] = [1, 1, 0, 0]

    spoil(export, change)
    (fault,) = faults_of(export)
    directory = write_reproducer(fault, export / FILE, tmp_path / "op")
    assert len(onnx.load(directory / "op.float32.onnx").graph.node) == 1
    (again,) = faults_of(directory)
    assert (again.layer, again.kind) == ("down", "padding")


def test_runtime_with_different_bits_on_each_run_fails(healthy_export, monkeypatch):
    from renormlite.runtimes.onnxruntime import OnnxRuntimeRunner

    calls = iter(range(1000))
    real = OnnxRuntimeRunner._infer

    def unsteady(self, inputs):
        results = real(self, inputs)
        return {k: v + np.float32(1e-9 * (next(calls))) for k, v in results.items()}

    monkeypatch.setattr(OnnxRuntimeRunner, "_infer", unsteady)
    report = check_parity(healthy_export, ("onnxruntime",))
    assert not report.passed
    assert "gave different bits in output 'scores'" in report.results[0].reason


@pytest.mark.parametrize("place", [(0, 0), (37, 4), (127, 9)])
def test_one_weight_after_a_channels_first_flatten_is_found(coarse_export, tmp_path, place):
    """The exporter reorders the rows of such a layer; a fault of 1 % must be found all the same."""
    directory = Path(shutil.copytree(coarse_export, tmp_path / "tiny"))
    model = onnx.load(directory / FILE)
    node = next(node for node in model.graph.node if node.op_type in ("Gemm", "MatMul"))
    assert not any(node.op_type == "Transpose" for node in model.graph.node)
    entry = constant(model.graph, node.input[1])
    values = numpy_helper.to_array(entry).copy()
    rows = values if values.shape == (128, 10) else values.T
    rows[place] *= np.float32(1.01)
    entry.CopyFrom(numpy_helper.from_array(values, entry.name))
    onnx.save(model, directory / FILE)
    rehash(directory, FILE)
    report = check_parity(directory, ("onnxruntime",))
    (result,) = [result for result in report.results if result.artifact == FILE]
    assert not result.passed
    fault = result.faults[0]
    assert (fault.layer, fault.kind) == ("scores", "weights")
    # The file has channel, place; the network place, channel.
    channel, where = divmod(place[0], 16)
    at = [where * 8 + channel, place[1]]
    assert (
        f"1 / 1280 weights (0.0781 %) differ from those of the folded network; first at {at}"
        in (fault.message)
    )


def test_fault_inside_an_integer_group_is_named_and_explained(coarse_export, tmp_path):
    """The floats inside a group that runs in integers are not visible; its integers suffice."""
    directory = Path(shutil.copytree(coarse_export, tmp_path / "tiny"))
    file = "tiny.int8.onnx"
    model = onnx.load(directory / file)
    pads = [
        attribute
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.name == "pads" and list(attribute.ints) == [0, 0, 1, 1]
    ]
    assert len(pads) == 1
    pads[0].ints[:] = [1, 1, 0, 0]
    onnx.save(model, directory / file)
    rehash(directory, file)
    report = check_parity(directory, ("onnxruntime",))
    (result,) = [result for result in report.results if result.artifact == file]
    fault = result.faults[0]
    assert fault.op.kind == "Conv"
    assert (fault.kind, "down" in fault.layer) == ("padding", True)
    assert "it pads [(1, 0), (1, 0)] where the network pads [(0, 1), (0, 1)]" in fault.message


def test_grouped_3d_convolutions_pass(tmp_path):
    """Split into several ops: exact in float; not checked op by op if each of them rounds."""
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 8, 8, 4), name="volume")
    y = keras.layers.Conv3D(8, 3, groups=2, padding="same", name="grouped")(x)
    y = keras.layers.ReLU()(keras.layers.BatchNormalization()(y))
    y = keras.layers.Dense(3, name="scores")(keras.layers.GlobalAveragePooling3D()(y))
    model = keras.Model(x, y)
    volumes = np.cumsum(np.random.default_rng(0).normal(size=(40, 6, 8, 8, 4)), axis=2)
    volumes = np.asarray(volumes / volumes.std(), np.float32)
    model(volumes, training=True)
    export_model(model, tmp_path / "v", precisions=("float32", "int8"), calibration=volumes)
    targets = ("litert", "litert+reference", "litert+builtin", "onnxruntime")
    for result in check_parity(tmp_path / "v", targets, per_op=True).results:
        assert result.passed, (result.artifact, result.target, result.reason)
        (ops,) = [finding for finding in result.findings if finding.check == "ops"]
        assert ("not evaluated: grouped" in ops.message) == (result.precision == "int8")


def test_a_layer_in_slices_with_steps_of_their_own(tmp_path):
    """ONNX convolves each time step by itself and joins them, with the channels inside."""
    keras.utils.set_random_seed(0)
    x = keras.Input((4, 16, 3), name="x")
    y = keras.layers.TimeDistributed(keras.layers.Conv1D(6, 3, padding="same"), name="steps")(x)
    y = keras.layers.Flatten()(keras.layers.ReLU()(y))
    model = keras.Model(x, keras.layers.Dense(4, name="scores")(y))
    rng = np.random.default_rng(0)
    samples = 0.4 * np.cumsum(rng.normal(size=(32, 4, 16, 3)), axis=2).astype(np.float32)
    directory, file = tmp_path / "td", "td.int8.onnx"
    export_model(
        model, directory, formats=("onnx",), precisions=("int8",), calibration=samples,
        inputs=samples[:8],
    )  # fmt: skip
    for target in ("onnxruntime", "onnxruntime+disabled"):
        (result,) = check_parity(directory, (target,), per_op=True).results
        assert result.passed, (target, result.reason)

    onnx_model = onnx.load(directory / file)
    join = next(node for node in onnx_model.graph.node if node.op_type == "Concat")
    join.input[1], join.input[2] = join.input[2], join.input[1]
    onnx.save(onnx_model, directory / file)
    rehash(directory, file)
    (result,) = check_parity(directory, ("onnxruntime",), per_op=True).results
    assert result.faults[0].layer == "steps"


def joined(kind: str) -> keras.Model:
    """A value that shares the steps of a forty times larger one, and a layer that reads it."""
    x = keras.Input((6, 5, 3), name="x")
    if kind == "norms":
        small = keras.layers.BatchNormalization(name="small")(x)
        large = keras.layers.BatchNormalization(name="large")(small)
        both = keras.ops.where(small > 0, small, large)
    else:
        small = keras.layers.Dense(3, name="small")(x)
        both = keras.layers.Concatenate(name="both")([small, 40 * small])
    model = keras.Model(x, [both, keras.layers.Conv2D(2, 3, name="read")(small)], name="net")
    rng = np.random.default_rng(0)
    for weight in model.weights:
        positive = "gamma" in weight.path or "variance" in weight.path
        values = rng.uniform(0.5, 1.5, weight.shape) if positive else rng.normal(size=weight.shape)
        weight.assign(40 * values if "large/gamma" in weight.path else values)
    return model


@pytest.mark.parametrize("kind", ["norms", "dense"])
def test_a_value_in_steps_of_a_larger_one_passes(kind, tmp_path):
    """It has a few levels, which agree with many tensors: the right one reads what it reads."""
    export_model(
        joined(kind), tmp_path / "net", formats=("tflite",), precisions=("int8",),
        calibration="random",
    )  # fmt: skip
    for result in check_parity(tmp_path / "net", ("litert", "litert+reference")).results:
        # The precision costs quality, but no operator is at fault.
        wrong = {finding.check for finding in result.findings if not finding.passed}
        assert wrong <= {"snr", "slices"}, result.reason
        assert not result.faults


def test_a_layer_behind_coarse_steps_is_still_checked(tmp_path):
    """The convolution of another padding is named, not the value before it."""
    export, file = tmp_path / "net", "net.int8.onnx"
    model = joined("dense")
    export_model(model, export, formats=("onnx",), precisions=("int8",), calibration="random")
    onnx_model = onnx.load(export / file)
    (conv,) = [node for node in onnx_model.graph.node if node.op_type == "Conv"]
    kernel = next(n for n in onnx_model.graph.node if n.output[0] == conv.input[1]).input[0]
    (stored,) = [entry for entry in onnx_model.graph.initializer if entry.name == kernel]
    flipped = np.ascontiguousarray(numpy_helper.to_array(stored)[..., ::-1])
    stored.CopyFrom(numpy_helper.from_array(flipped, kernel))
    onnx.save(onnx_model, export / file)
    rehash(export, file)
    (result,) = check_parity(export, ("onnxruntime",), per_op=True).results
    assert [fault.layer for fault in result.faults] == ["read"]


def test_of_several_alike_layers_of_integers_the_one_with_a_wrong_scale_is_named(tmp_path):
    """Behind several layers the bounds are so wide that any tensor would be taken for its value."""
    keras.utils.set_random_seed(0)
    x = y = keras.Input((9, 7, 8), name="x")
    for number in range(5):
        kind = (
            keras.layers.DepthwiseConv2D
            if number % 2
            else functools.partial(keras.layers.Conv2D, 8)
        )
        y = kind(3, padding="same", activation="relu", name=f"layer{number}")(y)
    export = tmp_path / "net"
    options = {"formats": ("tflite",), "precisions": ("int8",), "calibration": "random"}
    export_model(keras.Model(x, y), export, **options)
    path = export / "net.int8.tflite"
    model = parse(path.read_bytes())
    for number in (0, 1, 2, 3):
        spoiled = copy.deepcopy(model)
        (graph,) = spoiled.subgraphs
        linear = [op for op in graph.operators if len(op.inputs) == 3]
        steps = graph.tensors[linear[number].inputs[1]].quantization
        steps.scale = np.roll(np.asarray(steps.scale, np.float32), 1)
        path.write_bytes(pack(spoiled))
        rehash(export, path.name)
        assert faults_of(export, "litert")[0].layer == f"layer{number}"
