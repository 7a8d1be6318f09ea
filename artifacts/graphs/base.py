"""The graph of a file: operators in execution order, tensors by key, quantization."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Quantization:
    """Quantization parameters: real = scale · (q - zero_point).

    Attributes:
        scales: One scale, or one for each index of ``axis``.
        zero_points: As many zero points.
        dtype: Type of the integers, also for a float tensor of dequantized values.
        axis: The axis of several scales.
    """

    scales: np.ndarray
    zero_points: np.ndarray
    dtype: np.dtype
    axis: int = 0

    def real(self, values: np.ndarray) -> np.ndarray:
        """Dequantize integers to float64."""
        shape = [1] * values.ndim
        if self.scales.size > 1:
            shape[self.axis] = -1
        scales = self.scales.astype(np.float64).reshape(shape) if values.ndim else self.scales
        points = (
            self.zero_points.astype(np.float64).reshape(shape)
            if values.ndim
            else (self.zero_points)
        )
        return np.asarray((values.astype(np.float64) - points) * scales)

    def step(self, rank: int) -> np.ndarray:
        """Return the scales in a shape that broadcasts against a tensor of that rank."""
        shape = [1] * rank
        if self.scales.size > 1:
            shape[self.axis] = -1
        return self.scales.astype(np.float64).reshape(shape)

    def saturated(self, integers: np.ndarray) -> np.ndarray:
        """Return (N,) whether one of (N, …) integers is at a limit that does not represent zero."""
        limits, rows = np.iinfo(self.dtype), integers.reshape(len(integers), -1)
        ends = [end for end in (limits.min, limits.max) if self.zero_points[0] != end]
        return np.asarray(np.isin(rows, ends).any(axis=1))


@dataclass(frozen=True)
class GraphTensor:
    """One tensor of a file.

    Attributes:
        key: Its name in the runner's `infer_all`; unique in the file.
        name: Its name in the file.
        shape: Its static shape; empty if the file does not give one.
        dtype: Element type.
        quantization: None for float tensors.
        data: The value of a constant; None for a computed tensor.
    """

    key: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    quantization: Quantization | None = None
    data: np.ndarray | None = None

    def real(self, values: np.ndarray) -> np.ndarray:
        """Return values of this tensor, dequantized to float64."""
        if self.quantization is None or values.dtype.kind == "f":
            return np.asarray(values, np.float64)
        return self.quantization.real(values)


@dataclass(frozen=True)
class GraphOp:
    """One op of a file.

    Attributes:
        index: Its index in the file; several ops that replace one have the same.
        kind: Operator type: CONV_2D, Conv, …
        name: Its name in the file; may be empty.
        inputs: Keys of its inputs; empty strings for absent ones.
        outputs: Keys of its outputs.
        attributes: Its attributes as plain values.
        domain: Domain of a nonstandard operator; empty for standard ones.
    """

    index: int
    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""


@dataclass(frozen=True)
class ArtifactGraph:
    """The ops and tensors of one exported file.

    Attributes:
        tensors: By key.
        inputs: Keys of the inputs, in the file's order.
        outputs: Keys of the outputs, in the file's order.
        read_ops: Function that reads the operators on first use.
        metadata: Metadata of the file, by key.
        signature: Names in the file's signature of inputs and outputs, by key.
        signatures: Keys of the file's signatures, that of the main graph first.
        inner_constants: Constants of the graphs inside loops and branches.
        read_inner: Function that reads the graphs that loops and branches run: of an op's index,
            the role of each graph and the graph.
        filed_ops: The operators of the file, if ``ops`` holds others that replace some of them.
    """

    tensors: Mapping[str, GraphTensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    read_ops: Callable[[], tuple[GraphOp, ...]] = field(repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    signature: Mapping[str, str] = field(default_factory=dict, repr=False)
    signatures: tuple[str, ...] = field(default=(), repr=False)
    inner_constants: tuple[GraphTensor, ...] = field(default=(), repr=False)
    read_inner: Callable[[], Mapping[int, Sequence[tuple[str, ArtifactGraph]]]] = field(
        default=dict, repr=False
    )
    filed_ops: tuple[GraphOp, ...] = field(default=(), repr=False)

    @functools.cached_property
    def ops(self) -> tuple[GraphOp, ...]:
        """The operators in execution order; read on first use."""
        return self.read_ops()

    def demand_ops(self) -> None:
        """Read the operators, for an error where a damaged file is expected.

        Raises:
            UserError: They are not well-formed.
        """
        _ = self.ops

    @property
    def as_filed(self) -> ArtifactGraph:
        """The graph with the operators of the file, where others replace some of them."""
        filed = self.filed_ops
        return replace(self, read_ops=lambda: filed, filed_ops=()) if filed else self

    @property
    def constants(self) -> list[GraphTensor]:
        """The tensors with a constant value."""
        own = [tensor for tensor in self.tensors.values() if tensor.data is not None]
        return [*own, *self.inner_constants]

    def in_order(self, inputs: Sequence[str], outputs: Sequence[str]) -> ArtifactGraph:
        """Return the graph with inputs and outputs in the given order.

        Args:
            inputs: Names of the inputs; if they are not those of the file, its order is kept.
            outputs: The same for the outputs.
        """

        def ordered(keys: tuple[str, ...], names: Sequence[str]) -> tuple[str, ...]:
            by_name = {self.tensors[key].name: key for key in keys}
            return tuple(by_name[n] for n in names) if by_name.keys() == set(names) else keys

        return replace(
            self, inputs=ordered(self.inputs, inputs), outputs=ordered(self.outputs, outputs)
        )

    def activations(self, op: GraphOp) -> list[str]:
        """Return the keys of an op's inputs that are computed, not constant."""
        return [key for key in op.inputs if key and self.tensors[key].data is None]

    def producer(self, key: str) -> GraphOp | None:
        """Return the op that computes a tensor, None for inputs and constants."""
        return next((op for op in self.ops if key in op.outputs), None)

    def consumers(self, key: str) -> list[GraphOp]:
        """Return the ops that read a tensor."""
        return [op for op in self.ops if key in op.inputs]
