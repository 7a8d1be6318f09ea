"""An ONNX model in canonical form: the same network gives the same bytes in every process.

tf2onnx numbers the names it makes up with a counter of the process and lets hash order decide the
order of nodes and weights. Here the nodes are put in the order in which a walk from the outputs
needs them, every inner name is made again from the Keras layer it belongs to, and what a reader
can infer (`value_info`) or nobody reads (doc strings) is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import onnx

from ..errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

_COUNTER = re.compile(r"__\d+|:\d+$")


def canonical(model: onnx.ModelProto, readable: Callable[[str], str]) -> onnx.ModelProto:
    """Return `model` with nodes, weights and names in canonical order and form.

    Args:
        model: A model as tf2onnx made it, without control flow bodies.
        readable: From a TensorFlow op name to one with the Keras layer's name.

    Raises:
        UserError: The model holds subgraphs (loops, conditions), whose names cannot be renewed.
    """
    graph = model.graph
    nodes = list(_in_order(graph))
    names = _Names(
        [value.name for value in graph.input] + [value.name for value in graph.output], readable
    )
    weights = {tensor.name: tensor for tensor in graph.initializer}
    ordered_weights: list[onnx.TensorProto] = []
    renewed_nodes = []
    for node in nodes:
        if any(
            a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
            for a in node.attribute
        ):
            raise UserError(
                f"The model holds the control flow operator {node.op_type} (a loop or condition "
                "over data), which this exporter does not write to ONNX. Unroll it."
            )
        renewed_nodes.append(_renew(node, names))
        for name in node.input:
            if name in weights:
                ordered_weights.append(_renamed(weights.pop(name), names.value(name)))
    result = onnx.ModelProto()
    result.producer_name = "renormlite"
    result.opset_import.extend(o for o in model.opset_import if o.domain in ("", "ai.onnx"))
    result.ir_version = onnx.helper.find_min_ir_version_for(list(result.opset_import))
    result.graph.name = "main"
    result.graph.node.extend(renewed_nodes)
    result.graph.initializer.extend(ordered_weights)
    result.graph.input.extend(graph.input)
    result.graph.output.extend(graph.output)
    return result


def _in_order(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes the outputs need, each after those it reads, in an order all its own."""
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
                stack.extend((needed, False) for needed in reversed(node.input))


class _Names:
    """New names for values and nodes, given out in the order they are asked for."""

    def __init__(self, interface: Iterable[str], readable: Callable[[str], str]) -> None:
        self._values = {name: name for name in interface}
        self._taken = set(self._values)
        self._nodes: set[str] = set()
        self._readable = readable

    def value(self, name: str) -> str:
        if name and name not in self._values:
            self._values[name] = _unique(self._clean(name), self._taken)
        return self._values.get(name, "")

    def node(self, name: str) -> str:
        return _unique(self._clean(name), self._nodes)

    def _clean(self, name: str) -> str:
        return self._readable(_COUNTER.sub("", name)) or "value"


def _unique(name: str, taken: set[str]) -> str:
    candidate, number = name, 0
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


def _renew(node: onnx.NodeProto, names: _Names) -> onnx.NodeProto:
    renewed = onnx.NodeProto()
    renewed.op_type = node.op_type
    renewed.domain = node.domain
    renewed.name = names.node(node.name)
    renewed.input.extend(names.value(name) for name in node.input)
    renewed.output.extend(names.value(name) for name in node.output)
    renewed.attribute.extend(sorted(node.attribute, key=lambda attribute: attribute.name))
    return renewed


def _renamed(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    tensor.name = name
    return tensor
