"""Reads the graph of a .tflite file; the key of a tensor is its index.

The accessors generated from TFLite's schema read in place. (Its object API creates an object for
every table and a list for every vector, which takes longer than running a small network on thirty
samples.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...extras import missing_package
from .base import ArtifactGraph, GraphOp, GraphTensor, Quantization
from .soundness import demand_bounded_tensors

_MARK = b"TFL3"
# Bits of each number of a packed type, by TensorType: INT4, INT2.
_PACKED = {17: 4, 19: 2}
# End of the names of options that refer to a subgraph.
_SUBGRAPH = "SubgraphIndex"
# TensorType; packed numbers are unpacked to eight bits.
_DTYPES = {
    0: "float32",
    1: "float16",
    2: "int32",
    3: "uint8",
    4: "int64",
    6: "bool",
    7: "int16",
    9: "int8",
    10: "float64",
    12: "uint64",
    15: "uint32",
    16: "uint16",
    **dict.fromkeys(_PACKED, "int8"),
}


def read(path: Path, data: bytes, *, bounded: bool) -> ArtifactGraph:
    """Return the main subgraph of a .tflite file; of a damaged one, any exception.

    Args:
        path: The file.
        data: Its contents.
        bounded: Whether the sizes of its tensors are limited.

    Raises:
        MissingPackageError: ai-edge-litert is not installed.
    """
    if data[4:8] != _MARK:
        raise ValueError("it lacks the mark TFL3")
    model = _schema().Model.GetRootAs(data)
    graph = _graph(model, 0)
    if bounded:
        tensors = graph.tensors
        demand_bounded_tensors(path, len(data), tensors, graph.inputs, tensors.values())
    return replace(
        graph,
        metadata=_metadata(model),
        signature=_signature(model),
        signatures=tuple(_text(signature.SignatureKey()) for signature in _signatures(model)),
        inner_constants=tuple(_inner_constants(model)),
    )


def _graph(model: Any, number: int) -> ArtifactGraph:
    """Return a subgraph; the keys of tensors are indices, after the number of an inner graph."""
    graph, prefix = model.Subgraphs(number), f"{number}:" if number else ""
    tensors = {
        f"{prefix}{index}": _tensor(f"{prefix}{index}", graph.Tensors(index), model)
        for index in range(graph.TensorsLength())
    }
    return ArtifactGraph(
        tensors=tensors,
        inputs=_keys(graph.InputsAsNumpy(), prefix),
        outputs=_keys(graph.OutputsAsNumpy(), prefix),
        read_ops=functools.partial(_ops, model, graph, tensors, prefix),
        read_inner=functools.partial(_inner_graphs, model, graph),
    )


def _inner_graphs(model: Any, graph: Any) -> dict[int, list[tuple[str, ArtifactGraph]]]:
    """Return the subgraphs that the loops and branches of a subgraph run."""
    found = {}
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        options = _options(operator.BuiltinOptionsType(), operator.BuiltinOptions())
        numbers = {key: n for key, n in options.items() if key.endswith(_SUBGRAPH)}
        if numbers:
            found[index] = [
                (key.removesuffix(_SUBGRAPH), _graph(model, n)) for key, n in numbers.items()
            ]
    return found


def _schema() -> Any:
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise missing_package(error, "Reading a .tflite file") or error from error
    return schema


def _signature(model: Any) -> dict[str, str]:
    """Return the names of inputs and outputs in the main subgraph's signature, by their keys."""
    for signature in _signatures(model):
        if signature.SubgraphIndex() == 0:
            entries = [
                *(signature.Inputs(place) for place in range(signature.InputsLength())),
                *(signature.Outputs(place) for place in range(signature.OutputsLength())),
            ]
            return {str(entry.TensorIndex()): _text(entry.Name()) for entry in entries}
    return {}


def _signatures(model: Any) -> list[Any]:
    """Return the signatures, that of the main subgraph first."""
    found = [model.SignatureDefs(place) for place in range(model.SignatureDefsLength())]
    return sorted(found, key=lambda signature: int(signature.SubgraphIndex()))


def _inner_constants(model: Any) -> Iterator[GraphTensor]:
    """Yield the constants of all subgraphs but the main one."""
    for number in range(1, model.SubgraphsLength()):
        graph = model.Subgraphs(number)
        for index in range(graph.TensorsLength()):
            tensor = _tensor(f"{number}:{index}", graph.Tensors(index), model)
            if tensor.data is not None:
                yield tensor


def _metadata(model: Any) -> dict[str, str]:
    """Return the file's metadata as text."""
    entries = [model.Metadata(place) for place in range(model.MetadataLength())]
    return {
        _text(entry.Name()): _vector(model.Buffers(entry.Buffer()).DataAsNumpy(), "u1")
        .tobytes()
        .decode(errors="replace")
        for entry in entries
    }


def _keys(indices: Any, prefix: str) -> tuple[str, ...]:
    """Return tensor indices as keys; empty for an optional input that is absent."""
    return tuple(f"{prefix}{i}" if i >= 0 else "" for i in _vector(indices, "i4").tolist())


def _vector(values: Any, dtype: str) -> np.ndarray:
    """Return a vector of the schema as an array; the accessors return 0 for a missing one."""
    return values if isinstance(values, np.ndarray) else np.empty(0, dtype)


