"""One pass over the network: the expected value of every node, from the runtime's tensors.

Each node reads the *runtime's own* tensors where the file has one for its input, so an upstream
error is not counted again. The expected value comes with a bound on the rounding error of that op.
A tensor of the file that agrees within that bound is the node's tensor. Where a converter fused
several nodes into one op, only the last has a tensor; values and bounds are propagated through the
others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ...artifacts.network import Network, Node
from ...artifacts.precisions import UNIT_ROUNDOFF
from ...reference.network import can_evaluate
from ...reference.rounded_weights import RoundedWeights
from .loops import inside_loops
from .matching import Tensors, distance, within
from .op_results import OpCheck
from .storage import bound_in_half, expected_result


class Evaluation:
    """The network, evaluated for comparison with a file.

    Args:
        network: The folded network.
        tensors: What the runtime computed.
        inputs: Keras input name to (P, …) floats.
        rounded: The file's own weights, where it rounded them.
        true: Every value of the network from the true inputs.
        forced: Node to tensor: the tensor used as a node's value, however large the error.
        in_pieces: Layers that the file may split into other operations, each of them rounded: a
            missing tensor there is not a fault, and nodes that read it are not evaluated.
        whole: Nodes that no tensor of one sign may stand for, if their values have both.
        half: Whether the runtime may compute in half precision.

    Attributes:
        value: Network value to the float64 array that its readers use.
        exact: Node to its expected value.
        allowed: Node to the bound on its error.
        mapped: Node to its tensor.
        checks: Every node that has a tensor within its bound.
        outputs: Node to the tensor of the file's output that it computes.
        halved: Nodes whose tensor holds only their positive or only their negative values. The file
            may compute the others in another tensor, as for the two sides of a selu.
        unchecked: Layers that could not be evaluated.
    """

    def __init__(
        self,
        network: Network,
        tensors: Tensors,
        inputs: Mapping[str, np.ndarray],
        rounded: RoundedWeights,
        true: Mapping[str, np.ndarray],
        forced: Mapping[str, str],
        in_pieces: frozenset[str] = frozenset(),
        whole: frozenset[str] = frozenset(),
        *,
        half: bool = False,
    ) -> None:
        self.network, self.tensors, self._in_half = network, tensors, half
        self._whole, self.halved = whole, set[str]()
        self._in_pieces, self._results = in_pieces, _results(network)
        self._rounded, self._true = rounded, true
        outputs = zip(network.outputs.values(), tensors.graph.outputs)
        self.outputs = {name: key for name, key in outputs if key in tensors.arrays}
        self._inside_loops = inside_loops(network) if tensors.of_loops else frozenset[str]()
        self.value: dict[str, np.ndarray] = dict(inputs)
        self.exact: dict[str, np.ndarray] = {}
        self.allowed: dict[str, np.ndarray] = {}
        self.mapped: dict[str, str] = {}
        tensors.sources = frozenset()
        self.checks: list[OpCheck] = []
        self.unchecked: list[str] = []
        self._bound = {name: np.zeros_like(array) for name, array in inputs.items()}
        self._half_inputs: set[str] = set()
        self._others: dict[str, list[str]] = {}  # further tensors that agree with a node
        self._equal: dict[str, frozenset[str]] = {}  # tensors with the same numbers
        # Values that some ops read as they are, where `value` has what others round them to.
        self._unrounded: dict[str, np.ndarray] = {}
        self._taken: set[str] = set()  # the tensors of nodes, and their rounded copies
        for name, key in zip(network.inputs, tensors.graph.inputs):
            self.value[name] = tensors.read_as_input(key, inputs[name])
            self._note_copy(name, key, inputs[name])
            if tensors.read_in_half(key):
                self._half_inputs.add(name)
        for node in network.nodes:
            if can_evaluate(node) and all(name in self.value for name in node.inputs):
                self._visit(node, forced.get(node.name))
            else:
                self.unchecked.append(node.layer)

    def _visit(self, node: Node, forced: str | None) -> None:
        """Evaluate a node and find its tensor."""
        expected, allowed = self._expected(node, self.value)
        found = [] if forced else self._found(node, expected, allowed)
        # A tensor that is only a copy of what the node reads proves nothing.
        proven = found and found[0][0] not in self._taken
        if not forced and not proven and any(name in self._unrounded for name in node.inputs):
            other = self._expected(node, {**self.value, **self._unrounded})
            better = self._found(node, *other)
            if better and better[0][0] not in self._taken:
                (expected, allowed), found = other, better
        self.exact[node.name], self.allowed[node.name] = expected, allowed
        if forced is not None:
            got = self.tensors.closest(forced, expected)
            # A tensor within its bound is not at fault; it was only hard to identify.
            target, limit = self.tensors.held(forced, node, expected, allowed)
            if not np.isfinite(limit).any():
                self.unchecked.append(node.layer)
            elif within(got, target, limit):
                self._record(node, forced, expected, allowed, got)
            self._take(node, forced, got)
            return
        if not found:
            if node.layer in self._in_pieces:
                del self.exact[node.name], self.allowed[node.name]
                if node.name in self._results:
                    self.unchecked.append(node.layer)
                    return
            self.value[node.name], self._bound[node.name] = expected, allowed
            return
        key, got = found[0]
        equal = [other for other, numbers in found[1:] if np.array_equal(numbers, got)]
        self._equal[node.name] = frozenset((key, *equal))
        others = [other for other, _ in found[1:] if other not in equal]
        if others:
            self._others[node.name] = others
        self._record(node, key, expected, allowed, got)
        self._take(node, key, got)
        # Ops may read the same numbers elsewhere, such as before a transposition.
        self.tensors.sources |= {other for other, _ in found[1:]} - set(others)

    def _expected(
        self, node: Node, values: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the expected value of a node and the bound on its error."""
        filed, inputs = self.as_filed(node), [values[name] for name in node.inputs]
        expected, allowed = expected_result(
            filed,
            inputs,
            [self._bound[name] for name in node.inputs],
            symmetric=self._rounded.hybrid.get(node.name),
            halves=[self._half(name) for name in node.inputs],
        )
        if self._in_half:
            allowed = bound_in_half(filed, inputs, expected, allowed)
        return expected, allowed

    def _found(
        self, node: Node, expected: np.ndarray, allowed: np.ndarray
    ) -> list[tuple[str, np.ndarray]]:
        """Return the tensors that agree with a node's value, and their numbers."""
        found = self.tensors.find(node, expected, allowed, self._taken)
        found = found or self._as_output(node, expected, allowed)
        if node.name in self._inside_loops:
            found = [entry for entry in found if entry[0] not in self.tensors.of_loops]
        if found and self.tensors.halves(found[0][0], expected, allowed):
            self.halved.add(node.name)
            found = [] if node.name in self._whole else found
        return found

    def _as_output(
        self, node: Node, expected: np.ndarray, allowed: np.ndarray
    ) -> list[tuple[str, np.ndarray]]:
        """Return the output that a node computes, if its numbers agree, however wide the bound.

        It is known by its place among the outputs, and need not be told from other tensors.
        """
        key = self.outputs.get(node.name, "")
        if not key or self.tensors.arrays[key].size != expected.size:
            return []
        got = self.tensors.closest(key, expected)
        target, limit = self.tensors.held(key, node, expected, allowed)
        return [(key, got)] if np.isfinite(limit).all() and within(got, target, limit) else []

    def alternatives(self, node: Node) -> Iterator[tuple[str, str]]:
        """Yield the nodes that a node depends on, with another tensor that agrees with each.

        An operator that a converter expands may compute a value in two ways and select the result
        of one: both agree with it, but the following operators read one.
        """
        before = set(node.inputs)
        for other in reversed(self.network.nodes):
            if other.name in before:
                before.update(other.inputs)
                yield from ((other.name, key) for key in self._others.get(other.name, []))

    def numbers(self) -> dict[str, np.ndarray]:
        """Return the numbers of the inputs and of the nodes' tensors, by the file's keys."""
        graph, inputs = self.tensors.graph, self.network.inputs
        found = {key: self.value[name] for name, key in zip(inputs, graph.inputs)}
        return found | {key: self.tensors.numbers(key) for key in self.mapped.values()}

    def read_by(self, node: Node) -> frozenset[str]:
        """Return the nearest tensors before a node, inputs of the file among them."""
        inputs = dict(zip(self.network.inputs, self.tensors.graph.inputs))
        nodes = {inner.name: inner for inner in self.network.nodes}
        found, seen = set[str](), set[str]()
        waiting = list(node.inputs)
        while waiting:
            name = waiting.pop()
            if name in inputs or name in self.mapped:
                found.add(inputs.get(name) or self.mapped[name])
                found.update(self._equal.get(name, ()))
            elif name not in seen:
                seen.add(name)
                waiting.extend(nodes[name].inputs)
        return frozenset(found)

    def as_filed(self, node: Node) -> Node:
        """Return a node with the file's weights."""
        return self._rounded.nodes.get(node.name, node)

    def _take(self, node: Node, key: str, got: np.ndarray) -> None:
        """Use a tensor as the value that the following nodes read."""
        self.mapped[node.name] = key
        self.tensors.sources |= {key, *self._equal.get(node.name, ())}
        self.value[node.name] = self.tensors.read_after(key, got)
        self._taken.add(key)
        self._note_copy(node.name, key, got)
        # Float ops read dequantized integers in float32, which rounds once.
        quantized = self.tensors.graph.tensors[key].quantization is not None
        self._bound[node.name] = UNIT_ROUNDOFF["float32"] * quantized * np.abs(got)

    def _note_copy(self, name: str, key: str, got: np.ndarray) -> None:
        """Note the rounded copy of a tensor, and its own numbers if these differ."""
        copy = self.tensors.rounded_copy(key)
        if copy is not None:
            self._taken.add(copy)
            if self.tensors.graph.tensors[key].dtype.kind == "f":
                self._unrounded[name] = got

    def _half(self, name: str) -> bool:
        """Return whether a value is stored in half precision, which a runtime may skip."""
        stored = name in self.mapped and self.tensors.half(self.mapped[name])
        return stored or name in self._half_inputs

    def _record(
        self, node: Node, key: str, expected: np.ndarray, allowed: np.ndarray, got: np.ndarray
    ) -> None:
        """Enter a check."""
        target, limit = self.tensors.held(key, node, expected, allowed)
        both = np.isfinite(got) & np.isfinite(target)
        error = np.abs(np.where(both, got, 0.0) - np.where(both, target, 0.0))
        ratio = np.divide(error, limit, where=limit > 0, out=np.zeros_like(error))
        power = float(np.linalg.norm(np.where(both, target, 0.0)))
        self.checks.append(
            OpCheck(
                node=node.name,
                layer=node.layer,
                fused=tuple(inner.name for inner in self._interior(node)),
                op=self.tensors.producer(key),
                ratio=float(ratio.max(initial=0.0)),
                max_abs=float(error.max(initial=0.0)),
                drift=float(np.linalg.norm(error)) / power if power else 0.0,
                accumulated=distance(got, self._true[node.name]),
            )
        )

    def _interior(self, node: Node) -> list[Node]:
        """Return the nodes without a tensor before a node, nearest last."""
        nodes = {inner.name: inner for inner in self.network.nodes}
        found: set[str] = set()
        waiting = list(node.inputs)
        while waiting:
            name = waiting.pop()
            if name in nodes and name not in self.mapped and name not in found:
                found.add(name)
                waiting.extend(nodes[name].inputs)
        return [inner for inner in self.network.nodes if inner.name in found]


def _results(network: Network) -> set[str]:
    """Return the outputs of layers that others read or that the network returns."""
    layers = {node.name: node.layer for node in network.nodes}
    found = set(network.outputs.values())
    for node in network.nodes:
        found.update(name for name in node.inputs if layers.get(name) != node.layer)
    return found
