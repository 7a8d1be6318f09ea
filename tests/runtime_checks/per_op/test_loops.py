"""Values of earlier steps are not taken for what a loop returns."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from renormlite.artifacts.network import Network, Node
from renormlite.runtime_checks.per_op.accounting import _in_loops
from renormlite.runtime_checks.per_op.loops import inside_loops


def test_a_loop_returns_the_last_state_and_the_sequence():
    """h1 = tanh(W x1 + b), h2 = tanh(W x2 + U h1 + b), and both in a row."""
    kernel = {"kernel": np.ones((2, 2), np.float32)}

    def node(name: str, op: str, *inputs: str, **weights: np.ndarray) -> Node:
        shape = (None, 1, 2) if op == "reshape" else (None, 2)
        return Node(name, op, "rnn", inputs, shape, {}, weights)

    nodes = (
        node("x1", "slice", "x"),
        node("x2", "slice", "x"),
        node("w1", "dense", "x1", **kernel),
        node("h1", "tanh", "w1"),
        node("w2", "dense", "x2", **kernel),
        node("u2", "dense", "h1", **kernel),
        node("sum", "add", "w2", "u2"),
        node("h2", "tanh", "sum"),
        node("row1", "reshape", "h1"),
        node("row2", "reshape", "h2"),
        node("all", "concatenate", "row1", "row2"),
    )
    other = Node("y", "dense", "head", ("all",), (None, 2, 2), {}, kernel)
    network = Network(("x",), {"y": "y"}, (*nodes, other))
    assert inside_loops(network) == {"x1", "x2", "w1", "h1", "w2", "u2", "sum", "row1"}


def test_a_recurrent_layer_of_one_step_may_be_in_a_loop_and_a_dense_layer_may_not():
    def node(name: str, op: str, layer: str) -> Node:
        return Node(name, op, layer, ("x",), (None, 2), {}, {})

    lstm = [node("d", "dense", "lstm"), *(node(f"g{i}", "sigmoid", "lstm") for i in range(3))]
    dense = [node("y", "dense", "head"), node("z", "tanh", "head")]
    evaluation = SimpleNamespace(
        network=Network({"x": (None, 2)}, {"z": "z"}, (*lstm, *dense)),
        tensors=SimpleNamespace(graph=SimpleNamespace(ops=[SimpleNamespace(kind="WHILE")])),
        mapped={},
    )
    assert list(_in_loops(evaluation)) == ["lstm"]
    evaluation.mapped = {"d": "key"}  # the file has a tensor with its sums
    assert not _in_loops(evaluation)
