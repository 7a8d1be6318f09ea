"""Brings an ONNX model to canonical form, so that a network gives the same bytes in every process.

tf2onnx numbers generated names with a counter of the process, and the order of its nodes and
weights depends on hashes. Here, nodes are sorted by a traversal from the outputs, internal names
are generated from the Keras layers, and data that readers can infer (`value_info`) or do not need
(doc strings) is removed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    from collections.abc import Iterable

# Names of the inputs of operators, as in Keras layers.
_PARTS = {
    (operator, index): part
    for operator in ("Conv", "ConvTranspose", "ConvInteger", "Gemm", "MatMul", "MatMulInteger")
    for index, part in ((1, "kernel"), (2, "bias"))
}
_COUNTER = re.compile(r"__\d+|:\d+$")


def canonical(model: onnx.ModelProto, readable: Callable[[str], str]) -> onnx.ModelProto:
    """Return `model` with nodes, weights and names in canonical order and form.

    Args:
        model: The model of a converter.
        readable: Converts the name of an op to one with the name of the Keras layer.
    """
    interface = [value.name for value in (*model.graph.input, *model.graph.output)]
    result = onnx.ModelProto()
    result.producer_name = "renormlite"
    result.opset_import.extend(o for o in model.opset_import if o.domain in ("", "ai.onnx"))
    result.ir_version = onnx.helper.find_min_ir_version_for(list(result.opset_import))
    result.graph.CopyFrom(_renewed_graph(model.graph, _Names(interface, readable)))
    result.graph.name = "main"
    return result


def _renewed_graph(graph: onnx.GraphProto, names: _Names) -> onnx.GraphProto:
    """Return a graph, the main one or the body of a loop, in canonical form."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    result = onnx.GraphProto(name="body")
    result.input.extend(_renamed_value(value, names) for value in graph.input)
    for node in _in_order(graph):
        for index, name in enumerate(_reads(node)):
            if name in weights:
                names.name_weight(name, node, index)
                result.initializer.append(_renamed_weight(weights.pop(name), names))
        result.node.append(_renewed_node(node, names))
    result.output.extend(_renamed_value(value, names) for value in graph.output)
    for value in graph.output:  # a weight may be an output itself
        if value.name in weights:
            result.initializer.append(_renamed_weight(weights.pop(value.name), names))
    return result


def _in_order(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that the outputs depend on in a unique topological order."""
    makers = {output: node for node in graph.node for output in node.output if output}
    done: set[int] = set()
    for value in graph.output:
        stack = [(value.name, False)]
        while stack:
            name, ready = stack.pop()
            node = makers.get(name)
            if node is None or id(node) in done:
                continue
            if ready:
                done.add(id(node))
                yield node
            else:
                stack.append((name, True))
                stack.extend((needed, False) for needed in reversed(_reads(node)))


def _reads(node: onnx.NodeProto) -> list[str]:
    """Return the values that a node reads, including those that its bodies capture."""
    names = list(node.input)
    for body in bodies(node):
        made = {value.name for value in (*body.input, *body.initializer)}
        made |= {output for inner in body.node for output in inner.output}
        for inner in body.node:
            names += [name for name in _reads(inner) if name not in made]
        names += [value.name for value in body.output if value.name not in made]
    return names


def bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the graphs inside a loop or condition; none for any other node."""
    return [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]


class _Names:
    """Assigns new names to values and nodes, in the order of requests."""

    def __init__(self, interface: Iterable[str], readable: Callable[[str], str]) -> None:
        self._values = {name: name for name in interface}
        self._taken = set(self._values)
        self._nodes: set[str] = set()
        self._sizes: dict[str, str] = {}
        self._readable = readable

    def value(self, name: str) -> str:
        if name and name not in self._values:
            self._values[name] = _unique(self._clean(name), self._taken)
        return self._values.get(name, "")

    def size(self, name: str) -> str:
        """Return the new name of a free size, which equal sizes share."""
        return self._sizes.setdefault(name, f"size_{len(self._sizes)}")

    def node(self, node: onnx.NodeProto) -> str:
        return _unique(self.scope(node), self._nodes)

    def name_weight(self, name: str, reader: onnx.NodeProto, index: int) -> None:
        """Name a weight after the layer that reads it first and its role in it."""
        if name in self._values:
            return
        operator = self.scope(reader)
        layer, _, _ = operator.rpartition("/")
        part = _PARTS.get((reader.op_type, index))
        path = f"{layer or operator}/{part}" if part else f"{operator}/constant"
        self._values[name] = _unique(path, self._taken)

    def scope(self, node: onnx.NodeProto) -> str:
        """Return a node's readable name.

        If the converter generated a name without a layer, the layer is that of its output or, for
        fused nodes, of its last weight.
        """
        own = self._clean(node.name)
        if "/" in own:
            return own
        for name in (*node.output, *reversed(node.input)):
            layer, _, _ = self._clean(name).rpartition("/")
            if layer:
                return f"{layer}/{node.op_type}"
        return own

    def _clean(self, name: str) -> str:
        return self._readable(_COUNTER.sub("", name)) or "value"


def _unique(name: str, taken: set[str]) -> str:
    candidate, number = name, 0
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


def _renewed_node(node: onnx.NodeProto, names: _Names) -> onnx.NodeProto:
    renewed = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
    renewed.input.extend(names.value(name) for name in node.input)
    renewed.name = names.node(node)
    renewed.output.extend(names.value(name) for name in node.output)
    for attribute in sorted(node.attribute, key=lambda attribute: attribute.name):
        copy = renewed.attribute.add()
        copy.CopyFrom(attribute)
        if attribute.type == onnx.AttributeProto.GRAPH:
            copy.g.CopyFrom(_renewed_graph(attribute.g, names))
    return renewed


def _renamed_weight(tensor: onnx.TensorProto, names: _Names) -> onnx.TensorProto:
    tensor.name = names.value(tensor.name)
    return tensor


def _renamed_value(value: onnx.ValueInfoProto, names: _Names) -> onnx.ValueInfoProto:
    renamed = onnx.ValueInfoProto()
    renamed.CopyFrom(value)
    renamed.name = names.value(value.name)
    for size in renamed.type.tensor_type.shape.dim:
        if size.dim_param:
            size.dim_param = names.size(size.dim_param)
    return renamed
