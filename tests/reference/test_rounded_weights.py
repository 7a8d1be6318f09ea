"""Protects that constants that a file rounded are read from the file."""

from __future__ import annotations

import numpy as np
import pytest
from renormlite.artifacts.graphs.base import ArtifactGraph, GraphOp, GraphTensor, Quantization
from renormlite.artifacts.network import Network, Node
from renormlite.reference.file_weights import match_weights
from renormlite.reference.rounded_weights import RoundedWeights

BELOW, ABOVE = np.float16(0.1213), np.nextafter(np.float16(0.1213), np.float16(1))
TIE = (float(BELOW) + float(ABOVE)) / 2


@pytest.mark.parametrize(("distance", "found"), [(1e-9, True), (1e-4, False)])
def test_a_number_next_to_a_tie_may_be_rounded_to_the_other_side(distance, found):
    """The file's kernel is computed in float32 before it is rounded, the network's in float64."""
    generator = np.random.default_rng(0)
    held = generator.normal(size=(8, 4)).astype(np.float16)
    kernel = held.astype(np.float64)
    held[2, 1], kernel[2, 1] = ABOVE, TIE - distance
    floats = np.dtype(np.float32)
    node = Node("dense", "dense", "dense", ("x",), (4,), {}, {}, constants={"kernel": kernel})
    network = Network({"x": (8,)}, {"y": "dense"}, (node,))
    tensors = {
        "x": GraphTensor("x", "x", (1, 8), floats, None),
        "half": GraphTensor("half", "half", (8, 4), held.dtype, None, held),
        "y": GraphTensor("y", "y", (1, 4), floats, None),
    }
    ops = (GraphOp(0, "MatMul", "", ("x", "half"), ("y",)),)
    graph = ArtifactGraph(tensors, ("x",), ("y",), lambda: ops)
    rounded = RoundedWeights.of(network, (), graph)
    assert ("kernel" in rounded.nodes.get("dense", node).weights) is found


@pytest.mark.parametrize("distance", [0.4, 0.6])
def test_the_mean_of_a_normalization_is_that_of_the_file_if_it_is_rounded(distance):
    integers = np.array([-128, 3, 127], np.int8)
    mean = (integers + np.array([0.0, distance, 0.0])) * 0.1
    node = Node("add", "norm", "add", ("x",), (3,), {}, {}, constants={"constant": mean})
    network = Network({"x": (3,)}, {"y": "add"}, (node,))
    steps = Quantization(np.array([0.1]), np.array([0]), np.dtype(np.int8))
    tensors = {
        "x": GraphTensor("x", "x", (1, 3), np.dtype(np.int8), steps),
        "mean": GraphTensor("mean", "mean", (3,), np.dtype(np.int8), steps, integers),
        "y": GraphTensor("y", "y", (1, 3), np.dtype(np.int8), steps),
    }
    ops = (GraphOp(0, "ADD", "", ("x", "mean"), ("y",)),)
    graph = ArtifactGraph(tensors, ("x",), ("y",), lambda: ops)
    found = RoundedWeights.of(network, (), graph).nodes.get("add", node).arrays["constant"]
    np.testing.assert_allclose(found, integers * 0.1 if distance < 0.5 else mean)


@pytest.mark.parametrize("distance", [0.4, 0.6])
def test_the_matrix_of_an_interpolation_is_that_of_the_file_if_it_is_rounded(distance):
    integers = np.array([[127, 0], [-20, 90], [0, 127]], np.int8)
    matrix = (integers + np.array([[0, 0], [0, distance], [0, 0]])) * 0.01
    constants = {"matrix_1": matrix}
    node = Node("r", "resize", "r", ("x",), (3, 1, 1), {"axes": [1]}, {}, constants=constants)
    network = Network({"x": (2, 1, 1)}, {"y": "r"}, (node,))
    steps = Quantization(np.array([0.01]), np.array([0]), np.dtype(np.int8))
    tensors = {
        "x": GraphTensor("x", "x", (1, 1, 1, 2), np.dtype(np.int8), steps),
        "m": GraphTensor("m", "m", (3, 2), np.dtype(np.int8), steps, integers),
        "y": GraphTensor("y", "y", (1, 1, 1, 3), np.dtype(np.int8), steps),
    }
    ops = (GraphOp(0, "FULLY_CONNECTED", "", ("x", "m"), ("y",)),)
    graph = ArtifactGraph(tensors, ("x",), ("y",), lambda: ops)
    found = RoundedWeights.of(network, (), graph).nodes.get("r", node).arrays["matrix_1"]
    np.testing.assert_allclose(found, integers * 0.01 if distance < 0.5 else matrix)


@pytest.mark.parametrize(
    ("slope", "size", "complete"), [(0.3, 1, True), (0.3, 2, False), (1e9, 1, False)]
)
def test_a_number_that_a_file_has_as_an_attribute_is_no_missing_weight(slope, size, complete):
    """A product with 0.3 and a maximum become a leaky relu; a mask of 1e9 may become 65504."""
    weights = {"constant": np.full(size, slope, np.float32)}
    product = Node("m", "multiply", "m", ("x",), (None, 2), {}, weights)
    greater = Node("y", "maximum", "y", ("x", "m"), (None, 2), {}, {})
    network = Network({"x": (None, 2)}, {"y": "y"}, (product, greater))
    floats = np.dtype(np.float32)
    tensors = {key: GraphTensor(key, key, (1, 2), floats, None) for key in "xy"}
    ops = (GraphOp(0, "LeakyRelu", "", ("x",), ("y",), {"alpha": slope}),)
    graph = ArtifactGraph(tensors, ("x",), ("y",), lambda: ops)
    found = RoundedWeights.of(network, match_weights(network, graph), graph)
    assert found.complete is complete


@pytest.mark.parametrize(("op", "hybrid"), [("gather", set()), ("dense", {"node"})])
def test_indices_are_not_quantized_at_run_time(op, hybrid):
    """A lookup in a table of integers reads whole numbers, which must not count as rounded."""
    integers = np.random.default_rng(0).integers(-127, 128, (200, 3)).astype(np.int8)
    steps = Quantization(np.array([0.1]), np.array([0]), np.dtype(np.int8))
    weights = {"kernel": (integers * 0.1).astype(np.float32)}
    node = Node("node", op, "node", ("x",), (None, 3), {}, weights)
    network = Network({"x": (None, 200)}, {"y": "node"}, (node,))
    tensors = {
        "x": GraphTensor("x", "x", (1, 200), np.dtype(np.float32), None),
        "kernel": GraphTensor("kernel", "kernel", (200, 3), np.dtype(np.int8), steps, integers),
        "y": GraphTensor("y", "y", (1, 3), np.dtype(np.float32), None),
    }
    ops = (GraphOp(0, "MatMulInteger", "", ("x", "kernel"), ("y",)),)
    graph = ArtifactGraph(tensors, ("x",), ("y",), lambda: ops)
    rounded = RoundedWeights.of(network, match_weights(network, graph), graph)
    assert set(rounded.nodes) == {"node"}
    assert set(rounded.hybrid) == hybrid
