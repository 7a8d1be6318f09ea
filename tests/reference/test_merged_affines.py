"""Protects that affines are merged into neighbours only where a file shows it."""

from __future__ import annotations

import numpy as np
import pytest
from renormlite.artifacts.graphs.base import ArtifactGraph, GraphOp, GraphTensor, Quantization
from renormlite.artifacts.network import Network, Node
from renormlite.reference.merged_affines import with_merged_affines
from renormlite.reference.network import evaluate_network

FLOATS, BYTES = np.dtype(np.float32), np.dtype(np.int8)


def graph(**constants: tuple[np.ndarray, Quantization | None]) -> ArtifactGraph:
    """A file of one ADD for each constant."""
    steps = dict.fromkeys("xy") | {key: q for key, (_, q) in constants.items()}
    tensors = {k: GraphTensor(k, k, (1, 2, 3), FLOATS, steps[k]) for k in "xy"}
    for key, (data, quantization) in constants.items():
        tensors[key] = GraphTensor(key, key, data.shape, data.dtype, quantization, data)
    ops = tuple(
        GraphOp(place, "ADD", "", ("x", key), ("y",)) for place, key in enumerate(constants)
    )
    return ArtifactGraph(tensors, ("x",), ("y",), lambda: ops)


def sums(first: object, second: object, dense: bool = False) -> Network:
    """A sum with a constant, or a dense layer with a bias, and a sum with another constant."""
    first, second = np.asarray(first, np.float32), np.asarray(second, np.float32)
    kernel = np.eye(3, dtype=np.float32)
    before = (
        Node("a", "dense", "a", ("x",), (None, 2, 3), {}, {"kernel": kernel, "bias": first})
        if dense
        else Node("a", "add", "a", ("x",), (None, 2, 3), {}, {"constant": first})
    )
    after = Node("b", "add", "b", ("a",), (None, 2, 3), {}, {}, {"constant": second})
    return Network({"x": (None, 2, 3)}, {"b": "b"}, (before, after))


def test_two_constants_of_which_a_file_has_the_sum_are_one():
    found = with_merged_affines(sums(1, 1e-6), graph(c=(np.float32(1 + 1e-6), None)))
    assert [node.op for node in found.nodes] == ["identity", "add"]
    assert found.nodes[1].weights["constant"] == np.float32(1 + 1e-6)


def test_two_constants_that_a_file_has_stay_apart():
    network = sums(1, 2)
    file = graph(c=(np.float32(1), None), d=(np.float32(2), None), e=(np.float32(3), None))
    assert with_merged_affines(network, file) is network


def test_a_constant_in_wide_steps_is_no_sum_with_a_bias():
    # Zeros in steps of 4 are within half a step of the bias.
    network = sums([0.5, 1, 1.5], np.zeros((2, 3)), dense=True)
    wide = Quantization(np.array([4.0]), np.array([0]), BYTES)
    file = graph(c=(np.zeros((2, 3), np.int8), wide))
    assert with_merged_affines(network, file) is network


def test_a_constant_may_be_a_sum_with_a_bias():
    network = sums([0.5, 1, 1.5], np.arange(6).reshape(2, 3), dense=True)
    total = (np.arange(6).reshape(2, 3) + np.array([0.5, 1, 1.5])).astype(np.float32)
    found = with_merged_affines(network, graph(c=(total, None)))
    assert "bias" not in found.nodes[0].weights
    np.testing.assert_array_equal(found.nodes[1].weights["constant"], total)


def test_a_layer_behind_a_reshape_that_is_an_output_keeps_its_shape():
    scale, kernel = np.array([2, 3, 5], np.float32), np.arange(6, dtype=np.float32).reshape(3, 2)
    nodes = (
        Node("a", "multiply", "a", ("x",), (None, 3), {}, {}, {"constant": scale}),
        Node("r", "reshape", "r", ("a",), (None, 1, 3), {"target_shape": [1, 3]}, {}),
        Node("d", "dense", "d", ("r",), (None, 1, 2), {}, {"kernel": kernel}),
    )
    network = Network({"x": (None, 3)}, {"r": "r", "d": "d"}, nodes)
    found = with_merged_affines(network, graph(k=(scale[:, None] * kernel, None)))
    x = np.array([[1, -2, 4], [0, 3, 1]], np.float32)
    got = evaluate_network(found, {"x": x})
    np.testing.assert_array_equal(found.nodes[-1].weights["kernel"], scale[:, None] * kernel)
    np.testing.assert_array_equal(got["r"], (x * scale)[:, None])
    np.testing.assert_array_equal(got["d"], (x * scale @ kernel)[:, None])


