"""A tanh of small numbers is nearly the identity: its tensor is not taken for that before it."""

from __future__ import annotations

import numpy as np
from renormlite.artifacts.graphs.base import ArtifactGraph, GraphOp, GraphTensor, Quantization
from renormlite.artifacts.network import Network, Node
from renormlite.reference.file_weights import match_weights
from renormlite.runtime_checks.per_op.walk import walk

SIZE, STEP = 8, np.float32(1 / 127)
PARTS = {"first": (0, 2), "last": (2, 4)}
FLOATS, BYTES = np.dtype(np.float32), np.dtype(np.int8)


def network() -> Network:
    """Y = the product of two parts of tanh(W x), W the identity."""
    shape, kernel = (None, SIZE), 127 * STEP * np.eye(SIZE, dtype=np.float32)
    nodes = (
        Node("dense", "dense", "layer", ("x",), shape, {}, {"kernel": kernel}),
        Node("act", "tanh", "layer", ("dense",), shape, {}, {}),
        *(
            Node(name, "slice", name, ("act",), (None, 2), {"slices": [[*ends, 1]]}, {})
            for name, ends in PARTS.items()
        ),
        Node("y", "multiply", "product", tuple(PARTS), (None, 2), {}, {}),
    )
    return Network({"x": shape}, {"y": "y"}, nodes)


def file() -> ArtifactGraph:
    """Integer weights and float activations, which the op quantizes at run time."""
    steps = Quantization(np.array([STEP]), np.array([0]), BYTES)
    kernel = (127 * np.eye(SIZE)).astype(np.int8)
    tensors = (
        *(GraphTensor(k, k, (1, SIZE), FLOATS, None, None) for k in ("x", "sum", "tanh")),
        *(GraphTensor(k, k, (1, 2), FLOATS, None, None) for k in (*PARTS, "y")),
        GraphTensor("kernel", "kernel", (SIZE, SIZE), BYTES, steps, kernel),
    )
    ops = (
        GraphOp(0, "FULLY_CONNECTED", "", ("x", "kernel"), ("sum",)),
        GraphOp(1, "TANH", "", ("sum",), ("tanh",)),
        GraphOp(2, "STRIDED_SLICE", "", ("tanh",), ("first",)),
        GraphOp(3, "STRIDED_SLICE", "", ("tanh",), ("last",)),
        GraphOp(4, "MUL", "", ("first", "last"), ("y",)),
    )
    return ArtifactGraph({t.key: t for t in tensors}, ("x",), ("y",), lambda: ops)


def walked(slope: float):
    """Return the walk where the op's own rounding cancels what the tanh takes away."""
    rng = np.random.default_rng(0)
    x = (rng.choice([-1, 1], (4, SIZE)) * rng.uniform(0.016, 0.018, (4, SIZE))).astype(np.float32)
    total = x * np.float32(1 + 0.017**2 / 3)  # within a step of 8 bits
    act = np.tanh(np.float32(slope) * total)
    parts = {name: act[:, slice(*ends)] for name, ends in PARTS.items()}
    shown = {"x": x, "sum": total, "tanh": act, **parts, "y": parts["first"] * parts["last"]}
    weights = match_weights(network(), file())
    shown = {key: value[:, None] for key, value in shown.items()}
    return walk(network(), file(), shown, {"x": x.astype(np.float64)}, weights)


def test_the_layer_before_a_tanh_of_small_numbers():
    assert np.abs(np.tanh(0.017) - 0.017) > 16 * 2.0**-24  # more than the bound of a tanh
    found = walked(slope=1.0)
    assert not found.culprits
    assert {check.node for check in found.checks} == {"dense", "act", *PARTS, "y"}


def test_a_wrong_tanh_is_still_found():
    (culprit, *_) = walked(slope=1.1).culprits
    assert culprit.layer == "layer"
