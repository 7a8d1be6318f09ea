"""Protects the reproducer: the op at fault, cut out of its file, shows the same fault by itself."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from renormlite import UserError, check_parity, export_model
from renormlite.artifacts.directory import read_export
from renormlite.artifacts.flatbuffer import operator_kind, pack, parse
from renormlite.artifacts.graphs import read_graph
from renormlite.models.data import handwritten_digits
from renormlite.reference.file_weights import file_weight
from renormlite.reference.network import evaluate_node
from renormlite.runtime_checks.bundle.write import write_bundle
from renormlite.runtime_checks.per_op.culprit import Fault
from renormlite.runtime_checks.per_op.cut.tflite import cut
from renormlite.runtime_checks.per_op.file_contents import FileContents
from renormlite.runtime_checks.per_op.op_results import Culprit
from renormlite.runtime_checks.per_op.reproducer import write_reproducer
from renormlite.runtime_checks.per_op.storage import Wide, storage_of
from renormlite.runtimes import Target, make_runner
from renormlite.runtimes.session import Session

PRECISIONS = ("float32", "float16", "dynamic", "int8", "int16x8")


@pytest.fixture(scope="module")
def healthy(build_network, tmp_path_factory) -> Path:
    """The network in every precision, by the exporter itself."""
    directory = tmp_path_factory.mktemp("export") / "tiny"
    digits = handwritten_digits()
    export_model(
        build_network(),
        directory,
        formats=("tflite",),
        precisions=PRECISIONS,
        calibration=digits.train.x[:64],
        inputs=digits.test.x[:16],
        equalize="never",
    )
    return directory


@pytest.fixture
def export(healthy, tmp_path) -> Callable[[str], Path]:
    """A copy to damage that lists the file of one precision only."""

    def copy(precision: str) -> Path:
        directory = Path(shutil.copytree(healthy, tmp_path / "tiny"))
        record = json.loads((directory / "manifest.json").read_text())
        record["artifacts"] = [a for a in record["artifacts"] if a["precision"] == precision]
        (directory / "manifest.json").write_text(json.dumps(record))
        return directory

    return copy


def spoil(directory: Path, change: Callable[[Any], None]) -> Path:
    """Change the only artifact and its hash in the manifest."""
    record = json.loads((directory / "manifest.json").read_text())
    (artifact,) = record["artifacts"]
    path = directory / artifact["file"]
    model = parse(path.read_bytes())
    change(model)
    path.write_bytes(pack(model))
    artifact["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    artifact["bytes"] = path.stat().st_size
    (directory / "manifest.json").write_text(json.dumps(record))
    return path


def ops_of(model: Any, kind: str) -> list[Any]:
    return [op for op in model.subgraphs[0].operators if operator_kind(model, op) == kind]


def swap_channels(model: Any) -> None:
    """Exchange two output channels of the pointwise convolution's weights."""
    swap(model, ops_of(model, "CONV_2D")[2])


def swap_classes(model: Any) -> None:
    """Exchange two classes of the dense layer's weights, the only ones worth quantizing."""
    swap(model, ops_of(model, "FULLY_CONNECTED")[0])


def swap(model: Any, op: Any) -> None:
    graph, index = model.subgraphs[0], op.inputs[1]
    if model.buffers[graph.tensors[index].buffer].data is None:  # float16: dequantized first
        index = next(o for o in graph.operators if index in o.outputs).inputs[0]
    tensor = graph.tensors[index]
    buffer = model.buffers[tensor.buffer]
    rows = np.array(buffer.data, np.uint8).reshape(tensor.shape[0], -1)
    rows[[1, 4]] = rows[[4, 1]]
    buffer.data = rows.reshape(-1)


def change_activation(model: Any) -> None:
    """Make a tanh of the strided convolution's relu."""
    options = ops_of(model, "CONV_2D")[1].builtinOptions
    assert options.fusedActivationFunction == schema.ActivationFunctionType.RELU
    options.fusedActivationFunction = schema.ActivationFunctionType.TANH


def first_fault(directory: Path, target: str = "litert") -> Fault:
    report = check_parity(directory, (target,), per_op=True)
    assert not report.passed
    return report.results[0].faults[0]


@pytest.mark.parametrize(
    ("precision", "change", "layer"),
    [
        ("float32", swap_channels, "point"),
        ("float16", swap_channels, "point"),
        ("dynamic", swap_classes, "scores"),
        ("int8", swap_channels, "point"),
        ("int16x8", swap_channels, "point"),
        ("float32", change_activation, "down_relu"),
    ],
)
def test_extracted_op_shows_the_same_fault(precision, change, layer, export, tmp_path):
    directory = export(precision)
    path = spoil(directory, change)
    fault = first_fault(directory)
    assert fault.layer == layer
    alone = write_reproducer(fault, path, tmp_path / "op")
    again = first_fault(alone)
    assert (again.layer, again.kind) == (layer, fault.kind)
    (artifact,) = read_export(alone).artifacts
    assert artifact.precision == precision
    assert sum(count for kind, count in artifact.ops.items() if kind != "DEQUANTIZE") == 1
    assert (alone / artifact.file).stat().st_size < path.stat().st_size


