"""Rewrites of a traced graph: replaces ops, inserts weights, and removes unused ops."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

# Ops that change only the shape of their first input.
VIEWS = ("Reshape", "Squeeze", "ExpandDims", "Identity")


def redirect(
    graph_def: tf.compat.v1.GraphDef, replaced: Mapping[str, str], interface: Sequence[str]
) -> None:
    """Replace the inputs of ops that read one of `replaced` by its replacement, in place.

    Args:
        graph_def: The graph. Ops that are no longer used are removed.
        replaced: Name of an op to the name of its replacement.
        interface: Names of the inputs and outputs, which are kept.
    """
    if not replaced:
        return
    for node in graph_def.node:
        for index, name in enumerate(node.input):
            node.input[index] = replaced.get(name, name)
    keep_needed(graph_def, interface)


def keep_needed(graph_def: tf.compat.v1.GraphDef, ends: Sequence[str]) -> None:
    """Remove all ops that `ends` do not depend on, in place."""
    inputs = {node.name: [producer(name) for name in node.input] for node in graph_def.node}
    pending, needed = list(ends), set(ends)
    while pending:
        new = set(inputs[pending.pop()]) - needed
        needed |= new
        pending += new
    kept = [node for node in graph_def.node if node.name in needed]
    del graph_def.node[:]
    graph_def.node.extend(kept)


def producer(name: str) -> str:
    """Return the name of the op that an input such as `^op` or `op:1` refers to."""
    return name.removeprefix("^").partition(":")[0]


def put_constants(graph_def: tf.compat.v1.GraphDef, constants: Mapping[str, np.ndarray]) -> None:
    """Replace each op named in `constants` by a constant, in place."""
    for node in graph_def.node:
        if node.name in constants:
            _put_constant(node, constants[node.name])


def _put_constant(node: tf.compat.v1.NodeDef, value: np.ndarray) -> None:
    """Replace an op by a constant, in place."""
    import tensorflow as tf

    node.op = "Const"
    del node.input[:]
    node.attr.clear()
    node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))


def put_placeholder(node: tf.compat.v1.NodeDef, value: np.ndarray) -> None:
    """Replace an op by a placeholder for a value, in place."""
    import tensorflow as tf

    node.op = "Placeholder"
    del node.input[:]
    node.attr.clear()
    node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
    node.attr["shape"].shape.CopyFrom(tf.TensorShape(value.shape).as_proto())


def in_single_precision(graph_def: tf.compat.v1.GraphDef) -> None:
    """Let every op compute in float32 instead of float64, in place.

    TensorFlow divides 32-bit integers in float64, as in `pixels / 255`, for which TFLite has no
    operator. Keras computes in float32 everywhere else.
    """
    import tensorflow as tf

    double, single = tf.float64.as_datatype_enum, tf.float32.as_datatype_enum
    for body in (graph_def.node, *(f.node_def for f in graph_def.library.function)):
        for node in body:
            if node.op == "Const" and node.attr["dtype"].type == double:
                value = tf.make_ndarray(node.attr["value"].tensor)
                _put_constant(node, value.astype(np.float32))
            for attribute in node.attr.values():
                if attribute.type == double:
                    attribute.type = single
                if attribute.HasField("list"):
                    listed = attribute.list.type
                    listed[:] = [single if kind == double else kind for kind in listed]


def plain_sums(graph_def: tf.compat.v1.GraphDef, graph: tf.Graph) -> None:
    """Replace each BiasAdd of a computed bias by an AddV2, in place.

    Keras adds a value of shape (1, ..., 1, C) as a bias. Converters fuse it into the convolution or
    matrix product before it, but the bias of a quantized operator must be constant.

    Args:
        graph_def: The graph, with constants inserted.
        graph: The traced graph, which has shapes.
    """
    nodes = {node.name: node for node in graph_def.node}
    for node in graph_def.node:
        if node.op != "BiasAdd" or node.attr["data_format"].s == b"NCHW":
            continue
        bias = nodes[producer(node.input[1])]
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
    """Return whether a value is a constant, possibly reshaped, as the bias of a Keras layer is."""
    while node.op in VIEWS:
        node = nodes[producer(node.input[0])]
    return bool(node.op == "Const")


def with_separate_biases(graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Return the graph with a constant of its own for every sum with a vector.

    TFLite's converter shares equal constants. With 16-bit activations, it quantizes a shared bias
    once, with the steps of its first reader, and the other readers add wrong numbers. Therefore
    some elements of every further copy are moved to the next float32.

    Args:
        graph_def: A frozen graph; not changed.
    """
    import tensorflow as tf

    result = tf.compat.v1.GraphDef()
    result.CopyFrom(graph_def)
    nodes = {node.name: node for node in result.node}
    values = _constants_of(graph_def)
    copies: Counter[bytes] = Counter()
    for node in list(result.node):
        if node.op not in (*_MERGED_SUMS, "BiasAdd") or values(node.name) is not None:
            continue
        for index, name in enumerate(node.input):
            views, constant = [], nodes[producer(name)]
            while constant.op in VIEWS:
                views.append(constant)
                constant = nodes[producer(constant.input[0])]
            if constant.op == "Const":
                value = tf.make_ndarray(constant.attr["value"].tensor)
            elif (known := values(name)) is not None:  # the part of a weight, as in a GRU
                views, value = [], known
            else:
                continue
            if value.dtype != np.float32 or value.ndim == 0 or not value.any():
                continue
            number = copies[value.tobytes()]
            copies[value.tobytes()] += 1
            if number:
                own = result.node.add(name=f"{node.name}/constant_{number}")
                _put_constant(own, _moved(value, number))
                for view in reversed(views):
                    copy = result.node.add()
                    copy.CopyFrom(view)
                    copy.name, copy.input[0] = f"{own.name}/{view.op}", own.name
                    own = copy
                node.input[index] = own.name
    return result


