"""The contents of a .tflite or .onnx file: every op with shapes, parameters, MACs and precision.

Read from the file alone; nothing is run, and neither TensorFlow nor Keras is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts.graphs import format_of, read_graph, reading, with_shapes
from ..artifacts.graphs.base import ArtifactGraph, GraphOp
from ..reference.integer.onnx_floats import MOVING
from ..reference.integer.onnx_ops import FUSED
from ..reference.integer.tflite_moving import MOVING_OPS
from ..reference.integer.tflite_ops import TFLITE_OPS

# Activations that runtimes compute as a limit of the integers before them.
_LIMITS = ("Relu", "Clip")
_INTEGER_KINDS = frozenset({*TFLITE_OPS, *FUSED, *MOVING})
_MOVING = frozenset({*MOVING, *MOVING_OPS})
_SHAPES = ("SHAPE", "Shape")
_LOOPS = ("WHILE", "IF", "Loop", "Scan", "If")
_MOST_NAMED = 6
_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE", "QuantizeLinear", "DequantizeLinear", "CAST", "Cast")
_MULTIPLICATIONS, _ADDITIONS = ("MUL", "Mul"), ("ADD", "Add", "SUB", "Sub")
# Ops with weights by the format's name: how many of the kernel's numbers each output element takes.
_PER_OUTPUT = {
    "CONV_2D": lambda kernel: int(np.prod(kernel[1:])),
    "CONV_3D": lambda kernel: int(np.prod(kernel[:4])),
    "DEPTHWISE_CONV_2D": lambda kernel: int(np.prod(kernel[1:3])),
    "FULLY_CONNECTED": lambda kernel: kernel[-1],
    "Conv": lambda kernel: int(np.prod(kernel[1:])),
    "ConvInteger": lambda kernel: int(np.prod(kernel[1:])),
    "QLinearConv": lambda kernel: int(np.prod(kernel[1:])),
    "MatMul": lambda kernel: kernel[-2] if len(kernel) > 1 else kernel[0],
    "MatMulInteger": lambda kernel: kernel[-2] if len(kernel) > 1 else kernel[0],
    "BATCH_MATMUL": lambda kernel: kernel[-2],
}
# Ops that multiply each of their matrices by a vector at every time step.
_RECURRENT = frozenset(
    {"LSTM", "GRU", "RNN", "UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM"}
    | {"UNIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_RNN"}
)
# Place of the kernel among an op's inputs, where it is not the second.
_KERNEL = {"QLinearConv": 3, "TRANSPOSE_CONV": 1, "CONV_2D": 1}


@dataclass(frozen=True)
class OpRow:
    """One op of a file.

    Attributes:
        index: Its position.
        kind: Its name in the format.
        name: Name of its output.
        shape: Of its first output; -1 if free, empty if the file does not say.
        parameters: Numbers among its inputs that the file holds.
        macs: Multiplications and additions for one run; 0 for ops without weights.
        precision: Element type that it computes in: "float32", "int8", "int8 weights", …
    """

    index: int
    kind: str
    name: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    precision: str


@dataclass(frozen=True)
class FileTable:
    """A file as a table.

    Attributes:
        file: Its name.
        bytes: Its size.
        ops: Every op, in the order they run.
        inputs: Name, type and shape of each input.
        outputs: The same of each output.
        arena_bytes: Peak total size of the tensors that are alive at the same time.
        float_ops: Ops that compute in floats although others compute in integers, which
            integer-only hardware cannot run: a sentence for each kind, with the reason.
        norms: Ops that remain of a norm: a factor and a shift for each channel.
        foreign_ops: Ops outside the format's standard set (Flex, custom, other domains).
        computed_shapes: Ops that compute shapes at run time, which delegates do not accept.
        loops: Ops that run graphs of their own, whose ops are neither listed nor counted.
    """

    file: str
    bytes: int
    ops: tuple[OpRow, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    arena_bytes: int
    float_ops: tuple[str, ...]
    norms: tuple[str, ...]
    foreign_ops: tuple[str, ...]
    computed_shapes: tuple[str, ...]
    loops: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Numbers that the file holds and its ops read."""
        return sum(row.parameters for row in self.ops)

    @property
    def macs(self) -> int:
        """Multiplications and additions of one run."""
        return sum(row.macs for row in self.ops)

    def to_json(self) -> dict[str, Any]:
        """Return the table as nested dictionaries."""
        return {**asdict(self), "parameters": self.parameters, "macs": self.macs}


def file_table(path: str | os.PathLike[str]) -> FileTable:
    """Read a file.

    Args:
        path: A `.tflite` or `.onnx` file.

    Raises:
        UserError: It cannot be read.
    """
    path = Path(path)
    read = read_graph(path, format_of(path))
    graph = with_shapes(read, path, one_sample=True)
    with reading(path, "a network"):
        return _table(path, read, graph)