@pytest.mark.parametrize("shared", [False, True])
def test_a_bias_moves_through_a_reshape_to_all_that_read_it(shared):
    """A converter merges equal layers, and adds no bias in between."""
    rng = np.random.default_rng(0)
    before, kernel, bias = rng.normal(size=(3, 2)), rng.normal(size=(2, 2)), rng.normal(size=2)
    weights = {"kernel": kernel.astype(np.float32), "bias": np.ones(2, np.float32)}
    nodes = [Node("a", "dense", "a", ("x",), (None, 2, 2, 2), {}, {"kernel": before, "bias": bias})]
    for name in ("b", "c")[: 1 + shared]:
        rows = {"target_shape": [4, 2]}
        nodes.append(Node(f"{name}r", "reshape", name, ("a",), (None, 4, 2), rows, {}))
        nodes.append(Node(name, "dense", name, (f"{name}r",), (None, 4, 2), {}, weights))
    outputs = {node.name: node.name for node in nodes if node.name in "bc"}
    network = Network({"x": (None, 2, 2, 3)}, outputs, tuple(nodes))
    moved = (bias @ kernel.astype(np.float32) + 1).astype(np.float32)
    found = with_merged_affines(network, graph(k=(weights["kernel"], None), b=(moved, None)))
    linear = [node for node in found.nodes if node.op == "dense"]
    assert ["bias" in node.weights for node in linear] == [False, True, True][: 2 + shared]
    for node in linear[1:]:
        np.testing.assert_array_equal(node.weights["bias"], moved)
    x = {"x": rng.normal(size=(5, 2, 2, 3))}
    expected, given = evaluate_network(network, x), evaluate_network(found, x)
    for name in outputs:
        np.testing.assert_allclose(given[name], expected[name], atol=1e-6)


def test_the_table_of_a_lookup_is_not_the_kernel_of_its_distances():
    """Vector quantization: the codebook is in the file as it is, and times 2 for the distances."""
    book = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    two = np.float32(2)
    network = Network(
        {"x": (None, 4)},
        {"code": "code", "product": "doubled"},
        (
            Node("product", "dense", "vq", ("x",), (None, 5), {}, {"kernel": book.T.copy()}),
            Node("doubled", "multiply", "vq", ("product",), (None, 5), {}, {}, {"constant": two}),
            Node("index", "argmin", "vq", ("doubled",), (None,), {"axis": 1}, {}),
            Node("code", "gather", "vq", ("index",), (None, 4), {}, {"kernel": book}),
        ),
    )
    arrays = {"table": book, "kernel": 2 * book}
    tensors = {
        **{k: GraphTensor(k, k, (1, 4), FLOATS, None) for k in ("x", "sums", "least", "code")},
        **{k: GraphTensor(k, k, a.shape, FLOATS, None, a) for k, a in arrays.items()},
    }
    ops = (
        GraphOp(0, "FULLY_CONNECTED", "", ("x", "kernel"), ("sums",)),
        GraphOp(1, "ARG_MIN", "", ("sums",), ("least",)),
        GraphOp(2, "GATHER", "", ("table", "least"), ("code",)),
    )
    file = ArtifactGraph(tensors, ("x",), ("code", "sums"), lambda: ops)
    found = {node.name: node for node in with_merged_affines(network, file).nodes}
    assert found["doubled"].op == "identity"
    assert np.array_equal(found["product"].weights["kernel"], 2 * book.T)
    assert np.array_equal(found["code"].weights["kernel"], book)


def test_an_affine_that_several_layers_repeat_is_merged_once():
    """Sort and argsort both negate the scores; a converter negates the kernel."""
    rng = np.random.default_rng(0)
    kernel, bias = (rng.normal(size=s).astype(np.float32) for s in ((3, 4), (4,)))
    nodes = (
        Node("d", "dense", "d", ("x",), (None, 4), {}, {"kernel": kernel, "bias": bias}),
        Node("n", "negative", "sort", ("d",), (None, 4), {}, {}),
        Node("m", "negative", "argsort", ("d",), (None, 4), {}, {}),
        Node("h", "multiply", "h", ("d",), (None, 4), {}, {}, {"constant": np.float32(-1)}),
        Node("a", "relu", "a", ("n",), (None, 4), {}, {}),
        Node("b", "tanh", "b", ("m",), (None, 4), {}, {}),
    )
    network = Network({"x": (None, 3)}, {"a": "a", "b": "b"}, (*nodes[:3], *nodes[4:]))
    found = with_merged_affines(network, graph(k=(-kernel, None), b=(-bias, None)))
    assert [node.op for node in found.nodes] == ["dense", "identity", "identity", "relu", "tanh"]
    np.testing.assert_array_equal(found.nodes[0].weights["kernel"], -kernel)
    x = {"x": rng.normal(size=(5, 3))}
    expected, given = evaluate_network(network, x), evaluate_network(found, x)
    for name in "ab":
        np.testing.assert_allclose(given[name], expected[name], atol=1e-6)
    other = Network({"x": (None, 3)}, {"a": "a", "b": "b", "h": "h"}, nodes)
    assert with_merged_affines(other, graph(k=(-kernel, None), b=(-bias, None))) is other
    assert with_merged_affines(network, graph(k=(kernel, None), b=(bias, None))) is network
