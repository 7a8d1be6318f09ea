"""Collects the nodes of a network while a file's ops are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp
from ...artifacts.network import Network, Node

Attributes = Mapping[str, Any]


class UnknownFormError(Exception):
    """An op in a form that has no counterpart among the operators of the checks."""


class Writer:
    """Writes nodes, named by the tensors that they compute.

    Args:
        graph: The file.

    Attributes:
        constants: Key to real numbers, of what does not depend on the inputs.
    """

    def __init__(self, graph: ArtifactGraph) -> None:
        self.graph = graph
        self.constants = {
            key: tensor.real(tensor.data)
            for key, tensor in graph.tensors.items()
            if tensor.data is not None and key not in graph.inputs
        }
        self._values = {key: graph.tensors[key].name for key in graph.inputs}
        self._nodes: list[Node] = []
        self._taken = set(self._values.values())

    def constant(self, key: str) -> np.ndarray:
        """Return the numbers of a constant.

        Raises:
            UnknownFormError: It is computed.
        """
        if key not in self.constants:
            raise UnknownFormError(f"'{key}' is computed where a constant is expected")
        return self.constants[key]

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a tensor without its samples."""
        return self.graph.tensors[key].shape[1:]

    def same(self, key: str, output: str) -> None:
        """Let a tensor be another one's value, as behind a conversion."""
        if key in self.constants:
            self.constants[output] = self.constants[key]
        else:
            self._values[output] = self._values[key]

    def add(
        self,
        op: GraphOp,
        kind: str,
        inputs: Sequence[str],
        attributes: Attributes | None = None,
        weights: Mapping[str, np.ndarray] | None = None,
        *,
        suffix: str = "",
    ) -> None:
        """Append the node that computes an op's output.

        Args:
            op: The op.
            kind: Operator of the checks, or "opaque".
            inputs: Keys of what it reads.
            attributes: Of the operator.
            weights: Of the operator.
            suffix: Tells the parts of one op apart; the last one has none.
        """
        unknown = [key for key in inputs if key not in self._values]
        if unknown:
            raise UnknownFormError(f"'{unknown[0]}' is known to no node")
        output = op.outputs[0]
        name = f"{self.graph.tensors[output].name or output}{suffix}"
        if name in self._taken:
            name = f"{name}#{len(self._nodes)}"
        self._taken.add(name)
        self._nodes.append(
            Node(
                name=name,
                op=kind,
                layer=op.name or self.graph.tensors[output].name,
                inputs=tuple(self._values[key] for key in inputs),
                shape=(None, *self.graph.tensors[output].shape[1:]),
                attributes=dict(attributes or {}),
                weights=dict(weights or {}),
            )
        )
        self._values[output] = name

    def elementwise(self, op: GraphOp, kind: str, keys: Sequence[str]) -> None:
        """Append an operator of two operands, of which one may be constant."""
        fixed = [key for key in keys if key in self.constants]
        if len(fixed) == len(keys):
            raise UnknownFormError("both operands are constant")
        if not fixed:
            self.add(op, kind, keys)
            return
        rest = [key for key in keys if key not in fixed]
        self.add(
            op,
            kind,
            rest,
            {"constant_first": keys[0] == fixed[0]},
            {"constant": self._without_samples(fixed[0], rest[0])},
        )

    def _without_samples(self, key: str, beside: str) -> np.ndarray:
        """Return a constant that broadcasts against one sample."""
        data = self.constants[key]
        rank = len(self.graph.tensors[beside].shape)
        return data[0] if rank and data.ndim == rank and data.shape[0] == 1 else data

    def opaque(self, op: GraphOp) -> None:
        """Append a node that nothing here computes."""
        known = [key for key in op.inputs if key in self._values]
        self.add(op, "opaque", known, {"kind": op.kind})
        for key in op.outputs[1:]:
            self._values[key] = self._values[op.outputs[0]]

    def network(self) -> Network:
        """Return the network, without nodes that no output needs."""
        tensors = self.graph.tensors
        needed = {self._values[key] for key in self.graph.outputs}
        nodes = []
        for node in reversed(self._nodes):
            if node.name in needed:
                needed.update(node.inputs)
                nodes.append(node)
        return Network(
            inputs={
                tensors[key].name: (None, *tensors[key].shape[1:]) for key in self.graph.inputs
            },
            outputs={tensors[key].name: self._values[key] for key in self.graph.outputs},
            nodes=tuple(reversed(nodes)),
        )
