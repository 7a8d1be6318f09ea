"""The contents of a .tflite or .onnx file: every op with shapes, parameters, MACs and precision.

Read from the file alone; nothing is run, and neither TensorFlow nor Keras is needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts.graphs import format_of, read_graph, reading, with_shapes
from ..artifacts.graphs.base import ArtifactGraph, GraphOp
from ..reference.integer.onnx_moving import MOVING
from ..reference.integer.onnx_ops import FUSED
from ..reference.integer.tflite_moving import MOVING_OPS
from ..reference.integer.tflite_ops import INTEGER_OPS
from .loop_steps import LOOPS, loop_steps

# Activations that runtimes compute as a limit of the integers before them.
_LIMITS = ("Relu", "Clip")
_INTEGER_KINDS = frozenset({*INTEGER_OPS, *FUSED, *MOVING})
_MOVING = frozenset({*MOVING, *MOVING_OPS})
_SHAPES = ("SHAPE", "Shape")
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
        where: The graph inside a loop or branch that it belongs to; empty for the main graph.
        times: How often it is counted: the steps of its loop, or one if they are not known.
    """

    index: int
    kind: str
    name: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    precision: str
    where: str = ""
    times: int = 1


@dataclass(frozen=True)
class _Part:
    """A graph of a file.

    Attributes:
        graph: The graph.
        where: The loop or branch that runs it; empty for the main graph.
        times: How often it is counted.
        arena_bytes: Peak total size of the tensors that are alive at the same time.
        loops: Name of each of its loops to how often it runs, None if unknown.
        branches: Names of its ops that run one of several graphs.
    """

    graph: ArtifactGraph
    where: str
    times: int
    arena_bytes: int
    loops: Mapping[str, int | None]
    branches: Sequence[str]


