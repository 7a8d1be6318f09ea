"""The folded network as a list of operations: structure and weights, without arithmetic.

`network.npz` is written at export from the folded Keras model and read here with NumPy alone; the
package `reference` evaluates it. It is an npz archive without pickles:

    graph                 one JSON text, schema "renormlite/network/2"
    NODE/ROLE             a weight in the model's own type (float32 bits are kept), or a constant
    NODE/ROLE/error       the greatest error of a weight that is known only rounded

The JSON holds `inputs` ([{name, shape}]), `outputs` ([{name, value}]) and `nodes`, producers first:
{name, op, layer, inputs, shape, attributes, weights: {ROLE: KEY}, constants: {ROLE: KEY}, errors:
{ROLE: KEY}}. A KEY names an array of the archive; nodes that use the same array share it, as the
steps of an unrolled recurrent layer do. Weights are the layer's own, whose bits a file must hold;
constants are what its code computes, such as an epsilon. A node's name is the name of the value it
computes. `layer` is the Keras layer it came from. Shapes have null for the batch. An `op` of
"opaque" marks a layer that no operators compute; its attribute `why` is the reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import UserError
from .archive import Archive
from .record import Record, parse_json

SCHEMA = "renormlite/network/2"


@dataclass(frozen=True)
class Node:
    """One operation of the folded network.

    Attributes:
        name: Name of the value it computes, unique.
        op: Key of `reference.operators.OPERATORS`, or "opaque".
        layer: The Keras layer it belongs to.
        inputs: Names of the values it reads.
        shape: Shape of its value, None for the batch and other free sizes.
        attributes: Strides, padding and the like.
        weights: Role to an array of the layer's own.
        constants: Role to an array that the layer's code computes.
        errors: Role to the greatest error of each number of a weight, for those that come from a
            file that rounds them; absent for exact weights.
    """

    name: str
    op: str
    layer: str
    inputs: tuple[str, ...]
    shape: tuple[int | None, ...]
    attributes: Mapping[str, Any]
    weights: Mapping[str, np.ndarray]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    errors: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Role to an array, of weights and constants."""
        return {**self.constants, **self.weights}

    def as_identity(self) -> Node:
        """Return the same node with an operation that returns its input."""
        return replace(self, op="identity", attributes={}, weights={}, constants={}, errors={})