def _ops(
    model: Any, graph: Any, tensors: Mapping[str, GraphTensor], prefix: str
) -> tuple[GraphOp, ...]:
    """Return the operators of a subgraph."""
    kinds = [_kind(model.OperatorCodes(i)) for i in range(model.OperatorCodesLength())]
    ops = []
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        outputs = _keys(operator.OutputsAsNumpy(), prefix)
        ops.append(
            GraphOp(
                index=index,
                kind=kinds[operator.OpcodeIndex()],
                name=tensors[outputs[0]].name if outputs else "",
                inputs=_keys(operator.InputsAsNumpy(), prefix),
                outputs=outputs,
                attributes=_options(operator.BuiltinOptionsType(), operator.BuiltinOptions()),
            )
        )
    return tuple(ops)


@functools.cache
def _operator_names() -> dict[int, str]:
    return {number: name for name, number in vars(_schema().BuiltinOperator).items()}


def _kind(code: Any) -> str:
    """Return the name of an operator code's operator."""
    # Files written for old runtimes carry the code in the deprecated 8-bit field.
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    return _text(code.CustomCode()) or _operator_names()[number]


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")


def _options(union: int, table: Any) -> dict[str, Any]:
    """Return an operator's options that are plain values, by the names of the schema."""
    if table is None:
        return {}
    options = _option_classes()[union].InitFromBuf(table.Bytes, table.Pos)
    return {
        key: value
        for key, value in vars(options).items()
        if isinstance(value, (int, float, bool, str))
    }


@functools.cache
def _option_classes() -> dict[int, Any]:
    """Return the class of each kind of options, by its number in the union.

    The schema's `BuiltinOptionsCreator` compares the number with each of 126 kinds in turn.
    """
    schema = _schema()
    kinds = vars(schema.BuiltinOptions).items()
    return {n: getattr(schema, f"{name}T") for name, n in kinds if hasattr(schema, f"{name}T")}


def _tensor(key: str, tensor: Any, model: Any) -> GraphTensor:
    """Return one tensor; a constant's numbers are a view of the file."""
    number = tensor.Type()
    shape = tuple(_vector(tensor.ShapeAsNumpy(), "i4").tolist())
    dtype = np.dtype(_DTYPES.get(number, "uint8"))
    raw = _vector(model.Buffers(tensor.Buffer()).DataAsNumpy(), "u1")
    data: np.ndarray | None = None
    if raw.size and number in _DTYPES:
        bits, sparsity = _PACKED.get(number), tensor.Sparsity()
        data = raw.view(dtype) if bits is None else _unpacked(raw, shape, bits)
        if sparsity is None:
            # A converter may leave bytes behind the numbers, which runtimes do not read.
            data = data[: math.prod(shape)].reshape(shape)
        else:
            data = _dense(data, sparsity, shape)
    return GraphTensor(
        key=key,
        name=_text(tensor.Name()),
        shape=shape,
        dtype=dtype,
        # Some converters keep the calibrated ranges of floats there.
        quantization=None if dtype.kind == "f" else _quantization(tensor.Quantization(), dtype),
        data=data,
    )


def _quantization(steps: Any, dtype: np.dtype) -> Quantization | None:
    """Return the quantization of a tensor; None if it has no scale."""
    scales = _vector(None if steps is None else steps.ScaleAsNumpy(), "f4")
    if not scales.size:
        return None
    points = _vector(steps.ZeroPointAsNumpy(), "i8")
    return Quantization(scales.astype(np.float64), points.copy(), dtype, steps.QuantizedDimension())


def _dense(values: np.ndarray, sparsity: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Convert a sparse tensor to a dense one; return None if it is stored in blocks.

    Each axis is either dense or compressed: for each position on the axes before it, the range of
    its entries and their indices. Source: TFLite, `schema.fbs`, `SparsityParameters`.
    """
    if sparsity.BlockMapLength():
        return None
    creator = _schema().SparseIndexVectorCreator
    places = np.zeros((1, 0), int)
    for level in range(sparsity.DimMetadataLength()):
        axis = sparsity.DimMetadata(level)
        if axis.Format() == 0:
            size = axis.DenseSize()
            counts, indices = np.full(len(places), size), np.tile(np.arange(size), len(places))
        else:
            ends = creator(axis.ArraySegmentsType(), axis.ArraySegments()).values
            counts = np.diff(np.asarray(ends, int))
            indices = np.asarray(creator(axis.ArrayIndicesType(), axis.ArrayIndices()).values, int)
        places = np.concatenate([np.repeat(places, counts, axis=0), indices[:, None]], axis=1)
    found = np.zeros(shape, values.dtype)
    order = sparsity.TraversalOrderAsNumpy()
    found[tuple(places[:, level] for level in np.argsort(order))] = values
    return found


def _unpacked(raw: np.ndarray, shape: tuple[int, ...], bits: int) -> np.ndarray:
    """Return signed numbers of a few bits each, the lowest bits first, as int8."""
    parts = [(raw >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    numbers = np.stack(parts, axis=-1).reshape(-1)[: int(np.prod(shape))].astype(np.int8)
    sign = 2 ** (bits - 1)
    return np.asarray((numbers ^ sign) - sign, np.int8)
