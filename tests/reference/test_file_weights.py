"""Protects the search for a network's weights among the constants of a file."""

from __future__ import annotations

import numpy as np
from renormlite.artifacts.graphs.base import ArtifactGraph, GraphTensor, Quantization
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


def test_zeros_are_not_another_weight():
    """Steps of 1 round every number of the bias to 0; still an altered bias is no zero."""
    altered = np.rint(BIAS / 1e-3).astype(np.int32)
    altered[1] += 5
    found = match(file_with(state=(np.zeros(3, np.int8), 1.0), bias=(altered, 1e-3)))
    assert (found.state, found.tensor.key, found.at) == ("altered", "bias", (1,))