def _table(path: Path, read: ArtifactGraph, graph: ArtifactGraph) -> FileTable:
    """Return the table of a graph as it was read, and with one sample for a free batch."""
    seen: set[str] = set()
    rows = tuple(_row(op, graph, seen) for op in graph.ops)
    return FileTable(
        file=path.name,
        bytes=path.stat().st_size,
        ops=rows,
        inputs=tuple(_described(read, key) for key in graph.inputs),
        outputs=tuple(_described(read, key) for key in graph.outputs),
        arena_bytes=_arena(graph),
        float_ops=tuple(_float_ops(graph, rows)),
        norms=tuple(_norms(graph)),
        foreign_ops=tuple(map(_named, filter(_is_foreign, graph.ops))),
        computed_shapes=tuple(_named(op) for op in graph.ops if op.kind in _SHAPES),
        loops=tuple(_named(op) for op in graph.ops if op.kind in _LOOPS),
    )


def _float_ops(graph: ArtifactGraph, rows: Sequence[OpRow]) -> Iterator[str]:
    """Yield a sentence for each kind of op that computes in floats in a file of integers."""
    quantized = any(
        (steps := graph.tensors[key].quantization) is not None and steps.dtype.kind in "iu"
        for op in graph.ops
        for key in (*graph.activations(op), *op.outputs)
        if key
    )
    outside = _outside(graph)
    kinds: dict[str, list[OpRow]] = {}
    for row in rows:
        computes = row.kind not in _CONVERSIONS and row.index not in outside
        if quantized and computes and row.precision.startswith("float"):
            kinds.setdefault(row.kind, []).append(row)
    for kind, found in kinds.items():
        why = (
            "quantizers can write it in integers: its tensors have no scales"
            if kind in _INTEGER_KINDS
            else "no integer form of it is known"
        )
        places = ", ".join(str(row.index) for row in found[:_MOST_NAMED])
        more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
        yield f"{kind} (op {places}{more}): {why}"


def _outside(graph: ArtifactGraph) -> set[int]:
    """Return the ops that compute no values of the network.

    These are ops that only move numbers at the beginning or the end of the graph, which an
    application can do instead, and ops that compute shapes.
    """
    found = {op.index for op in graph.ops if op.kind in _SHAPES}
    for ops, ends, starts, gives in (
        (graph.ops, graph.inputs, graph.activations, lambda op: op.outputs),
        (graph.ops[::-1], graph.outputs, lambda op: op.outputs, graph.activations),
    ):
        reached = set(ends)
        for op in ops:
            if op.kind in _MOVING and reached.issuperset(starts(op)):
                found.add(op.index)
                reached.update(gives(op))
    return found


def _row(op: GraphOp, graph: ArtifactGraph, seen: set[str]) -> OpRow:
    """Return the row of one op; a constant that several ops read counts once."""
    constants = [
        key for key in op.inputs if key and graph.tensors[key].data is not None and key not in seen
    ]
    seen.update(constants)
    out = next((key for key in op.outputs if key), "")
    return OpRow(
        index=op.index,
        kind=op.kind,
        name=graph.tensors[out].name if out else op.name,
        shape=graph.tensors[out].shape if out else (),
        parameters=sum(_size(graph, key) for key in constants),
        macs=_macs(op, graph),
        precision=_precision(op, graph),
    )


def _size(graph: ArtifactGraph, key: str) -> int:
    data = graph.tensors[key].data
    if data is None or (data.dtype.kind in "iu" and graph.tensors[key].quantization is None):
        return 0  # sizes and axes are no parameters
    return int(data.size)


def _elements(shape: Sequence[int]) -> int:
    """Return the number of elements of one run; free sizes count once."""
    return int(np.prod([abs(size) for size in shape])) if shape else 1


def _macs(op: GraphOp, graph: ArtifactGraph) -> int:
    """Return the multiplications of one run of an op."""
    if op.kind in _RECURRENT:
        return _recurrent_macs(op, graph)
    place = _KERNEL.get(op.kind, 1)
    keys = [key for key in op.inputs if key]
    if len(keys) <= place or not op.outputs:
        return 0
    kernel = graph.tensors[keys[place]].shape
    output = _elements(graph.tensors[op.outputs[0]].shape)
    if op.kind in _PER_OUTPUT and kernel:
        return output * _PER_OUTPUT[op.kind](kernel)
    if op.kind == "Gemm" and kernel:
        return output * kernel[1 if op.attributes.get("transB") else 0]
    if op.kind == "TRANSPOSE_CONV":  # output shape, kernel (out, K, in), input
        return _elements(graph.tensors[keys[2]].shape) * int(np.prod(kernel[:3]))
    if op.kind == "ConvTranspose":
        return _elements(graph.tensors[keys[0]].shape) * int(np.prod(kernel[1:]))
    return 0


