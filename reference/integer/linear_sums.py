"""The exact sums of linear operators and means, for all possible inputs."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp, Quantization
from ..operators import OPERATORS
from ..operators.contractions import MatMul
from ..operators.linear import Linear, Rescaling
from ..operators.reductions import averaged
from ..rounding.arithmetic import Arithmetic
from ..rounding.quantized import Ints, NotKnownError, Output, Quantized, Scales
from ..rounding.thresholds import thresholds
from .base import Values
from .tflite_arithmetic import output_of

# Operators by how their sums are made: key of `OPERATORS`, place of data and bias, kernel's axis
# of output channels.
LINEAR = {
    "CONV_2D": ("conv", 0, 2, 0),
    "DEPTHWISE_CONV_2D": ("depthwise_conv", 0, 2, 3),
    "FULLY_CONNECTED": ("dense", 0, 2, 0),
    "TRANSPOSE_CONV": ("conv_transpose", 2, 3, 0),
}


@dataclass(frozen=True)
class LinearSums:
    """The requantization of the exact sums of a linear operator.

    Attributes:
        operator: Key of `OPERATORS`.
        x: Scale of the data.
        w: Scales of the kernel, one or one per channel.
        output: Steps of the output, with the limits of a fused activation.
        ends: (2, C) least and greatest sum of each channel that any input reaches.
        wide: Whether it has a bias of 64 bits.
    """

    operator: str
    x: Scales
    w: Scales
    output: Output
    ends: Ints
    wide: bool = False

    @classmethod
    def of(cls, graph: ArtifactGraph, op: GraphOp) -> LinearSums:
        """Read an operator.

        Raises:
            NotKnownError: Its weights are computed.
        """
        operator, data, bias_at, axis = LINEAR[op.kind]
        values = Values(graph, {})
        kernel = values.kernel(op.inputs[1])
        rows = np.moveaxis(kernel.integers, axis, -1)
        rows = rows.reshape(-1, rows.shape[-1])
        bias = values.bias("".join(op.inputs[bias_at : bias_at + 1]))
        steps = values.steps(op.inputs[data])
        return cls.made(operator, steps, Quantized(rows, kernel.steps), bias, output_of(op, values))

    @classmethod
    def made(
        cls,
        operator: str,
        steps: Quantization,
        kernel: Quantized,
        bias: Mapping[str, Quantized],
        output: Output,
    ) -> LinearSums:
        """Return the sums of a layer.

        Args:
            operator: Key of `OPERATORS`.
            steps: Steps of the data.
            kernel: (N, C) weights of each channel.
            bias: The bias, or nothing.
            output: Steps of the output.
        """
        rows, (low, high) = kernel.integers, map(float, _reach(steps))
        ends = np.array(
            [
                np.where(rows > 0, rows * low, rows * high).sum(axis=0),
                np.where(rows > 0, rows * high, rows * low).sum(axis=0),
            ]
        )
        if bias:
            ends = ends + bias["bias"].integers
        scale = steps.scales.astype(np.float32)
        wide = bool(bias) and bias["bias"].bits == 64
        return cls(operator, scale, kernel.scale, output, ends.astype(np.int64), wide)

    @classmethod
    def of_matrices(
        cls, factors: tuple[Quantization, Quantization], count: int, output: Output
    ) -> LinearSums:
        """Return the sums of products of two computed matrices.

        Args:
            factors: Steps of both.
            count: Number of products in a sum. Every integer between the ends counts as a sum.
            output: Steps of the output.
        """
        low, high = _corners(*(_reach(steps) for steps in factors))
        x, w = (steps.scales.astype(np.float32) for steps in factors)
        return cls("matmul", x, w, output, count * np.array([[low], [high]], np.int64))

    def channels(self, chosen: Ints) -> LinearSums:
        """Return some channels of an operator that has a scale for each."""
        return replace(self, w=self.w[chosen], ends=self.ends[:, chosen])

    def rounded(self, rule: Arithmetic, sums: Ints, w: Scales | None = None) -> Ints:
        """Round sums (L, C) by a rule; the zero point is not added and nothing is clipped."""
        found: Ints = self.rescaling(rule)(
            sums, self.x, self.w if w is None else w, self.output.scale
        )
        return found

    def rescaling(self, rule: Arithmetic) -> Rescaling:
        """Return the function of a rule that rounds the sums."""
        operator, bits = OPERATORS[self.operator], self.output.bits
        assert isinstance(operator, (Linear, MatMul))
        return operator.rescaling(rule.of_bits(bits), bits, self.wide)

    def thresholds(self, rule: Arithmetic, w: Scales | None = None) -> Ints:
        """Return a rule's thresholds (L, C), of a kernel with other scales where they are given."""
        scales = self.w if w is None else w
        ratio = self.x.astype(np.float64) * scales / self.output.scale
        ratio = np.broadcast_to(ratio, self.ends.shape[1:])
        return thresholds(
            lambda sums: self.rounded(rule, sums, w), ratio, self.ends, self.output.levels
        )


@dataclass(frozen=True)
class MeanSums:
    """The rounding of the exact sums of a mean.

    Attributes:
        count: Number of integers in a sum.
        steps: Their steps.
        output: Steps of the output.
        places: Whether the mean is over both spatial axes and keeps them.
    """

    count: int
    steps: Quantization
    output: Output
    places: bool

    @property
    def ends(self) -> Ints:
        """(2, 1) least and greatest sum of integers minus their zero point."""
        return self.count * np.array(_reach(self.steps), np.int64)[:, None]

    def rounded(self, rule: Arithmetic, sums: Ints) -> Ints:
        """Round sums by a rule; the zero point is not added and nothing is clipped."""
        x = Quantized(sums, self.steps)
        served = rule.of_bits(self.output.bits)
        return averaged(served, sums, self.count, x, self.output, self.places)

    def thresholds(self, rule: Arithmetic) -> Ints:
        """Return a rule's thresholds (L, 1)."""
        ratio = self.steps.scales.astype(np.float64) / (self.count * self.output.scale)
        rounded = functools.partial(self.rounded, rule)
        return thresholds(rounded, ratio, self.ends, self.output.levels)


def _reach(steps: Quantization) -> tuple[int, int]:
    """Return the least and the greatest integer, minus the zero point."""
    limits, point = np.iinfo(steps.dtype), int(steps.zero_points[0])
    return int(limits.min) - point, int(limits.max) - point


def _corners(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """Return the least and the greatest product of two integers within limits."""
    products = [a * b for a in one for b in other]
    return min(products), max(products)


def linear_ops(graph: ArtifactGraph) -> Iterator[tuple[GraphOp, LinearSums]]:
    """Yield the linear operators of a .tflite file whose outputs are integers of 8 bits."""
    for op in graph.ops:
        steps = graph.tensors[op.outputs[0]].quantization if op.outputs else None
        if op.kind not in LINEAR or steps is None or steps.dtype.itemsize != 1:
            continue
        try:
            yield op, LinearSums.of(graph, op)
        except NotKnownError:
            continue
