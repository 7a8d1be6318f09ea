"""A look at a graph of ONNX for the rewrites, and the changes that they have in common."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
from onnx import numpy_helper

from .onnx_external import Held


@dataclasses.dataclass(frozen=True)
class View:
    """A model's graph with the look-ups that the rewrites need.

    Attributes:
        graph: The graph, changed in place.
        shapes: Static shape of every value that has one.
        makers: Value to the node that computes it.
        readers: Value to the nodes that read it, with repetitions.
        weights: Name to initializer.
        held: The large weights, which the initializers do not contain.
    """

    graph: onnx.GraphProto
    shapes: dict[str, tuple[int, ...]]
    makers: dict[str, onnx.NodeProto]
    readers: dict[str, list[onnx.NodeProto]]
    weights: dict[str, onnx.TensorProto]
    held: Held

    @classmethod
    def of(cls, model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]], held: Held) -> View:
        """Return a look at a model whose values have these shapes."""
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        return cls(
            model.graph,
            shapes,
            {output: node for node in model.graph.node for output in node.output},
            readers,
            {tensor.name: tensor for tensor in model.graph.initializer},
            held,
        )

    def only_reader(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the only reader of a node's only output; None if there are several of either."""
        if len(node.output) != 1:
            return None
        (output,) = node.output
        readers = self.readers.get(output, [])
        returned = any(value.name == output for value in self.graph.output)
        return readers[0] if len(readers) == 1 and not returned else None


def with_constant(view: View, node: onnx.NodeProto) -> tuple[str, np.ndarray] | None:
    """Return the other operand of an Add of a constant, and the constant with as many axes."""
    if node.op_type != "Add":
        return None
    for value, other in (node.input, reversed(node.input)):
        weight, shape = view.weights.get(other), view.shapes.get(value)
        if weight is None or shape is None or view.shapes.get(node.output[0]) != shape:
            continue
        constant = numpy_helper.to_array(weight)
        return value, constant.reshape((1,) * (len(shape) - constant.ndim) + constant.shape)
    return None


def set_weight(view: View, node: onnx.NodeProto, old: onnx.TensorProto, values: np.ndarray) -> None:
    """Replace the weights of a node; others may read the old ones."""
    name, values = f"{old.name}/arranged", np.ascontiguousarray(values)
    held = view.held.holds(old)
    new = view.held.tensor(values, name) if held else numpy_helper.from_array(values, name)
    view.graph.initializer.append(new)
    replace_input(node, old.name, new.name)
    if len(view.readers[old.name]) == 1:
        view.graph.initializer.remove(old)


def replace_input(node: onnx.NodeProto, old: str, new: str) -> None:
    """Make a node read another value."""
    for index, name in enumerate(node.input):
        if name == old:
            node.input[index] = new


def ints_of(node: onnx.NodeProto, name: str) -> list[int] | None:
    """Return an attribute of integers; None if the node has none of that name."""
    return next((list(a.ints) for a in node.attribute if a.name == name), None)


def text_of(node: onnx.NodeProto, name: str) -> str:
    """Return an attribute that is a text; empty if the node has none of that name."""
    return next((a.s.decode() for a in node.attribute if a.name == name), "")


def int_of(node: onnx.NodeProto, name: str) -> int:
    """Return an attribute that is an integer; 0 if the node has none of that name."""
    return next((a.i for a in node.attribute if a.name == name), 0)