def _recurrent_macs(op: GraphOp, graph: ArtifactGraph) -> int:
    """Return the multiplications of a recurrent op: its matrices, once for each step and sample.

    Its input is (steps, samples, features) or (samples, steps, features). ONNX stacks the matrices
    of both directions on an axis before the others; TFLite has a tensor for each matrix.
    """
    sequence = graph.tensors[op.inputs[0]].shape
    constants = [data for key in op.inputs if key and (data := graph.tensors[key].data) is not None]
    rank = max((data.ndim for data in constants), default=0)
    matrices = sum(data.size for data in constants if data.ndim == rank >= 2)
    return _elements(sequence[:2]) * matrices


def _precision(op: GraphOp, graph: ArtifactGraph) -> str:
    """Return the element type that an op computes in."""
    read = [graph.tensors[key] for key in op.inputs if key]
    computed = [t for t in read if t.data is None] or read
    constants = [t for t in read if t.data is not None and t.data.size > 1]
    if not computed:
        return ""

    def stored(tensor: Any) -> np.dtype:
        return tensor.quantization.dtype if tensor.quantization is not None else tensor.dtype

    kind = stored(computed[0])
    if kind != computed[0].dtype and op.kind not in _CONVERSIONS and not _quantized(op, graph):
        kind = computed[0].dtype  # it reads dequantized integers, and its result is in floats
    weights = {str(stored(t)) for t in constants if stored(t).kind in "iu" and t.quantization}
    if kind.kind == "f" and weights:
        return f"{sorted(weights)[0]} weights"
    return str(kind)


def _quantized(op: GraphOp, graph: ArtifactGraph) -> bool:
    """Return whether an op's result is quantized, directly or after an activation."""
    if graph.tensors[op.outputs[0]].quantization is not None:
        return True
    after = graph.consumers(op.outputs[0])
    return any(
        other.kind == "QuantizeLinear" or (other.kind in _LIMITS and _quantized(other, graph))
        for other in after
    )


def _described(graph: ArtifactGraph, key: str) -> str:
    tensor = graph.tensors[key]
    shape = ", ".join("N" if size < 0 else str(size) for size in tensor.shape)
    return f"{tensor.name} {tensor.dtype} ({shape})"


def _arena(graph: ArtifactGraph) -> int:
    """Return the greatest sum of the sizes of tensors that are alive at a time."""
    last: dict[str, int] = dict.fromkeys(graph.outputs, len(graph.ops))
    for place, op in enumerate(graph.ops):
        for key in op.inputs:
            if key and graph.tensors[key].data is None:
                last[key] = max(last.get(key, 0), place)
    alive = {key for key in graph.inputs if key in last}
    most = sum(_bytes(graph, key) for key in alive)
    for place, op in enumerate(graph.ops):
        alive.update(key for key in op.outputs if key)
        most = max(most, sum(_bytes(graph, key) for key in alive))
        alive = {key for key in alive if last.get(key, -1) > place}
    return most


def _bytes(graph: ArtifactGraph, key: str) -> int:
    tensor = graph.tensors[key]
    return _elements(tensor.shape) * tensor.dtype.itemsize if tensor.shape else 0


def _norms(graph: ArtifactGraph) -> list[str]:
    """Return the ops that multiply and shift each channel, which a fold would have removed."""
    found = []
    for op in graph.ops:
        if op.kind == "BatchNormalization":
            found.append(_named(op))
        if op.kind not in _MULTIPLICATIONS or not _by_channel(op, graph):
            continue
        after = graph.consumers(op.outputs[0])
        shift = next((a for a in after if a.kind in _ADDITIONS and _by_channel(a, graph)), None)
        if shift is not None:
            found.append(f"ops {op.index} ({op.kind}) and {shift.index} ({shift.kind})")
    return found


def _by_channel(op: GraphOp, graph: ArtifactGraph) -> bool:
    """Return whether an op combines a tensor with one number for each channel."""
    constants = [data for key in op.inputs if key and (data := graph.tensors[key].data) is not None]
    return (
        len(constants) == 1
        and constants[0].size > 1
        and (max(constants[0].shape) == constants[0].size)
    )


def _named(op: GraphOp) -> str:
    """Return an op's place and kind in words."""
    return f"op {op.index} ({op.kind})"


def _is_foreign(op: GraphOp) -> bool:
    """Return whether an op is not one of the format: Flex, custom, or from another domain."""
    custom = op.kind == op.kind.lower() or op.kind.startswith("Flex")
    return custom or op.domain not in ("", "ai.onnx")