@dataclass(frozen=True)
class FileTable:
    """A file as a table.

    Attributes:
        file: Its name.
        bytes: Its size.
        ops: Every op, in the order they run; those of loops and branches after all others.
        inputs: Name, type and shape of each input.
        outputs: The same of each output.
        arena_bytes: Peak total size of the tensors that are alive at the same time.
        float_ops: Ops that compute in floats although others compute in integers, which
            integer-only hardware cannot run: a sentence for each kind, with the reason.
        norms: Ops that remain of a norm: a factor and a shift for each channel.
        foreign_ops: Ops outside the format's standard set (Flex, custom, other domains).
        computed_shapes: Ops that compute shapes at run time, which delegates do not accept.
        loops: Ops that run graphs of their own, and how often these are counted.
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
        return sum(row.macs * row.times for row in self.ops)

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
    read = read_graph(path, format_of(path)).as_filed
    graph = with_shapes(read, path, one_sample=True)
    with reading(path, "a network"):
        return _table(path, read, graph)


def _table(path: Path, read: ArtifactGraph, graph: ArtifactGraph) -> FileTable:
    """Return the table of a graph as it was read, and with one sample for a free batch."""
    parts = _parts(graph)
    seen: set[int] = set()
    rows = tuple(_row(op, part, seen) for part in parts for op in part.graph.ops)
    main = tuple(row for row in rows if not row.where)

    def each(matches: Callable[[GraphOp], bool]) -> tuple[str, ...]:
        return tuple(_named(op, p.where) for p in parts for op in p.graph.ops if matches(op))

    return FileTable(
        file=path.name,
        bytes=path.stat().st_size,
        ops=rows,
        inputs=tuple(_described(read, key) for key in graph.inputs),
        outputs=tuple(_described(read, key) for key in graph.outputs),
        arena_bytes=parts[0].arena_bytes,
        float_ops=tuple(_float_ops(graph, main)),
        norms=tuple(norm for part in parts for norm in _norms(part)),
        foreign_ops=each(_is_foreign),
        computed_shapes=each(lambda op: op.kind in _SHAPES),
        loops=tuple(_loops(parts)),
    )


def _parts(graph: ArtifactGraph, where: str = "", times: int = 1) -> list[_Part]:
    """Return a graph and those of its loops and branches."""
    inner: list[_Part] = []
    held: dict[int, int] = {}
    loops: dict[str, int | None] = {}
    branches: list[str] = []
    graphs = graph.read_inner()
    for op in (op for op in graph.ops if op.index in graphs):
        name = _named(op)
        if op.kind in LOOPS:
            loops[name] = loop_steps(op, graph, dict(graphs[op.index]))
        else:
            branches.append(name)
        for role, entry in graphs[op.index]:
            place = f"{where} > " if where else ""
            place += f"{name} {role.removesuffix('_branch')}"
            found = _parts(entry, place, times * (loops.get(name) or 1))
            held[op.index] = max(held.get(op.index, 0), found[0].arena_bytes)
            inner += found
    return [_Part(graph, where, times, _arena(graph, held), loops, branches), *inner]


def _loops(parts: Sequence[_Part]) -> Iterator[str]:
    """Yield how often the graphs of each loop are counted, and a sentence about branches."""
    for part in parts:
        for name, steps in part.loops.items():
            place = f"{name}{_inside(part.where)}"
            if steps is None:
                yield f"{place}: counted once, its number of steps is computed at run time"
            else:
                yield f"{place}: counted {steps} times"
    branches = [name for part in parts for name in part.branches]
    if branches:
        more = f" and {len(branches) - 1} more" if len(branches) > 1 else ""
        yield f"{branches[0]}{more}: every branch is counted"


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


def _row(op: GraphOp, part: _Part, seen: set[int]) -> OpRow:
    """Return the row of one op; a constant that several ops read counts once."""
    graph = part.graph
    constants = [
        key
        for key in op.inputs
        if key and (data := graph.tensors[key].data) is not None and id(data) not in seen
    ]
    seen.update(id(graph.tensors[key].data) for key in constants)
    out = next((key for key in op.outputs if key), "")
    return OpRow(
        index=op.index,
        kind=op.kind,
        name=graph.tensors[out].name if out else op.name,
        shape=graph.tensors[out].shape if out else (),
        parameters=sum(_size(graph, key) for key in constants),
        macs=_macs(op, graph),
        precision=_precision(op, graph),
        where=part.where,
        times=part.times,
    )


def _size(graph: ArtifactGraph, key: str) -> int:
    data = graph.tensors[key].data
    if data is None or (data.dtype.kind in "iub" and graph.tensors[key].quantization is None):
        return 0  # sizes, axes and conditions are not parameters
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


def _arena(graph: ArtifactGraph, held: Mapping[int, int]) -> int:
    """Return the greatest sum of the sizes of tensors that are alive at a time.

    Args:
        graph: The graph.
        held: Bytes that the graphs of a loop or branch need while they run, by the op's index.
    """
    last: dict[str, int] = dict.fromkeys(graph.outputs, len(graph.ops))
    for place, op in enumerate(graph.ops):
        for key in op.inputs:
            if key and graph.tensors[key].data is None:
                last[key] = max(last.get(key, 0), place)
    alive = {key for key in graph.inputs if key in last}
    most = sum(_bytes(graph, key) for key in alive)
    for place, op in enumerate(graph.ops):
        alive.update(key for key in op.outputs if key)
        most = max(most, sum(_bytes(graph, key) for key in alive) + held.get(op.index, 0))
        alive = {key for key in alive if last.get(key, -1) > place}
    return most


def _bytes(graph: ArtifactGraph, key: str) -> int:
    tensor = graph.tensors[key]
    return _elements(tensor.shape) * tensor.dtype.itemsize if tensor.shape else 0


def _norms(part: _Part) -> list[str]:
    """Return the ops that multiply and shift each channel, which a fold would have removed."""
    graph, found = part.graph, []
    for op in graph.ops:
        if op.kind == "BatchNormalization":
            found.append(_named(op, part.where))
        if op.kind not in _MULTIPLICATIONS or not _by_channel(op, graph):
            continue
        after = graph.consumers(op.outputs[0])
        shift = next((a for a in after if a.kind in _ADDITIONS and _by_channel(a, graph)), None)
        if shift is not None:
            pair = f"ops {op.index} ({op.kind}) and {shift.index} ({shift.kind})"
            found.append(f"{pair}{_inside(part.where)}")
    return found


def _by_channel(op: GraphOp, graph: ArtifactGraph) -> bool:
    """Return whether an op combines a tensor with one number for each channel."""
    constants = [data for key in op.inputs if key and (data := graph.tensors[key].data) is not None]
    return (
        len(constants) == 1
        and constants[0].size > 1
        and (max(constants[0].shape) == constants[0].size)
    )


def _named(op: GraphOp, where: str = "") -> str:
    """Return an op's place and kind in words."""
    return f"op {op.index} ({op.kind}){_inside(where)}"


def _inside(where: str) -> str:
    """Return a phrase that names the graph of a loop or branch; empty for the main graph."""
    return f" in {where}" if where else ""


def _is_foreign(op: GraphOp) -> bool:
    """Return whether an op is not one of the format: Flex, custom, or from another domain."""
    custom = op.kind == op.kind.lower() or op.kind.startswith("Flex")
    return custom or op.domain not in ("", "ai.onnx")
