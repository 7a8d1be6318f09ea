"""Protects which tensors are taken for the values of the network."""

from __future__ import annotations

import numpy as np
from renormlite.artifacts.graphs.base import ArtifactGraph, GraphOp, GraphTensor, Quantization
from renormlite.artifacts.network import Network, Node
from renormlite.reference.file_weights import match_weights
from renormlite.reference.rounded_weights import RoundedWeights
from renormlite.runtime_checks.per_op.evaluation import Evaluation
from renormlite.runtime_checks.per_op.matching import Tensors

STEPS = Quantization(np.array([0.1]), np.array([0]), np.dtype(np.int8))


def file_of(*ops: GraphOp, **constants: list[int]) -> ArtifactGraph:
    """Return a file whose values are three integers in steps of 0.1, but for its input x."""
    keys = {key for op in ops for key in op.outputs}
    tensors = {k: GraphTensor(k, k, (1, 3), np.dtype(np.int8), STEPS) for k in keys}
    tensors["x"] = GraphTensor("x", "x", (1, 3), np.dtype(np.float32))
    for key, data in constants.items():
        array = np.array(data, np.int8)
        tensors[key] = GraphTensor(key, key, array.shape, array.dtype, STEPS, array)
    return ArtifactGraph(tensors, ("x",), (ops[-1].outputs[0],), lambda: ops)


def test_a_tensor_with_samples_that_saturate_comes_after_one_of_another_node():
    """3 q - 2 is q = 1 in one sample. The other saturates, so any number may be its."""
    graph = file_of(
        GraphOp(0, "QUANTIZE", "", ("x",), ("q",)),
        GraphOp(1, "MUL", "", ("q", "three"), ("product",)),
        GraphOp(2, "ADD", "", ("product", "two"), ("sum",)),
        three=[30, 30, 30],
        two=[-20, -20, -20],
    )
    shown = {
        "q": np.array([[[60] * 3], [[10] * 3]], np.int8),
        "product": np.array([[[127] * 3], [[30] * 3]], np.int8),  # 6 times 3 is beyond 12.7
        "sum": np.array([[[107] * 3], [[10] * 3]], np.int8),
    }
    tensors = Tensors(graph, shown, 2)
    tensors.sources = frozenset({"q"})
    same = Node("same", "identity", "same", ("q",), (None, 3), {}, {})
    value = np.array([[6.0] * 3, [1.0] * 3])
    found = tensors.find(same, value, np.zeros_like(value), {"q"})
    assert [key for key, _ in found] == ["q", "sum"]


def test_tensors_with_equal_numbers_are_all_read():
    """A file may compute one value twice; the following op reads either."""
    graph = file_of(
        GraphOp(0, "QUANTIZE", "", ("x",), ("q",)),
        GraphOp(1, "RELU", "", ("q",), ("first",)),
        GraphOp(2, "MINIMUM", "", ("first", "first"), ("second",)),
        GraphOp(3, "MUL", "", ("second", "half"), ("product",)),
        half=[5, 5, 5],
    )
    x = np.array([[-1.0, 2.0, 4.0]], np.float32)
    positive = np.array([[[0, 20, 40]]], np.int8)
    shown = {
        "q": np.array([[[-10, 20, 40]]], np.int8),
        "first": positive,
        "second": positive,
        "product": np.array([[[0, 10, 20]]], np.int8),
    }
    half = {"scale": np.full(3, 0.5), "shift": np.zeros(3)}
    nodes = (
        Node("relu", "relu", "relu", ("x",), (None, 3), {}, {}),
        Node("halved", "affine", "halved", ("relu",), (None, 3), {"axis": 1}, half),
    )
    network = Network({"x": (None, 3)}, {"halved": "halved"}, nodes)
    rounded = RoundedWeights.of(network, match_weights(network, graph), graph)
    true = {"x": x, "relu": np.maximum(x, 0), "halved": np.maximum(x, 0) / 2}
    found = Evaluation(network, Tensors(graph, shown, 1), {"x": x}, rounded, true, {})
    assert found.read_by(nodes[1]) == {"first", "second"}
    assert found.tensors.sources >= {"first", "second"}
