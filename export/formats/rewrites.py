"""Changes to a traced graph: ops replaced, weights put in, what nothing reads taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

# Ops that change nothing but the shape of their first input.
_VIEWS = ("Reshape", "Squeeze", "ExpandDims", "Identity")


def redirect(
    graph_def: tf.compat.v1.GraphDef, replaced: Mapping[str, str], interface: Sequence[str]
) -> None:
    """Make every op that reads one of `replaced` read its replacement, in place.

    Args:
        graph_def: The graph. What nothing reads any longer is taken out.
        replaced: Name of an op to the name of its replacement.
        interface: Names of the inputs and outputs, which stay.
    """
    if not replaced:
        return
    for node in graph_def.node:
        for index, name in enumerate(node.input):
            node.input[index] = replaced.get(name, name)
    keep_needed(graph_def, interface)


def keep_needed(graph_def: tf.compat.v1.GraphDef, ends: Sequence[str]) -> None:
    """Take out of a graph, in place, every op that none of `ends` needs."""
    inputs = {node.name: [_producer(name) for name in node.input] for node in graph_def.node}
    pending, needed = list(ends), set(ends)
    while pending:
        new = set(inputs[pending.pop()]) - needed
        needed |= new
        pending += new
    kept = [node for node in graph_def.node if node.name in needed]
    del graph_def.node[:]
    graph_def.node.extend(kept)


def _producer(name: str) -> str:
    """Return the name of the op that an input's name, `^op` or `op:1`, speaks of."""
    return name.removeprefix("^").partition(":")[0]


def put_constants(graph_def: tf.compat.v1.GraphDef, constants: Mapping[str, np.ndarray]) -> None:
    """Turn each op named in `constants` into a constant of that value, in place."""
    import tensorflow as tf

    for node in graph_def.node:
        if node.name not in constants:
            continue
        value = constants[node.name]
        node.op = "Const"
        del node.input[:]
        node.attr.clear()
        node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))


def plain_sums(graph_def: tf.compat.v1.GraphDef, graph: tf.Graph) -> None:
    """Turn each BiasAdd of a computed bias into an AddV2, in place.

    Keras adds a value of shape (1, ..., 1, C) as the bias of a layer. Converters then put it into
    the convolution or matrix product before it, whose bias must be a constant once it is quantized.

    Args:
        graph_def: The graph, constants in place.
        graph: The same graph as it was traced, with its shapes.
    """
    nodes = {node.name: node for node in graph_def.node}
    for node in graph_def.node:
        if node.op != "BiasAdd" or node.attr["data_format"].s == b"NCHW":
            continue
        bias = nodes[_producer(node.input[1])]
        if _is_constant(bias, nodes):
            continue
        node.op = "AddV2"
        del node.attr["data_format"]
        if bias.op != "Squeeze":
            continue
        shape = graph.get_operation_by_name(bias.name).inputs[0].shape
        if shape.is_fully_defined() and shape.num_elements() == shape[-1]:
            node.input[1] = bias.input[0]  # broadcasts as it is


def _is_constant(node: tf.compat.v1.NodeDef, nodes: Mapping[str, tf.compat.v1.NodeDef]) -> bool:
    """Return whether a value is a constant in another shape, as Keras makes of a layer's bias."""
    while node.op in _VIEWS:
        node = nodes[_producer(node.input[0])]
    return bool(node.op == "Const")
