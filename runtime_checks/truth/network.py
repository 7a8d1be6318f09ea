"""The folded network as a list of operations with float64 arithmetic: what every op should compute.

`network.npz` is written at export from the folded Keras model and read here with NumPy alone, so
that the same expectations hold on the host and on a device. It is an npz archive without pickles:

    graph                 one JSON text, schema "renormlite/network/1"
    NODE/ROLE             a weight of a node, in the model's own type (float32 bits are kept)

The JSON holds `inputs` ([{name, shape}]), `outputs` ([{name, value}]) and `nodes`, producers first:
{name, op, layer, inputs, shape, attributes, weights: [ROLE, …]}. A node's name is the name of the
value it computes. `layer` is the Keras layer it came from. Shapes have null for the batch.
An `op` of "opaque" marks a layer that the walk cannot evaluate.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...errors import UserError
from ..formats.archive import DAMAGE, Archive
from .bounds import SMALLEST_NORMAL
from .operators import OPERATORS

SCHEMA = "renormlite/network/1"


@dataclass(frozen=True)
class Node:
    """One operation of the folded network.

    Attributes:
        name: Name of the value it computes, unique.
        op: Key of `operators.OPERATORS`, or "opaque".
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

    def evaluate(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Return the value for the given inputs, in their type.

        Raises:
            UserError: The node is opaque.
        """
        if self.op not in OPERATORS:
            raise UserError(
                f"The layer '{self.layer}' cannot be evaluated outside Keras, so its op cannot be "
                "checked by itself."
            )
        weights = {role: array.astype(inputs[0].dtype) for role, array in self.weights.items()}
        return OPERATORS[self.op].evaluate(inputs, weights, self.attributes)

    def error(
        self,
        inputs: list[np.ndarray],
        output: np.ndarray,
        errors: list[np.ndarray],
        unit: float,
    ) -> np.ndarray:
        """Return how far floating-point arithmetic may stray from the exact value.

        Runtimes may flush denormal numbers to zero, those they read and those they compute: each
        of K products and K partial sums may lose the least normal number, and so may each input.

        Args:
            inputs: float64 inputs.
            output: The exact output for them.
            errors: Bound on the absolute error of each input.
            unit: Unit roundoff of the arithmetic that is judged; 0 for what flushing alone does.

        Returns:
            Bound on the absolute error of each element of the output.
        """
        weights = {role: array.astype(np.float64) for role, array in self.weights.items()}
        passed = [error + _flushed(x, error) for x, error in zip(inputs, errors)]
        bound = OPERATORS[self.op].error(inputs, weights, self.attributes, output, passed, unit)
        return bound + 2 * self._terms(output) * SMALLEST_NORMAL

    def carried(self, variance: np.ndarray) -> np.ndarray:
        """Return what a linear node makes of an independent variance of its input.

        Args:
            variance: float64, the shape of the node's first input.
        """
        weights = {"kernel": np.square(self.weights["kernel"].astype(np.float64))}
        return OPERATORS[self.op].evaluate([variance], weights, self.attributes)

    def variance(
        self,
        inputs: list[np.ndarray],
        output: np.ndarray,
        variances: list[np.ndarray],
        unit: float,
    ) -> np.ndarray:
        """Return the expected variance of rounding errors, in units of the unit roundoff squared.

        Args:
            inputs: The inputs.
            output: The output for them.
            variances: The variance of each input's error.
            unit: The unit roundoff.
        """
        weights = {role: array.astype(output.dtype) for role, array in self.weights.items()}
        return OPERATORS[self.op].variance(
            inputs, weights, self.attributes, output, variances, unit
        )

    @property
    def known(self) -> bool:
        """Whether the node can be evaluated."""
        return self.op in OPERATORS

    def _terms(self, output: np.ndarray) -> int:
        """How many numbers are added up to one element of the output, at most."""
        kernel = self.weights.get("kernel")
        if kernel is not None:
            first = self.attributes.get("data_format") == "channels_first"
            return int(kernel.size) // output.shape[1 if first else -1]
        if "pool" in self.op:
            return int(np.prod(self.attributes.get("pool_size", [1])))
        return max(1, len(self.inputs))


def _flushed(x: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Return what is lost where a number that is read may be denormal and is taken for zero."""
    size = np.abs(x) + error
    return np.where(np.abs(x) <= SMALLEST_NORMAL + error, np.minimum(size, SMALLEST_NORMAL), 0.0)


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

    @property
    def opaque(self) -> list[str]:
        """Layers that cannot be evaluated."""
        return [node.layer for node in self.nodes if not node.known]

    def run(
        self, inputs: Mapping[str, np.ndarray], *, dtype: Any = np.float64, batch: int = 8
    ) -> dict[str, np.ndarray]:
        """Evaluate the network.

        Args:
            inputs: Keras input name to (N, …).
            dtype: The arithmetic: float64 for the truth, float32 for a plain reference.
            batch: Samples at a time, to bound memory.

        Returns:
            Keras output name to (N, …) in ``dtype``.

        Raises:
            UserError: A layer is opaque.
        """
        samples = len(next(iter(inputs.values())))
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self.outputs}
        for start in range(0, samples, batch):
            fed = {k: v[start : start + batch].astype(dtype) for k, v in inputs.items()}
            wanted = set(self.outputs.values())
            found = {name: value for name, value in self.values(fed) if name in wanted}
            for name, value in self.outputs.items():
                parts[name].append(found[value])
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    def values(self, inputs: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield each value, the inputs first; a value is forgotten after its last use."""
        last = {name: node.name for node in self.nodes for name in node.inputs}
        held = {name: inputs[name] for name in self.inputs}
        yield from held.items()
        for node in self.nodes:
            value = node.evaluate([held[name] for name in node.inputs])
            for name in set(node.inputs):
                if last[name] == node.name:
                    del held[name]
            if node.name in last:
                held[node.name] = value
            yield node.name, value


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
