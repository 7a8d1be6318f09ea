"""The numbers of a file's tensors: its constants, and what the runtime computed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp
from ...reference.integer.base import together


class ShownNumbers:
    """The numbers that the integers and floats of a file represent.

    Args:
        graph: The file.
        arrays: Key to (P, …): what the runtime computed for each of P samples.

    Attributes:
        graph: The file.
        arrays: What the runtime computed.
        producers: Key to the op that computes a tensor.
    """

    def __init__(self, graph: ArtifactGraph, arrays: Mapping[str, np.ndarray]) -> None:
        self.graph, self.arrays = graph, arrays
        self.producers: Mapping[str, GraphOp] = {key: op for op in graph.ops for key in op.outputs}

    def of(self, key: str) -> np.ndarray:
        """Return the numbers that a tensor's integers represent; 1 if unknown."""
        tensor = self.graph.tensors[key]
        array = tensor.data if tensor.data is not None else self.arrays.get(key)
        if array is not None:
            return tensor.real(array)
        op = self.producers.get(key)
        return np.ones(1) if op is None else self.of(op.inputs[0])

    def exact(self, key: str) -> np.ndarray | None:
        """Return the numbers of a tensor, (P, …) or (1, …) of a constant; None if unknown."""
        op, tensor = self.producers.get(key), self.graph.tensors[key]
        if tensor.data is not None:
            return tensor.real(tensor.data)[None]
        if key in self.arrays:
            return tensor.real(self.arrays[key])
        dequantized = op is not None and op.kind in ("DEQUANTIZE", "DequantizeLinear")
        return self.exact(op.inputs[0]) if op is not None and dequantized else None

    def constant(self, key: str) -> np.ndarray | None:
        """Return a constant's numbers, also after a DequantizeLinear."""
        op, data = self.producers.get(key), self.graph.tensors[key].data
        return data if op is None or op.kind != "DequantizeLinear" else self.constant(op.inputs[0])

    def all_known(self, op: GraphOp) -> bool:
        """Return whether the numbers that an op reads and returns are known."""
        return all(
            k in self.arrays or self.graph.tensors[k].data is not None
            for k in (*op.inputs, *op.outputs)
        )

    def operands(self, op: GraphOp) -> list[np.ndarray]:
        """Return the numbers that an op reads, (P, …) or (1, …), with equal ranks."""
        constant = [self.graph.tensors[key].data is not None for key in op.inputs]
        found = [self.of(k)[None] if c else self.of(k) for k, c in zip(op.inputs, constant)]
        return together(found)
