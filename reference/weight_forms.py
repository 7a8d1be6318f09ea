"""The shapes and orders of axes in which files store the weights of a network."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from ..artifacts.network import Network

# Operators between a flattened map and the dense layer that reads it; a file clips where it rounds.
_IN_PLACE = ("clip", "identity", "relu")

Form = tuple[tuple[int, ...], tuple[int, ...]]


def forms(
    op: str, role: str, shape: tuple[int, ...], features: tuple[int, ...] = ()
) -> Iterator[Form]:
    """Yield the shapes and axis orders in which files store a weight.

    Keras stores (*K, in, out) for convolutions, (*K, channel, multiplier) for depthwise ones,
    (*K, out, in) for transposed ones and (in, out) for dense layers. The kernel of an einsum may
    have any order.

    Args:
        op: The node's operation.
        role: Which weight.
        shape: The weight's shape.
        features: Shape of the feature map that a dense layer reads flattened; empty for none.

    Yields:
        A shape with the weight's number of elements, and the order of its axes in a file.
    """
    axes = tuple(range(len(shape)))
    yield shape, axes
    if role != "kernel" or len(shape) < 2:
        return
    spatial, last = axes[:-2], axes[-2:]
    if op == "einsum":
        yield from ((shape, order) for order in itertools.permutations(axes))
        return
    if op == "depthwise_conv":
        yield shape, (*last, *spatial)
        return
    yield shape, (last[1], *spatial, last[0])  # TFLite: out, K, in
    yield shape, (last[1], last[0], *spatial)  # ONNX: out, in, K; in, out, K when transposed
    yield shape, (last[0], *spatial, last[1])  # TFLite, transposed: out, K, in
    if len(spatial) == 3:  # TFLite, in two dimensions: out, H, W, planes side by side
        yield shape, (last[1], *spatial[1:], spatial[0], last[0])
    if op == "dense" and len(features) > 1 and int(np.prod(features)) == shape[0]:
        # Channels first: the rows of a dense layer after a flattened map follow its order.
        view = (*features, shape[1])
        places, channel, out = axes_of(len(features))
        yield view, (channel, *places, out)
        yield view, (out, channel, *places)
        # Conversely, if the network has channels first and the file does not.
        yield view, (*range(1, len(features)), 0, out)
        yield view, (out, *range(1, len(features)), 0)


def axes_of(rank: int) -> tuple[tuple[int, ...], int, int]:
    """Return the axes of positions, channels and outputs for a feature map of ``rank`` axes."""
    return tuple(range(rank - 1)), rank - 1, rank


def in_form(weight: np.ndarray, form: Form) -> np.ndarray:
    """Return a weight with the shape and order of axes of a file."""
    return np.transpose(weight.reshape(form[0]), form[1])


def flattened_maps(network: Network) -> dict[str, tuple[int, ...]]:
    """Return, by node, the shape of the feature map that each dense node reads flattened."""
    nodes = {node.name: node for node in network.nodes}
    shapes: dict[str, Sequence[int | None]] = {**network.inputs}
    shapes.update({node.name: node.shape for node in network.nodes})
    found = {}
    for node in network.nodes:
        name = node.inputs[0]
        while name in nodes and nodes[name].op in _IN_PLACE:
            name = nodes[name].inputs[0]
        if node.op != "dense" or name not in nodes or nodes[name].op not in ("flatten", "reshape"):
            continue
        sizes = shapes[nodes[name].inputs[0]][1:]
        if all(size is not None for size in sizes):
            found[node.name] = tuple(int(size) for size in sizes if size is not None)
    return found
