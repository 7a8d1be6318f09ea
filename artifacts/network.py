"""The folded network as a list of operations: structure and weights, without arithmetic.

`network.npz` is written at export from the folded Keras model and read here with NumPy alone; the
package `reference` evaluates it. It is an npz archive without pickles:

    graph                 one JSON text, schema "renormlite/network/1"
    NODE/ROLE             a weight of a node, in the model's own type (float32 bits are kept)

The JSON holds `inputs` ([{name, shape}]), `outputs` ([{name, value}]) and `nodes`, producers first:
{name, op, layer, inputs, shape, attributes, weights: [ROLE, …]}. A node's name is the name of the
value it computes. `layer` is the Keras layer it came from. Shapes have null for the batch.
An `op` of "opaque" marks a layer without a NumPy form.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import UserError
from .archive import DAMAGE, Archive

SCHEMA = "renormlite/network/1"


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
        weights: Role to array.
    """

    name: str
    op: str
    layer: str
    inputs: tuple[str, ...]
    shape: tuple[int | None, ...]
    attributes: Mapping[str, Any]
    weights: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Network:
    """The folded network.

    Attributes:
        inputs: Keras input name to shape; each is a value of that name.
        outputs: Keras output name to the value it returns.
        nodes: The operations, producers first.
    """

    inputs: Mapping[str, tuple[int | None, ...]]
    outputs: Mapping[str, str]
    nodes: tuple[Node, ...]

    def named(self, inputs: Sequence[str], outputs: Sequence[str]) -> Network:
        """Return the network under other names of its inputs and outputs, given in order.

        The trained model's names stay in force where folding replaced the layer that gave them.
        """
        before = dict(zip(self.inputs, inputs))
        nodes = [
            replace(node, inputs=tuple(before.get(name, name) for name in node.inputs))
            for node in self.nodes
        ]
        return Network(
            inputs=dict(zip(inputs, self.inputs.values())),
            outputs=dict(zip(outputs, [before.get(v, v) for v in self.outputs.values()])),
            nodes=tuple(nodes),
        )


def read_network(path: str | os.PathLike[str]) -> Network:
    """Read `network.npz`; see `network_of`."""
    try:
        archive = Archive(path)
    except OSError as error:
        raise UserError(f"{path} is not a folded network ({error}). Export again.") from error
    return network_of(archive, str(path))


def network_of(arrays: Mapping[str, np.ndarray], path: str) -> Network:
    """Return the network that a file holds.

    Args:
        arrays: The file's arrays.
        path: Where it lies, for messages.

    Raises:
        UserError: The file is damaged or of another schema.
    """
    try:
        graph = json.loads(str(arrays["graph"]))
        if graph["schema"] != SCHEMA:
            raise UserError(
                f"{path} must have the schema '{SCHEMA}'. Received: {graph['schema']!r}. "
                "Export again."
            )
        return Network(
            inputs={entry["name"]: tuple(entry["shape"]) for entry in graph["inputs"]},
            outputs={entry["name"]: entry["value"] for entry in graph["outputs"]},
            nodes=tuple(_node(entry, arrays) for entry in graph["nodes"]),
        )
    except (KeyError, TypeError, AttributeError, *DAMAGE) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not a folded network ({error}). Export again.") from error


def network_arrays(network: Network) -> dict[str, np.ndarray]:
    """Return the arrays of `network.npz` for a network; the inverse of `read_network`."""
    graph = {
        "schema": SCHEMA,
        "inputs": [{"name": k, "shape": list(v)} for k, v in network.inputs.items()],
        "outputs": [{"name": k, "value": v} for k, v in network.outputs.items()],
        "nodes": [
            {
                "name": node.name,
                "op": node.op,
                "layer": node.layer,
                "inputs": list(node.inputs),
                "shape": list(node.shape),
                "attributes": dict(node.attributes),
                "weights": list(node.weights),
            }
            for node in network.nodes
        ],
    }
    arrays = {"graph": np.array(json.dumps(graph))}
    for node in network.nodes:
        for role, array in node.weights.items():
            arrays[f"{node.name}/{role}"] = array
    return arrays


def _node(entry: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Node:
    """Read one node of the JSON."""
    roles: Iterable[str] = entry["weights"]
    return Node(
        name=entry["name"],
        op=entry["op"],
        layer=entry["layer"],
        inputs=tuple(entry["inputs"]),
        shape=tuple(entry["shape"]),
        attributes=entry["attributes"],
        weights={role: arrays[f"{entry['name']}/{role}"] for role in roles},
    )