def _constants_of(
    graph_def: tf.compat.v1.GraphDef,
) -> Callable[[str], np.ndarray | None]:
    """Return a function from an input of a node to its value; None if it is not constant."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    constant: set[str] = set()
    for op in graph.get_operations():  # producers first
        plain = op.type == "Const" or (op.inputs and not op.op_def.is_stateful)
        if plain and all(tensor.op.name in constant for tensor in op.inputs):
            constant.add(op.name)
    session = tf.compat.v1.Session(graph=graph)

    @functools.cache
    def value(name: str) -> np.ndarray | None:
        if name.startswith("^") or producer(name) not in constant:
            return None
        return np.asarray(session.run(name if ":" in name else f"{name}:0"))

    return value


def _moved(value: np.ndarray, number: int) -> np.ndarray:
    """Return numbers that differ from those of every other copy by few units in the last place."""
    flat = value.reshape(-1)
    places = np.flatnonzero(flat)
    digits = np.arange(len(places))
    up = np.nextafter(flat[places], np.float32(np.inf))
    moved = flat.copy()
    bits = (number >> np.minimum(digits, 62)) & 1
    moved[places] = np.where(bits == 1, up, flat[places])
    return moved.reshape(value.shape)


# Ops through which TFLite's converter merges a sum into the transposed convolution before it.
_MERGED_SUMS = ("Add", "AddV2", "Sub")
_MERGED_THROUGH = (*VIEWS, *_MERGED_SUMS, "BiasAdd", "Mul", "RealDiv", "Transpose")


def with_vector_sums(graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Return the graph with every number added to a transposed convolution as a vector.

    TFLite's converter makes such a number the bias, which then has one element instead of one for
    each channel: the kernels read beyond it.

    Args:
        graph_def: A frozen graph; not changed.
    """
    import tensorflow as tf

    if not any(node.op == "Conv2DBackpropInput" for node in graph_def.node):
        return graph_def
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    result = tf.compat.v1.GraphDef()
    result.CopyFrom(graph_def)
    vectors = []
    for node in result.node:
        op = graph.get_operation_by_name(node.name)
        channels = _channels_of_sum(op)
        for index, number in enumerate(op.inputs if channels else ()):
            negates = op.type == "Sub" and index == 0  # which is not merged
            if number.op.type == "Const" and number.shape.num_elements() == 1 and not negates:
                value = tf.make_ndarray(number.op.get_attr("value")).reshape(-1)
                vector = tf.compat.v1.NodeDef(name=f"{node.name}/vector", op="Const")
                _put_constant(vector, np.repeat(value, channels))
                vectors.append(vector)
                node.input[index] = vector.name
    result.node.extend(vectors)
    return result


def _channels_of_sum(op: tf.Operation) -> int:
    """Return the channels of a sum that is merged into a transposed convolution; else 0."""
    if op.type not in _MERGED_SUMS or not op.outputs[0].shape.rank:
        return 0
    return int(op.outputs[0].shape[-1] or 0) if _ends_transposed_conv(op) else 0


def _ends_transposed_conv(op: tf.Operation) -> bool:
    """Return whether a value is a transposed convolution, possibly scaled, shifted or moved."""
    while op.type in _MERGED_THROUGH:
        computed = [t.op for t in op.inputs if t.op.type != "Const"]
        if not computed:
            return False
        op = computed[0]
    return bool(op.type == "Conv2DBackpropInput")
