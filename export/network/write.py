"""Writes the folded network as operators and weights, for checks without Keras.

A call of a layer with an operator is one node, or two if the layer has an activation. Any other
call is expanded into primitives from its trace (`expansion`). The format is defined in
`artifacts.network`. A call that cannot be traced, such as a random number, becomes an "opaque"
node, which the checks report as not evaluated.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from ...artifacts.archive import save_arrays
from ...artifacts.network import Network, Node, network_arrays
from ..fold.graph import Call, Source
from ..fold.keras_graph import read_graph
from ..fold.norms import is_norm
from .expansion import Expansion, Mask, expand, without_unread
from .linear import Op
from .operators import ops_of
from .tracing import NotTraceableError


def write_network(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    paths: Mapping[str, str] | None = None,
) -> Network:
    """Write `network.npz`.

    Args:
        model: The folded model.
        path: The file to write, atomically.
        inputs: Names of the trained model's inputs; by default those of ``model``.
        outputs: Names of the trained model's outputs; by default those of ``model``, which may
            differ after the fold.
        paths: Layer to its path in the trained model.

    Returns:
        The network.
    """
    network = build_network(model)
    network = network.named(inputs or list(network.inputs), outputs or list(network.outputs))
    used = {node.layer for node in network.nodes}
    nested = {name: p for name, p in (paths or {}).items() if name in used and name != p}
    network = replace(network, paths=nested)
    save_arrays(path, network_arrays(network))
    return network


def build_network(model: keras.Model) -> Network:
    """Convert a Keras model to a `Network`.

    Args:
        model: Any model that `fold` reads.

    Returns:
        The network; its weights have the dtypes of the model.
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
    """Collects nodes and names their values."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.names: dict[int, str] = {}
        self._counts: dict[str, int] = {}
        self._masks: dict[int, Mask] = {}
        self._lost: set[int] = set()  # Values whose mask could not be traced.
        self._arrays: dict[tuple[tuple[int, ...], str, bytes], np.ndarray] = {}

    def write(self, call: Call) -> None:
        """Append the nodes of one call."""
        operation = call.op.operation
        inputs = [self.names[id(value)] for value in call.inputs]
        masks = [self._masks.get(id(value)) for value in call.inputs]
        lost = any(id(value) in self._lost for value in call.inputs)
        reads = (lost or any(masks)) and _reads_mask(operation)
        ops = ops_of(operation, call) if len(call.outputs) == 1 and not reads else None
        masked = lost or any(masks) or _makes_mask(operation)
        if ops is not None:
            self._append_chain(call, ops, inputs)
            if not masked:
                return
        try:
            if lost:
                raise NotTraceableError("the mask that it reads could not be traced")
            if not inputs:
                raise NotTraceableError("it reads nothing")
            found = expand(call, inputs, masks)
        except NotTraceableError as error:
            if masked:
                self._lost.update(id(value) for value in call.outputs)
            if ops is None:
                self._append_opaque(call, inputs, str(error))
            return
        self._append_primitives(call, found if ops is None else found.of_masks())

    def _append_opaque(self, call: Call, inputs: Sequence[str], why: str) -> None:
        """Append a node for each output of a call that cannot be evaluated."""
        for position, value in enumerate(call.outputs):
            name = self._unique(_output_name(call, position))
            shape = tuple(value.shape)
            self._add(Node(name, "opaque", call.name, tuple(inputs), shape, {"why": why}, {}))
            self.names[id(value)] = name

    def _append_chain(self, call: Call, ops: Sequence[Op], inputs: Sequence[str]) -> None:
        """Append a chain of operators; the value of the last one is that of the call."""
        read = tuple(inputs)
        for op in ops:
            last = op is ops[-1]
            name = self._unique(call.name if last else f"{call.name}/{op.op}")
            # The parts of a separable convolution differ in channels: only the last has the shape.
            shape = tuple(call.output.shape) if last else ()
            self._add(Node(name, op.op, call.name, read, shape, op.attributes, op.weights))
            read = (name,)
        self.names[id(call.output)] = read[0]

    def _append_primitives(self, call: Call, found: Expansion) -> None:
        """Append the primitives of a call, or only those of its masks."""
        own = {node.name for node in found.nodes}
        named: dict[str, str] = {}
        for position, (value, output) in enumerate(zip(call.outputs, found.outputs, strict=False)):
            if output in own and output not in named:
                named[output] = self._unique(_output_name(call, position))
            self.names[id(value)] = named.get(output, output)
        for node in found.nodes:
            name = named.get(node.name) or self._unique(f"{call.name}{node.name}")
            named[node.name] = name
            self._add(replace(node, name=name, inputs=tuple(named.get(x, x) for x in node.inputs)))
        for value, mask in zip(call.outputs, found.masks, strict=True):
            if mask is not None:
                self._masks[id(value)] = replace(mask, name=named.get(mask.name, mask.name))

    def _add(self, node: Node) -> None:
        """Append a node; equal arrays are replaced by one object, which is written once."""
        weights, constants = (
            {role: self._shared(array) for role, array in arrays.items()}
            for arrays in (node.weights, node.constants)
        )
        self.nodes.append(replace(node, weights=weights, constants=constants))

    def _shared(self, array: np.ndarray) -> np.ndarray:
        digest = hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).digest()
        return self._arrays.setdefault((array.shape, array.dtype.str, digest), array)

    def _unique(self, base: str) -> str:
        """Return a name that no other value has."""
        count = self._counts.get(base, 0) + 1
        self._counts[base] = count
        name = base if count == 1 else f"{base}#{count}"
        return name if count == 1 or name not in self._counts else self._unique(base)


def _makes_mask(operation: Any) -> bool:
    """Return whether the output of a layer has a mask that its input does not have."""
    return isinstance(operation, keras.layers.Masking) or getattr(operation, "mask_zero", False)


def _reads_mask(operation: Any) -> bool:
    """Return whether a mask may affect the output of a layer."""
    if is_norm(operation) or not isinstance(operation, keras.Layer):
        return False
    return "mask" in inspect.signature(operation.call).parameters


def _output_name(call: Call, position: int) -> str:
    """Return the name of a call's output."""
    return f"{call.name}/{position}" if len(call.outputs) > 1 else call.name