@pytest.mark.parametrize("target", ["litert+reference", "tf-lite"])
def test_fault_shows_on_other_runtimes(target, export, tmp_path):
    directory = export("int8")
    path = spoil(directory, swap_channels)
    alone = write_reproducer(first_fault(directory), path, tmp_path / "op")
    assert first_fault(alone, target).layer == "point"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layer", ["down", "depth", "point", "scores"])
def test_healthy_op_passes(precision, layer, export, tmp_path):
    directory = export(precision)
    fault = as_if_at_fault(directory, layer)
    (artifact,) = read_export(directory).artifacts
    alone = write_reproducer(fault, directory / artifact.file, tmp_path / "op")
    report = check_parity(alone, ("litert",), per_op=True)
    assert report.passed, report.results[0].reason
    assert report.results[0].ops


def as_if_at_fault(directory: Path, layer: str) -> Fault:
    """Return what the walk would say of a healthy op, from the runtime's own tensors."""
    export = read_export(directory)
    (artifact,) = export.artifacts
    path, network = directory / artifact.file, export.read_network(artifact)
    contents = FileContents.of(path, artifact, network)
    (result,) = check_parity(directory, ("litert",), per_op=True).results
    check = next(c for c in result.ops if layer in (c.layer, *c.fused))
    golden = export.read_golden().select(np.arange(4))
    with make_runner(Target("litert"), path) as runner:
        session = Session(runner, artifact)
        runs = [runner.infer_all(session.batch(golden.inputs, i)) for i in range(4)]
    nodes = {node.name: node for node in network.nodes}
    segment = tuple(nodes[name] for name in (*check.fused, check.node))

    def values(key: str, shape: tuple[int | None, ...]) -> np.ndarray:
        real = np.stack([contents.graph.tensors[key].real(run[key]) for run in runs])
        return real.reshape(4, *shape[1:])

    (read,) = (key for key in check.op.inputs if depends(contents.graph, key))
    before = segment[0].inputs[0]
    shape = nodes[before].shape if before in nodes else network.inputs[before]
    inputs = {before: values(read, shape)}
    expected = inputs[before]
    for node in segment:
        held = {
            match.role: file_weight(match, node.weights[match.role].shape)
            for match in contents.weights
            if match.node == node.name and match.tensor is not None
        }
        expected = evaluate_node(replace(node, weights={**node.weights, **held}), [expected])
    got = values(check.op.outputs[0], expected.shape)
    key = check.op.outputs[0]
    culprit = Culprit(
        node=segment[0],
        layer=layer,
        segment=segment,
        key=key,
        op=check.op,
        storage=storage_of(contents.graph.tensors[key], got.dtype),
        inputs=inputs,
        expected=expected,
        allowed=np.zeros_like(got),
        got=got,
    )
    return Fault(layer, "arithmetic", check.op, "none", culprit)


def depends(graph: Any, key: str) -> bool:
    """Return whether a tensor depends on the file's inputs."""
    producer = graph.producer(key)
    if producer is None:
        return key in graph.inputs
    return any(depends(graph, name) for name in producer.inputs if name)


def test_bundle_of_a_reproducer_fails_too(export, tmp_path):
    directory = export("int8")
    path = spoil(directory, swap_channels)
    alone = write_reproducer(first_fault(directory), path, tmp_path / "op")
    bundle = write_bundle(alone)
    done = subprocess.run(
        [sys.executable, bundle, "--runtime", "litert"], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert "output 'got' differs from" in done.stdout


def test_separate_padding_op_is_extracted_too(healthy):
    """A value of another size than the op reads lies before ops that belong to it."""
    path = healthy / "tiny.float32.tflite"
    graph = read_graph(path, "tflite")
    pool = next(op for op in graph.ops if op.kind == "FULLY_CONNECTED")
    image = np.zeros((2, 8, 8, 1), np.float32)
    alone = cut(path, pool.index, {"image": image}, np.zeros((2, 10), np.float32))
    assert alone.ops["CONV_2D"] == 3
    assert [spec.shape for spec in alone.inputs] == [(1, 8, 8, 1)]


def test_ops_that_cannot_be_extracted_are_reported(healthy, tmp_path):
    path = healthy / "tiny.float32.tflite"
    image = np.zeros((2, 5), np.float32)
    with pytest.raises(UserError, match="cannot be cut out by itself"):
        cut(path, 1, {"image": image}, image)
    with pytest.raises(UserError, match="found without running"):
        write_reproducer(Fault("point", "weights", None, "", None), path, tmp_path)
    fault = as_if_at_fault_somewhere()
    with pytest.raises(UserError, match=r"cut out of \.tflite and \.onnx files"):
        write_reproducer(fault, tmp_path / "model.pb", tmp_path)


def as_if_at_fault_somewhere() -> Fault:
    from renormlite.artifacts.graphs.base import GraphOp
    from renormlite.reference.network import Node

    node = Node("y", "relu", "layer", ("x",), (None, 3), {}, {})
    ones = np.ones((2, 3))
    op = GraphOp(0, "RELU", "", (), ())
    culprit = Culprit(
        node, "layer", (node,), "y", op, Wide(), {"x": ones}, ones, np.zeros_like(ones), ones
    )
    return Fault("layer", "arithmetic", culprit.op, "", culprit)
