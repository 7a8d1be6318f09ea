"""Protects the search for a network's weights among the constants of a file."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from renormlite.artifacts.graphs.base import ArtifactGraph, GraphOp, GraphTensor, Quantization
from renormlite.artifacts.network import Network, Node
from renormlite.reference.file_weights import match_weights

BIAS = np.array([-0.25, 0.08, 0.11], np.float32)


def file_with(**constants: tuple[np.ndarray, float]) -> ArtifactGraph:
    """A file with integer constants of some scales, in the given order."""
    tensors = {
        key: GraphTensor(
            key,
            key,
            data.shape,
            data.dtype,
            Quantization(np.array([scale]), np.array([0]), data.dtype),
            data,
        )
        for key, (data, scale) in constants.items()
    }
    return ArtifactGraph(tensors, (), (), lambda: ())


def match(graph: ArtifactGraph):
    node = Node(
        name="dense",
        op="dense",
        layer="dense",
        inputs=("x",),
        weights={"bias": BIAS},
        attributes={},
        shape=(None, 3),
    )
    network = Network(inputs={"x": (None, 3)}, outputs={"y": "dense"}, nodes=(node,))
    (found,) = match_weights(network, graph)
    return found


def test_the_nearest_of_several_constants_is_the_weight():
    """A coarse step admits other numbers, such as the zeros of an initial state."""
    fine = np.rint(BIAS / 1e-3).astype(np.int32)
    coarse = np.array([0, 0, 1], np.int8)
    found = match(file_with(coarse=(coarse, 0.6), bias=(fine, 1e-3)))
    assert (found.state, found.tensor.key) == ("equal", "bias")


def test_steps_far_above_a_weight_say_nothing():
    """The zeros of the constant stand for any small number, and its other number differs."""
    found = match(file_with(other=(np.array([0, 0, 127], np.int8), 20.0)))
    assert found.state == "absent"


def test_zeros_are_not_another_weight():
    """Steps of 1 round every number of the bias to 0; still an altered bias is no zero."""
    altered = np.rint(BIAS / 1e-3).astype(np.int32)
    altered[1] += 5
    found = match(file_with(state=(np.zeros(3, np.int8), 1.0), bias=(altered, 1e-3)))
    assert (found.state, found.tensor.key, found.at) == ("altered", "bias", (1,))


def dense(name: str, before: str, kernel: np.ndarray) -> Node:
    return Node(
        name=name,
        op="dense",
        layer=name,
        inputs=(before,),
        weights={"kernel": kernel},
        attributes={},
        shape=(None, kernel.shape[1]),
    )


def kernels_found(change) -> dict[str, str]:
    """Return the state of three int8 kernels of another converter, of which one is changed."""
    rng = np.random.default_rng(0)
    sizes = (8, 12, 12, 4)
    kernels = [rng.normal(size=pair).astype(np.float32) for pair in itertools.pairwise(sizes)]
    names = ("a", "b", "c")
    befores = ("x", *names)
    nodes = tuple(map(dense, names, befores, kernels))
    network = Network(inputs={"x": (None, 8)}, outputs={"y": "c"}, nodes=nodes)
    filed = {name: kernel.T for name, kernel in zip(names, kernels, strict=True)}
    filed["b"] = change(filed["b"])
    scales = {name: float(np.abs(k).max()) / 127 for name, k in filed.items()}
    graph = file_with(
        **{k: (np.rint(v / scales[k]).astype(np.int8), scales[k]) for k, v in filed.items()}
    )
    return {found.layer: found.state for found in match_weights(network, graph, foreign=True)}


@pytest.mark.parametrize("change", [lambda kernel: kernel + 0.1, np.sign, np.square])
def test_a_kernel_that_is_changed_throughout_is_found_by_elimination(change):
    assert kernels_found(change) == {"a": "equal", "b": "altered", "c": "equal"}


def test_scaled_channels_may_compute_the_same():
    """As by equalization: a relu before and after passes positive factors on."""
    rows, columns = np.exp(np.random.default_rng(1).normal(size=(2, 12)))
    found = kernels_found(lambda kernel: kernel * rows[:, None] * columns)
    assert found == {"a": "equal", "b": "absent", "c": "equal"}


def test_the_table_of_an_embedding_is_no_kernel_of_the_output_layer_that_shares_it():
    """The lookup reads floats, the dense layer integers: the ranges after it are its own."""
    table = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    output = dense("y", "table", table.T.copy())
    embedding = dataclasses.replace(dense("table", "x", table), op="gather")
    network = Network(inputs={"x": (None,)}, outputs={"y": "y"}, nodes=(embedding, output))
    scale = float(np.abs(table).max() / 127)
    graph = file_with(integers=(np.rint(table / scale).astype(np.int8), scale))
    floats = GraphTensor("floats", "floats", table.shape, table.dtype, None, table)
    lookup = GraphOp(0, "GATHER", "lookup", ("floats", "x"), ("found",), {})
    product = GraphOp(1, "FULLY_CONNECTED", "product", ("found", "integers"), ("y",), {})
    graph = dataclasses.replace(
        graph, tensors={"floats": floats, **graph.tensors}, read_ops=lambda: (lookup, product)
    )
    found = {entry.node: entry.tensor.key for entry in match_weights(network, graph)}
    assert found == {"table": "floats", "y": "integers"}


def test_the_table_of_a_lookup_may_be_rounded_in_other_steps_than_the_same_kernel():
    """The codes of a vector quantization, and their products with the vectors."""
    table = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    distances = dense("distances", "x", table.T.copy())
    codes = dataclasses.replace(dense("codes", "distances", table), op="gather")
    network = Network(inputs={"x": (None, 4)}, outputs={"y": "codes"}, nodes=(distances, codes))
    scale = float(np.abs(table).max() / 127)
    kernel = GraphTensor("kernel", "kernel", table.shape, table.dtype, None, table)
    graph = file_with(table=(np.rint(table / scale).astype(np.int8), scale))
    product = GraphOp(0, "FULLY_CONNECTED", "product", ("x", "kernel"), ("index",), {})
    lookup = GraphOp(1, "GATHER", "lookup", ("table", "index"), ("y",), {})
    for kernel_kept in (True, False):  # in floats, or not in the file by itself
        tensors = {**graph.tensors, **({"kernel": kernel} if kernel_kept else {})}
        filed = dataclasses.replace(graph, tensors=tensors, read_ops=lambda: (product, lookup))
        found = {entry.node: entry for entry in match_weights(network, filed)}
        assert (found["codes"].tensor.key, found["codes"].state) == ("table", "equal")
        assert not kernel_kept or found["distances"].tensor.key == "kernel"


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_the_kernel_of_a_dense_layer_is_not_that_of_its_transpose(dtype):
    """Of x W and z Wᵀ, the file has 2 W for the first: no constant is W itself."""
    matrix = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    first, second = dense("first", "x", matrix), dense("second", "first", matrix.T.copy())
    network = Network(inputs={"x": (None, 4)}, outputs={"y": "second"}, nodes=(first, second))
    filed = {"doubled": 2 * matrix.T, "plain": matrix}  # (out, in)
    scales = {name: float(np.abs(k).max()) / 127 for name, k in filed.items()}
    graph = file_with(
        **{k: (np.rint(v / scales[k]).astype(np.int8), scales[k]) for k, v in filed.items()}
    )
    if dtype == np.float32:
        tensors = {k: GraphTensor(k, k, v.shape, v.dtype, None, v) for k, v in filed.items()}
        graph = dataclasses.replace(graph, tensors=tensors)
    ops = (
        GraphOp(0, "FULLY_CONNECTED", "a", ("x", "doubled"), ("h",), {}),
        GraphOp(1, "FULLY_CONNECTED", "b", ("h", "plain"), ("y",), {}),
    )
    graph = dataclasses.replace(graph, read_ops=lambda: ops)
    found = {entry.node: entry for entry in match_weights(network, graph)}
    assert (found["second"].tensor.key, found["second"].state) == ("plain", "equal")
    assert found["first"].state != "equal"


@pytest.mark.parametrize(("factor", "state"), [(16384, "equal"), (8192, "altered")])
def test_a_factor_for_all_channels_may_be_stored_once(factor, state):
    """The opposite numbers of another layer are not an altered form of it."""
    arrays = {"scale": np.full(3, 0.5, np.float32), "shift": np.zeros(3, np.float32)}
    node = Node("half", "affine", "half", ("x",), (None, 3), {"axis": 1}, arrays)
    network = Network(inputs={"x": (None, 3)}, outputs={"y": "half"}, nodes=(node,))
    once = np.array(factor, np.int16)
    graph = file_with(once=(once, 2.0**-15), other=(np.full(3, -16384, np.int16), 2.0**-15))
    states = {match.role: match.state for match in match_weights(network, graph)}
    assert states == {"scale": state, "shift": "equal"}


@pytest.mark.parametrize(("steps", "state"), [(1.05, "altered"), (1.0, "equal")])
def test_a_wrong_scale_of_integers_is_a_factor(steps, state):
    """Of rounded numbers, which no factor explains as exactly as floats."""
    rng = np.random.default_rng(3)
    weight = rng.normal(size=8).astype(np.float32)
    scale = float(np.abs(weight).max()) / 127
    integers = np.rint(weight / scale).astype(np.int8)
    node = Node("dense", "add", "dense", ("x",), (None, 8), {}, {"constant": weight})
    network = Network({"x": (None, 8)}, {"y": "dense"}, (node,))
    (found,) = match_weights(network, file_with(constant=(integers, steps * scale)))
    assert found.state == state
    assert found.remark.startswith("all of it is 1.0") is (steps != 1)
    assert found.remark.endswith("times the expected value") is (steps != 1)


def test_other_numbers_are_no_factor():
    """Nor are a few steps, which many factors explain."""
    weight = np.array([0.5, -1.0, 0.7, 0.2, -0.4, 0.9], np.float32)
    node = Node("dense", "add", "dense", ("x",), (None, 6), {}, {"constant": weight})
    network = Network({"x": (None, 6)}, {"y": "dense"}, (node,))
    for numbers, scale in (([60, -90, 100, 30, -20, 127], 0.008), ([1, -2, 2, 1, -1, 2], 0.55)):
        (found,) = match_weights(network, file_with(c=(np.array(numbers, np.int8), scale)))
        assert found.state != "equal"
        assert not found.remark
