"""Writes the folded network as operations and weights, for checks that have no Keras.

A Keras call whose layer has an operator becomes one node, or two where the layer has an activation
of its own; any other call becomes the primitives that its trace shows (`expansion`). The format is
`artifacts.network`'s; this file only fills it. What cannot be traced, such as a random number,
becomes an "opaque" node: the export goes through, and the checks name the layer as not evaluated.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Sequence
from dataclasses import replace

import keras
import numpy as np

from ...artifacts.archive import save_arrays
from ...artifacts.network import Network, Node, network_arrays
from ..fold.graph import Call, Source
from ..fold.keras_graph import read_graph
from ..fold.norms import is_norm
from .expansion import expand, without_unread
from .linear import Op
from .operators import ops_of
from .tracing import NotTraceableError


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
    return Network(inputs, outputs, tuple(without_unread(writer.nodes, outputs.values())))


class _Writer:
    """Collects nodes and gives each value its name."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.names: dict[int, str] = {}
        self._counts: dict[str, int] = {}
        self._masked: set[int] = set()
        self._arrays: dict[tuple[tuple[int, ...], str, bytes], np.ndarray] = {}

    def write(self, call: Call) -> None:
        """Append the nodes of one call."""
        operation = call.op.operation
        inputs = [self.names[id(value)] for value in call.inputs]
        masked = self._takes_mask(call)
        ops = ops_of(operation, call) if len(call.outputs) == 1 and not masked else None
        if ops is not None:
            self._append_chain(call, ops, inputs)
            return
        try:
            if masked:
                raise NotTraceableError("it reads a mask")
            self._append_primitives(call, inputs)
        except NotTraceableError as error:
            for position, value in enumerate(call.outputs):
                name = self._unique(_output_name(call, position))
                shape, why = tuple(value.shape), {"why": str(error)}
                self._add(Node(name, "opaque", call.name, tuple(inputs), shape, why, {}))
                self.names[id(value)] = name

    def _append_chain(self, call: Call, ops: Sequence[Op], inputs: Sequence[str]) -> None:
        """Append operators one behind the other; the last one's value is the call's."""
        read = tuple(inputs)
        for op in ops:
            last = op is ops[-1]
            name = self._unique(call.name if last else f"{call.name}/{op.op}")
            # The parts of a separable convolution differ in channels: only the last has the shape.
            shape = tuple(call.output.shape) if last else ()
            self._add(Node(name, op.op, call.name, read, shape, op.attributes, op.weights))
            read = (name,)
        self.names[id(call.output)] = read[0]

    def _append_primitives(self, call: Call, inputs: Sequence[str]) -> None:
        """Append the primitives of a call, or raise `NotTraceableError`."""
        if not inputs:
            raise NotTraceableError("it reads nothing")
        nodes, outputs = expand(call, inputs)
        own = {node.name for node in nodes}
        named: dict[str, str] = {}
        for position, (value, output) in enumerate(zip(call.outputs, outputs, strict=True)):
            if output in own and output not in named:
                named[output] = self._unique(_output_name(call, position))
            self.names[id(value)] = named.get(output, output)
        for node in nodes:
            name = named.get(node.name) or self._unique(f"{call.name}{node.name}")
            named[node.name] = name
            self._add(replace(node, name=name, inputs=tuple(named.get(x, x) for x in node.inputs)))

    def _takes_mask(self, call: Call) -> bool:
        """Return whether a call reads a mask, which no node of the network carries."""
        operation = call.op.operation
        masked = any(id(value) in self._masked for value in call.inputs)
        makes = getattr(operation, "mask_zero", False) or isinstance(
            operation, keras.layers.Masking
        )
        if makes or (masked and getattr(operation, "supports_masking", False)):
            self._masked.update(id(value) for value in call.outputs)
        if not masked or is_norm(operation) or not isinstance(operation, keras.Layer):
            return False
        return "mask" in inspect.signature(operation.call).parameters

    def _add(self, node: Node) -> None:
        """Append a node; equal arrays become one object, which is written once."""
        weights, constants = (
            {role: self._shared(array) for role, array in arrays.items()}
            for arrays in (node.weights, node.constants)
        )
        self.nodes.append(replace(node, weights=weights, constants=constants))

    def _shared(self, array: np.ndarray) -> np.ndarray:
        digest = hashlib.blake2b(array.tobytes(), digest_size=16).digest()
        return self._arrays.setdefault((array.shape, array.dtype.str, digest), array)

    def _unique(self, base: str) -> str:
        """Return a name that no other value has."""
        count = self._counts.get(base, 0) + 1
        self._counts[base] = count
        name = base if count == 1 else f"{base}#{count}"
        return name if count == 1 or name not in self._counts else self._unique(base)


def _output_name(call: Call, position: int) -> str:
    """Return the name of a call's output."""
    return f"{call.name}/{position}" if len(call.outputs) > 1 else call.name
