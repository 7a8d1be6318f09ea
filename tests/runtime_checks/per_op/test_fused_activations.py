"""Protects that an activation which a file fuses into a linear operator is one of the network."""

from __future__ import annotations

import numpy as np
import pytest
from renormlite.artifacts.graphs.base import ArtifactGraph, GraphOp, GraphTensor, Quantization
from renormlite.artifacts.network import Network, Node
from renormlite.reference.file_weights import match_weights
from renormlite.runtime_checks.per_op.fused_activations import fused_activation_faults

KERNEL = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def found(
    after: list[tuple[str, dict]], declared: int, steps: Quantization | None = None
) -> list[tuple[str, str]]:
    """Return layer and kind of the faults of a dense layer and what follows it in the network."""
    nodes = [Node("first", "dense", "first", ("x",), (None, 3), {}, {"kernel": KERNEL})]
    for place, (op, arrays) in enumerate(after):
        name, before = f"after{place}", nodes[-1].name
        nodes.append(Node(name, op, name, (before,), (None, 3), {}, arrays))
    network = Network({"x": (None, 4)}, {"y": nodes[-1].name}, tuple(nodes))
    tensors = {
        "x": GraphTensor("x", "x", (1, 4), np.dtype(np.float32), None),
        "kernel": GraphTensor("kernel", "kernel", (3, 4), KERNEL.dtype, None, KERNEL.T.copy()),
        "y": GraphTensor("y", "y", (1, 3), np.dtype(np.float32), steps),
    }
    attributes = {"fusedActivationFunction": declared}
    op = GraphOp(0, "FULLY_CONNECTED", "", ("x", "kernel"), ("y",), attributes)
    graph = ArtifactGraph(tensors, ("x",), ("y",), lambda: (op,))
    faults = fused_activation_faults(match_weights(network, graph), graph, network)
    return [(fault.layer, fault.kind) for fault in faults]


SHIFT = {"constant": np.full(3, 0.5, np.float32)}
OTHER = {"kernel": np.ones((3, 3), np.float32)}


@pytest.mark.parametrize("declared", [1, 2, 3])
@pytest.mark.parametrize(
    "after",
    [
        [],
        [("sigmoid", {})],
        [("add", SHIFT), ("softmax", {})],
        [("dense", OTHER), ("relu", {})],  # of another layer
        [("square", {}), ("relu", {})],  # a square of clipped numbers is another one
    ],
)
def test_a_clip_that_no_layer_asks_for_is_a_fault(after, declared):
    assert found(after, declared) == [("first", "activation")]


@pytest.mark.parametrize(
    ("after", "declared"),
    [
        ([], 0),
        ([("relu", {})], 1),
        ([("add", SHIFT), ("relu", {})], 1),
        ([("reshape", {}), ("max_pool", {}), ("relu", {})], 1),
        ([("hard_sigmoid", {})], 3),
        ([("clip", {})], 2),
        ([("maximum", SHIFT)], 1),
        ([("selu", {})], 1),
    ],
)
def test_a_clip_that_a_layer_asks_for_is_right(after, declared):
    assert found(after, declared) == []


@pytest.mark.parametrize(
    ("declared", "scale", "point", "effect"),
    [
        (1, 0.1, -128, False),  # from 0 to 25.5
        (1, 0.1, -127, True),  # from -0.1
        (3, 6 / 255, -128, False),
        (3, 0.1, -128, True),  # up to 25.5
        (2, 2 / 255, 0, False),
        (2, 3 / 255, 0, True),
    ],
)
def test_a_clip_to_the_range_of_the_integers_has_no_effect(declared, scale, point, effect):
    steps = Quantization(np.array([scale]), np.array([point]), np.dtype(np.int8))
    assert found([], declared, steps) == ([("first", "activation")] if effect else [])