@dataclass(frozen=True)
class Network:
    """The folded network.

    Attributes:
        inputs: Keras input name to shape; each is a value of that name.
        outputs: Keras output name to the value it returns.
        nodes: The operations, producers first.
        paths: Layer to its path in the trained model, such as `backbone/conv`, for those that are
            in a nested model.
    """

    inputs: Mapping[str, tuple[int | None, ...]]
    outputs: Mapping[str, str]
    nodes: tuple[Node, ...]
    paths: Mapping[str, str] = field(default_factory=dict)

    def readers(self) -> dict[str, list[Node]]:
        """Return the nodes that read each value; values that no node reads are absent."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                found.setdefault(name, []).append(node)
        return found

    def users(self) -> dict[str, list[Node]]:
        """Return the nodes that compute with each value; values that no node uses are absent.

        A constant reads a value for its number of samples only.
        """
        users = {
            name: [node for node in nodes if node.op != "constant"]
            for name, nodes in self.readers().items()
        }
        return {name: nodes for name, nodes in users.items() if nodes}

    def named(self, inputs: Sequence[str], outputs: Sequence[str]) -> Network:
        """Return the network with other names of its inputs and outputs, given in order.

        It is used to keep the names of the trained model if the fold replaced the named layers.
        """
        if (*inputs, *outputs) == (*self.inputs, *self.outputs):
            return self
        before = dict(zip(self.inputs, inputs))
        nodes = [
            replace(node, inputs=tuple(before.get(name, name) for name in node.inputs))
            for node in self.nodes
        ]
        return Network(
            inputs=dict(zip(inputs, self.inputs.values())),
            outputs=dict(zip(outputs, [before.get(v, v) for v in self.outputs.values()])),
            nodes=tuple(nodes),
            paths=self.paths,
        )


def read_network(path: str | os.PathLike[str]) -> Network:
    """Read `network.npz`; see `network_of`."""
    try:
        archive = Archive(path)
    except OSError as error:
        raise UserError(f"{path} is not a folded network ({error}). Export again.") from error
    return network_of(archive, str(path))


def network_of(arrays: Mapping[str, np.ndarray], path: str) -> Network:
    """Return the network in a file.

    Args:
        arrays: The file's arrays.
        path: Its path, for messages.

    Raises:
        UserError: The file is damaged or of another schema.
    """
    try:
        graph = Record(parse_json(str(arrays["graph"])))
        schema = graph.text("schema")
        if schema == SCHEMA:
            return _network(graph, _Shared(arrays))
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is not a folded network ({error}). Export again.") from error
    raise UserError(f"{path} must have the schema '{SCHEMA}'. Received: {schema!r}. Export again.")


def network_arrays(network: Network) -> dict[str, np.ndarray]:
    """Return the arrays of `network.npz` for a network; the inverse of `read_network`."""
    arrays: dict[str, np.ndarray] = {}
    keys: dict[int, str] = {}

    def key_of(name: str, array: np.ndarray) -> str:
        key = keys.setdefault(id(array), name)
        arrays.setdefault(key, array)
        return key

    nodes = [
        {
            "name": node.name,
            "op": node.op,
            "layer": node.layer,
            "inputs": list(node.inputs),
            "shape": list(node.shape),
            "attributes": dict(node.attributes),
            "weights": {r: key_of(f"{node.name}/{r}", a) for r, a in node.weights.items()},
            "constants": {r: key_of(f"{node.name}/{r}", a) for r, a in node.constants.items()},
            "errors": {r: key_of(f"{node.name}/{r}/error", a) for r, a in node.errors.items()},
        }
        for node in network.nodes
    ]
    graph = {
        "schema": SCHEMA,
        "inputs": [{"name": k, "shape": list(v)} for k, v in network.inputs.items()],
        "outputs": [{"name": k, "value": v} for k, v in network.outputs.items()],
        "nodes": nodes,
        "paths": dict(network.paths),
    }
    return {"graph": np.array(json.dumps(graph)), **arrays}


class _Shared:
    """Reads each array of an archive once, so that nodes share it."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = arrays
        self._read: dict[str, np.ndarray] = {}

    def all_of(self, keys: Mapping[str, str]) -> dict[str, np.ndarray]:
        """Return role to array for role to key."""
        for key in keys.values():
            if not isinstance(key, str) or key not in self._arrays:
                raise ValueError(f"it lacks the array {key!r}")
            if key not in self._read:
                self._read[key] = self._arrays[key]
        return {role: self._read[key] for role, key in keys.items()}


def _network(graph: Record, arrays: _Shared) -> Network:
    """Read the JSON, and require that every value is computed before it is read."""
    inputs = {entry.text("name"): entry.shape("shape") for entry in graph.records("inputs")}
    known = set(inputs)
    nodes = []
    for entry in graph.records("nodes"):
        node = _node(entry, arrays)
        if node.name in known:
            raise entry.wrong("name", "a name that no earlier value has")
        if not set(node.inputs) <= known:
            raise entry.wrong("inputs", "names of inputs and of earlier nodes")
        known.add(node.name)
        nodes.append(node)
    outputs = {}
    for entry in graph.records("outputs"):
        if entry.text("value") not in known:
            raise entry.wrong("value", "the name of an input or node")
        outputs[entry.text("name")] = entry.text("value")
    paths = graph.mapping("paths")
    if not all(isinstance(path, str) for path in paths.values()):
        raise graph.wrong("paths", "a text for each layer")
    return Network(inputs, outputs, tuple(nodes), dict(paths))


def _node(entry: Record, arrays: _Shared) -> Node:
    """Read one node of the JSON."""
    return Node(
        name=entry.text("name"),
        op=entry.text("op"),
        layer=entry.text("layer"),
        inputs=entry.texts("inputs"),
        shape=entry.shape("shape"),
        attributes=entry.mapping("attributes"),
        weights=arrays.all_of(entry.mapping("weights")),
        constants=arrays.all_of(entry.mapping("constants")),
        errors=arrays.all_of(entry.mapping("errors")),
    )
