"""Rewrites three operators of an ONNX file so that they compute the same integers as XNNPACK.

ONNX Runtime computes these operators in float32 with their exact factors. XNNPACK, whose rounding
models with ``rounding="float"`` are trained for, rounds the factors or breaks ties differently:

    requantization    (v n + 128) >> 8 with n = round(256 s_x / s_y)
    leaky ReLU        the same, with another n for negative v
    average pooling   the mean of the stored integers, ties away from zero

Here the first two are multiplied by ``n s_y / (256 s_x)``, which gives steps of 1/256 of s_y. A
constant added before QuantizeLinear breaks the ties: it is larger than the error of float32, and
smaller than half the distance between two results.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from .layer_selection import belongs
from .trained import FENCE, IntegerModel

# Products v n / 256 lie 1/256 of a step apart: this moves a half up, and nothing else across it.
_UP = 2.0**-10


@dataclasses.dataclass(frozen=True)
class _Grid:
    """Scale and zero point of a quantized value."""

    scale: np.float32
    zero: int


def compute_in_integers(
    graph: onnx.GraphProto, integers: IntegerModel, readable: Callable[[str], str]
) -> None:
    """Rewrite the operators in place.

    Args:
        graph: A graph with pairs of QuantizeLinear and DequantizeLinear.
        integers: The integer network that it was converted from.
        readable: Converts the converter's name of a node to one with the names of layers.
    """
    _Rewriter(graph, integers, readable).rewrite()


class _Rewriter:
    def __init__(
        self, graph: onnx.GraphProto, integers: IntegerModel, readable: Callable[[str], str]
    ) -> None:
        self.graph, self.integers, self.readable = graph, integers, readable
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.nodes: list[onnx.NodeProto] = []

    def rewrite(self) -> None:
        exact = self.integers.rounding == "float"
        for node in self.graph.node:
            kind = self.integers.markers.get(_slope(node)) if node.op_type == "LeakyRelu" else ""
            marked = kind == "QUANTIZE"
            if kind == "ELU":
                node.op_type = "Elu"
                del node.attribute[:]
            if kind == FENCE:
                self._remove(node)
                continue
            if marked:
                self._rename(node.output[0], node.input[0])
            known = exact and node.op_type in ("LeakyRelu", "AveragePool")
            if not (known and self._by_integers(node, marked)) and not marked:
                self.nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)

    def _by_integers(self, node: onnx.NodeProto, marked: bool) -> bool:
        """Rewrite one operator; return whether it was between two grids."""
        x = self._grid_before(node.input[0])
        after = self._rounding_of(node)
        if x is None or after is None:
            return False
        if belongs(self.readable(node.name), self.integers.float_layers):
            return False
        y = self._grid_of(after)
        if node.op_type == "AveragePool":
            self.nodes.append(node)
            after.input[0] = self._away_from_zero(node, y)
            return True
        ratio, slope = (
            np.float32(256) * (x.scale * part / y.scale) for part in _parts(node, marked)
        )
        n, negative = float(np.rint(ratio)), float(np.rint(slope))
        value = node.input[0]
        if not marked:
            self.nodes.append(node)
            # Next to 1: the two factors are rounded apart.
            part = negative / n / float(_slope(node)) if n and _slope(node) else 1.0
            value = self._put(node, "LeakyRelu", node.output[0])
            self.nodes[-1].attribute.append(onnx.helper.make_attribute("alpha", part))
        scaled = self._put(node, "Mul", value, n * float(y.scale) / (256.0 * float(x.scale)))
        after.input[0] = self._put(node, "Add", scaled, _UP * y.scale)
        return True

    def _away_from_zero(self, node: onnx.NodeProto, grid: _Grid) -> str:
        """Return means, those between two of TFLite's signed integers moved away from zero.

        Means of integers lie 1/places apart.
        """
        (shape,) = (a.ints for a in node.attribute if a.name == "kernel_shape")
        zero = (grid.zero - 128) * grid.scale
        signed = self._put(node, "Add", node.output[0], zero, "signed")
        sign = self._put(node, "Sign", signed)
        moved = self._put(node, "Mul", sign, grid.scale / (4.0 * math.prod(shape)))
        return self._put(node, "Add", node.output[0], moved)

    def _grid_before(self, name: str) -> _Grid | None:
        """Return the grid of a value, tracing back through operators that keep it."""
        while name in self.makers:
            node = self.makers[name]
            if node.op_type == "DequantizeLinear":
                return self._grid_of(node)
            if node.op_type not in _KEEP:
                return None
            name = node.input[0]
        return None

    def _rounding_of(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the QuantizeLinear that is the only reader of a node; None if there is none."""
        readers = self.readers.get(node.output[0], [])
        alone = len(readers) == 1 and readers[0].op_type == "QuantizeLinear"
        return readers[0] if alone else None

    def _grid_of(self, node: onnx.NodeProto) -> _Grid:
        scale, zero = (self.constants[name] for name in node.input[1:])
        return _Grid(np.float32(scale), int(zero))

    def _put(
        self, node: onnx.NodeProto, kind: str, value: str, other: Any = None, name: str = ""
    ) -> str:
        """Add an operator with a constant, another value or nothing as its second operand."""
        result = f"{node.name or node.output[0]}/{name or kind.lower()}"
        if other is not None and not isinstance(other, str):
            other = self._constant(f"{result}/number", np.float32(other))
        self._add(kind, [value] if other is None else [value, other], result)
        return result

    def _constant(self, name: str, value: Any) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _add(self, kind: str, inputs: list[str], output: str) -> None:
        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], output))

    def _remove(self, node: onnx.NodeProto) -> None:
        """Remove a node of one operand, which becomes an output of the graph if the node is one."""
        before, after = node.input[0], node.output[0]
        if any(output.name == after for output in self.graph.output):
            maker = self.makers[before]
            maker.output[:] = [after if name == before else name for name in maker.output]
            before, after = after, before
        self._rename(after, before)
        self.readers.setdefault(before, []).extend(self.readers.get(after, []))

    def _rename(self, old: str, new: str) -> None:
        for reader in self.readers.get(old, []):
            reader.input[:] = [new if name == old else name for name in reader.input]


# Operators whose output has the grid of their input.
_KEEP = (
    "Transpose", "Reshape", "Squeeze", "Unsqueeze", "MaxPool", "GlobalMaxPool", "ReduceMax",
    "ReduceMin", "Relu", "Clip", "Pad", "Slice", "Split",
)  # fmt: skip


def _parts(node: onnx.NodeProto, marked: bool) -> tuple[np.float32, np.float32]:
    """Return the factors of positive and negative numbers."""
    one = np.float32(1)
    return one, one if marked else _slope(node)


def _slope(node: onnx.NodeProto) -> np.float32:
    return next((np.float32(a.f) for a in node.attribute if a.name == "alpha"), np.float32(0.01))
