"""Writes the folded network as operations and weights, for checks that have no Keras.

Each Keras call becomes one node, or two where the layer has an activation of its own. The format is
`artifacts.network`'s; this file only fills it. What only Keras can compute becomes an
"opaque" node: the export goes through, and the checks report that op as not checkable by itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import keras

from ...artifacts.archive import save_arrays
from ...artifacts.network import Network, Node, network_arrays
from ..fold.graph import Call, Source, Value
from ..fold.keras_graph import read_graph
from .linear import Op
from .operators import ops_of


def write_network(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> Network:
    """Write `network.npz`.

    Args:
        model: The folded model.
        path: Where to write; the file appears whole or not at all.
        inputs: Names of the trained model's inputs; by default those of ``model``.
        outputs: Names of the trained model's outputs; folding may have replaced the layers that
            gave them.

    Returns:
        What was written.
    """
    network = build_network(model)
    network = network.named(inputs or list(network.inputs), outputs or list(network.outputs))
    save_arrays(path, network_arrays(network))
    return network


def build_network(model: keras.Model) -> Network:
    """Return a Keras model as a `Network`.

    Args:
        model: Any model that `fold` reads.

    Returns:
        The network; its weights have the model's own types.
    """
    graph = read_graph(model)
    writer = _Writer()
    calls = graph.calls()
    inputs = {}
    for value in graph.inputs:
        name = value.producer.name
        writer.names[id(value)] = name
        inputs[name] = tuple(value.shape)
    for call in calls:
        if not isinstance(call.op, Source):
            writer.write(call)
    outputs: dict[str, str] = {}
    for layer, value in zip(graph.output_names, graph.outputs, strict=True):
        name, number = layer, 1
        while name in outputs:  # a value that is returned twice
            number += 1
            name = f"{layer}#{number}"
        outputs[name] = writer.names[id(value)]
    return Network(inputs, outputs, tuple(writer.nodes))


class _Writer:
    """Collects nodes and gives each value its name."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.names: dict[int, str] = {}
        self._taken: set[str] = set()

    def write(self, call: Call) -> None:
        """Append the nodes of one call."""
        operation = call.op.operation
        ops = ops_of(operation, call) if len(call.outputs) == 1 else None
        inputs = tuple(self.names[id(value)] for value in call.inputs)
        if ops is None:
            for position, value in enumerate(call.outputs):
                suffix = f"/{position}" if len(call.outputs) > 1 else ""
                self._append(call, value, Op("opaque"), inputs, suffix)
            return
        for position, op in enumerate(ops):
            last = position == len(ops) - 1
            suffix = "" if last else f"/{op.op}"
            inputs = (self._append(call, call.output, op, inputs, suffix),)

    def _append(
        self, call: Call, value: Value, op: Op, inputs: tuple[str, ...], suffix: str
    ) -> str:
        """Append one node; its value is the call's own only where no suffix says otherwise."""
        name = base = f"{call.name}{suffix}"
        number = 1
        while name in self._taken:
            number += 1
            name = f"{base}#{number}"
        self._taken.add(name)
        # The parts of a separable convolution differ in channels, so only the last has the shape.
        shape = tuple(value.shape) if not suffix or suffix[1:].isdigit() else ()
        self.nodes.append(Node(name, op.op, call.name, inputs, shape, op.attributes, op.weights))
        self.names[id(value)] = name
        return name
