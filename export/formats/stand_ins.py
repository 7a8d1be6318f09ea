"""Stand-ins for large weights, so that traced graphs and converters hold few copies of them.

In a traced graph, a large weight is a constant with one number at every place, which TensorFlow
stores once. The number is different for every weight. Formats put the weights back before the
conversion, except in float TFLite files: there, TensorFlow's converter, which needs seven times the
memory of the weights, converts the stand-ins, and the weights are written into the file.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ...artifacts.flatbuffer import operator_kind
from .rewrites import producer, put_constants

if TYPE_CHECKING:
    import numpy.typing as npt
    import tensorflow as tf

#: Smaller weights stay in the graph.
LARGE = 1 << 20  # bytes
_FIRST = 0x3F9D4A57  # 1.2288…, a number that networks do not contain


def stand_ins(weights: Mapping[str, np.ndarray]) -> dict[str, np.float32]:
    """Return a number for every large float32 weight; equal weights share one."""
    numbers: dict[tuple[object, ...], np.float32] = {}
    found = {}
    for name, value in weights.items():
        if value.dtype == np.float32 and value.nbytes >= LARGE:
            content = hashlib.blake2b(np.ascontiguousarray(value).data).digest()
            number = np.uint32(_FIRST + len(numbers)).view(np.float32)
            found[name] = numbers.setdefault((value.shape, content), number)
    return found


def put_stand_in(node: tf.compat.v1.NodeDef, number: np.float32, shape: tuple[int, ...]) -> None:
    """Replace an op by a constant with one number at every place, in place."""
    import tensorflow as tf

    node.op = "Const"
    del node.input[:]
    node.attr.clear()
    node.attr["dtype"].type = tf.float32.as_datatype_enum
    tensor = node.attr["value"].tensor
    tensor.dtype = tf.float32.as_datatype_enum
    tensor.tensor_shape.CopyFrom(tf.TensorShape(shape).as_proto())
    tensor.float_val.append(number)


# Operator of a graph that reads a weight, the TFLite operator that it becomes, and the order of the
# weight's axes there.
_READERS = {
    "MatMul": ("FULLY_CONNECTED", (1, 0)),
    "Conv2D": ("CONV_2D", (3, 0, 1, 2)),
}
_WEIGHT = 1  # index of the weights among the inputs, in graphs and in TFLite


@dataclasses.dataclass(frozen=True)
class Replacement:
    """A weight that is written into a file in place of its stand-in.

    Attributes:
        value: The weight, with the order of axes that the file has.
        reader: The TFLite operator that reads it.
    """

    value: np.ndarray
    reader: str


def replacements(
    graph_def: tf.compat.v1.GraphDef, weights: Mapping[str, np.ndarray]
) -> dict[int, Replacement]:
    """Put the weights back that must be in the graph; return the others, by the stand-in's bits.

    Args:
        graph_def: A frozen graph with stand-ins; changed in place.
        weights: Name of the constant of each stand-in to the weight.
    """
    readers = only_readers(graph_def, weights)
    numbers = {
        node.name: _bits(np.float32(node.attr["value"].tensor.float_val[0]))
        for node in graph_def.node
        if node.name in weights
    }
    found: dict[int, Replacement] = {}
    refused = {bits for name, bits in numbers.items() if name not in readers}
    for name, bits in numbers.items():
        if bits not in refused:
            reader, order = _READERS[readers[name]]
            replacement = Replacement(weights[name].transpose(order), reader)
            if found.setdefault(bits, replacement).reader != reader:
                refused.add(bits)
    put_constants(graph_def, {n: weights[n] for n, bits in numbers.items() if bits in refused})
    return {bits: replacement for bits, replacement in found.items() if bits not in refused}


def only_readers(graph_def: tf.compat.v1.GraphDef, weights: Container[str]) -> dict[str, str]:
    """Return the weights that only matrix products or only convolutions read as their weights.

    Args:
        graph_def: A frozen graph.
        weights: Names of the constants.

    Returns:
        Name of a constant to the type of the ops that read it.
    """
    computed = _computed(graph_def)
    readers: dict[str, set[str]] = {}
    for node in graph_def.node:
        for index, name in enumerate(map(producer, node.input)):
            if name in weights:
                plain = index == _WEIGHT and not node.attr["transpose_b"].b
                plain = plain and producer(node.input[0]) in computed  # else it is folded
                readers.setdefault(name, set()).add(node.op if plain else "")
    return {
        name: next(iter(ops))
        for name, ops in readers.items()
        if len(ops) == 1 and ops <= _READERS.keys()
    }


def _computed(graph_def: tf.compat.v1.GraphDef) -> set[str]:
    """Return the ops that depend on an input of the network."""
    readers: dict[str, list[str]] = {}
    for node in graph_def.node:
        for name in map(producer, node.input):
            readers.setdefault(name, []).append(node.name)
    waiting = [node.name for node in graph_def.node if node.op == "Placeholder"]
    found = set(waiting)
    while waiting:
        new = [name for name in readers.get(waiting.pop(), ()) if name not in found]
        found.update(new)
        waiting += new
    return found


def put_weights(model: Any, weights: Mapping[int, Replacement]) -> bool:
    """Replace the stand-ins in a TFLite file by the weights.

    Args:
        model: The parsed file; changed in place. It keeps no reference to the bytes it came from.
        weights: The weights, by the bits of their stand-ins.

    Returns:
        Whether every stand-in is found where it is expected. If not, the converter computed
        something from them, and the file must be converted with the weights.
    """
    if not weights:
        return True
    readers: dict[int, set[str]] = {}
    shapes: dict[int, set[tuple[int, ...]]] = {}
    for graph in model.subgraphs:
        for operator in graph.operators or ():
            kind = operator_kind(model, operator)
            for index, tensor in enumerate(_listed(operator.inputs)):
                if tensor >= 0:
                    reader = kind if index == _WEIGHT else ""
                    readers.setdefault(graph.tensors[tensor].buffer, set()).add(reader)
        for tensor in graph.tensors:
            shape = () if tensor.shape is None else tuple(map(int, tensor.shape))
            shapes.setdefault(tensor.buffer, set()).add(shape)
    waiting = set(weights)
    for index, buffer in enumerate(model.buffers):
        if buffer.data is None or len(buffer.data) < LARGE:
            if buffer.data is not None:
                buffer.data = np.array(buffer.data)
            continue
        bits = _splat(buffer.data)
        replacement = None if bits is None else weights.get(bits)
        if replacement is None:
            if bits:  # computed from a stand-in, or a constant of the network; zeros are neither
                return False
            buffer.data = np.array(buffer.data)
            continue
        expected = {replacement.reader}, {replacement.value.shape}
        if (readers.get(index), shapes.get(index)) != expected:
            return False
        model.buffers[index] = Weight(replacement.value, np.float32)
        waiting.discard(bits)
    model.subgraphs = copy.deepcopy(model.subgraphs)  # their shapes are views of the file
    return not waiting


class Weight(schema.BufferT):
    """A buffer whose bytes are in memory only while it is written."""

    def __init__(self, value: np.ndarray, dtype: npt.DTypeLike) -> None:
        size = value.size * np.dtype(dtype).itemsize
        super().__init__(np.broadcast_to(np.uint8(0), (size,)))  # only for its length
        self._value, self._dtype = value, dtype

    def astype(self, dtype: npt.DTypeLike) -> Weight:
        """Return the weight with numbers of another type."""
        return Weight(self._value, dtype)

    def Pack(self, builder: Any) -> Any:  # noqa: N802
        """Write the buffer."""
        numbers = np.ascontiguousarray(self._value, self._dtype)
        return schema.BufferT(numbers.reshape(-1).view(np.uint8)).Pack(builder)


def _splat(data: np.ndarray) -> int | None:
    """Return the bits of the float32 that a buffer consists of; None if it has several."""
    if len(data) % 4:
        return None
    words = np.frombuffer(data, np.uint32)
    return int(words[0]) if (words == words[0]).all() else None


def _listed(indices: Any) -> list[int]:
    """Return the tensors that a field of a parsed file lists; the parser has None for none."""
    return [] if indices is None else [int(index) for index in indices]


def _bits(number: np.float32) -> int:
    return int(number.view(np.uint32))


def share_buffers(model: Any) -> None:
    """Let constants of equal bytes share one buffer, as TensorFlow's converter does.

    It packs and parses the file to do so, which needs three times its size.

    Args:
        model: The parsed file; changed in place.
    """
    shared: dict[bytes, int] = {}
    merged: dict[int, int] = {}
    for index in sorted(_read_only(model)):
        data = model.buffers[index].data
        if data is not None and len(data):
            first = shared.setdefault(hashlib.blake2b(data.data).digest(), index)
            if first != index:
                merged[index] = first
    for graph in model.subgraphs:
        for operator in graph.operators or ():
            for tensor in _listed(operator.inputs):
                buffer = graph.tensors[tensor].buffer
                graph.tensors[tensor].buffer = merged.get(buffer, buffer)
    for index in merged:
        model.buffers[index].data = None


def _read_only(model: Any) -> set[int]:
    """Return the buffers of tensors that operators read and nothing computes or changes."""
    found: set[int] = set()
    for graph in model.subgraphs:
        tensors: set[int] = set()
        for operator in graph.operators or ():
            mutable = operator.mutatingVariableInputs
            for place, tensor in enumerate(_listed(operator.inputs)):
                changes = mutable is not None and place < len(mutable) and mutable[place]
                if not changes and not graph.tensors[tensor].isVariable:
                    tensors.add(tensor)
        for operator in graph.operators or ():
            for group in (operator.outputs, operator.intermediates):
                tensors -= set(_listed(group))
        for group in (graph.inputs, graph.outputs):
            tensors -= set(_listed(group))
        found |= {graph.tensors[tensor].buffer for tensor in tensors}
    return found
