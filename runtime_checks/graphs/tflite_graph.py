"""Reads the graph of a .tflite file; the key of a tensor is its index.

Field numbers are those of TFLite's schema (`schema.fbs`), which only ever appends to a table.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ...files import mapped
from .base import ArtifactGraph, GraphOp, GraphTensor, Quantization
from .flat_table import Buffer, FlatTable

_MARK = b"TFL3"
_INT4 = 17
# TensorType; four-bit numbers are unpacked to eight.
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
    _INT4: "int8",
}

# Model
_OPERATOR_CODES, _SUBGRAPHS, _BUFFERS = 1, 2, 4
# SubGraph
_TENSORS, _INPUTS, _OUTPUTS, _OPERATORS = 0, 1, 2, 3


def read(path: Path) -> ArtifactGraph:
    """Return the main subgraph of a .tflite file.

    Raises:
        UserError: The file is damaged.
    """
    data = mapped(path)
    return _reading(path, lambda: _graph(data, path))


def _reading(path: Path, action: Callable[[], Any]) -> Any:
    """Run a part of the reading; whatever a damaged file leads to becomes one sentence."""
    try:
        return action()
    except (ValueError, IndexError, KeyError, struct.error, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a TFLite file: {error}") from error


def _graph(data: Buffer, path: Path) -> ArtifactGraph:
    if data[4:8] != _MARK:
        raise ValueError("it lacks the mark TFL3")
    model = FlatTable.root(data)
    main = model.tables(_SUBGRAPHS)[0]
    buffers = model.tables(_BUFFERS)
    tensors = {
        str(index): _tensor(str(index), table, buffers)
        for index, table in enumerate(main.tables(_TENSORS))
    }
    return ArtifactGraph(
        tensors=tensors,
        inputs=_keys(main, _INPUTS),
        outputs=_keys(main, _OUTPUTS),
        read_ops=lambda: _reading(path, functools.partial(_ops, model, main, tensors)),
    )


def _keys(table: FlatTable, field: int) -> tuple[str, ...]:
    """Return tensor indices as keys; empty for an optional input that is absent."""
    return tuple(str(index) if index >= 0 else "" for index in table.vector(field, "i4").tolist())


def _ops(
    model: FlatTable, main: FlatTable, tensors: Mapping[str, GraphTensor]
) -> tuple[GraphOp, ...]:
    """Return the operators of a subgraph."""
    kinds = [_kind(code) for code in model.tables(_OPERATOR_CODES)]
    ops = []
    for index, table in enumerate(main.tables(_OPERATORS)):
        outputs = _keys(table, 2)
        ops.append(
            GraphOp(
                index=index,
                kind=kinds[table.number(0, "I")],
                name=tensors[outputs[0]].name if outputs else "",
                inputs=_keys(table, 1),
                outputs=outputs,
                attributes=_options(table.number(3, "B"), table.table(4)),
            )
        )
    return tuple(ops)


def _schema() -> Any:
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise UserError(
            "Reading the ops of a .tflite file needs ai-edge-litert. "
            "Install it: pip install ai-edge-litert"
        ) from error
    return schema


@functools.cache
def _operator_names() -> dict[int, str]:
    return {number: name for name, number in vars(_schema().BuiltinOperator).items()}


def _kind(code: FlatTable) -> str:
    """Return what an operator code calls its operator."""
    # Files written for old runtimes carry the code in the deprecated 8-bit field.
    number = max(code.number(3, "i"), code.number(0, "b"))
    return code.text(1) or _operator_names()[number]


def _options(union: int, table: FlatTable | None) -> dict[str, Any]:
    """Return an operator's options that are plain values, by the names of the schema."""
    if table is None:
        return {}
    from flatbuffers.table import Table

    options = _schema().BuiltinOptionsCreator(union, Table(table.data, table.position))
    return {
        key: value
        for key, value in vars(options).items()
        if isinstance(value, (int, float, bool, str))
    }


def _tensor(key: str, table: FlatTable, buffers: Any) -> GraphTensor:
    """Return one tensor; a constant's numbers are a view of the file."""
    number = table.number(1, "b")
    shape = tuple(table.vector(0, "i4").tolist())
    dtype = np.dtype(_DTYPES.get(number, "uint8"))
    raw = buffers[table.number(2, "I")].vector(0, "u1")
    data: np.ndarray | None = None
    if raw.size and number in _DTYPES:
        data = _unpacked_int4(raw, shape) if number == _INT4 else raw.view(dtype)
        data = data.reshape(shape)
    return GraphTensor(
        key=key,
        name=table.text(3),
        shape=shape,
        dtype=dtype,
        quantization=_quantization(table.table(4), dtype),
        data=data,
    )


def _quantization(table: FlatTable | None, dtype: np.dtype) -> Quantization | None:
    """Return how a tensor's integers stand for numbers; None where it has no scale."""
    scales = None if table is None else table.vector(2, "f4")
    if table is None or scales is None or not scales.size:
        return None
    return Quantization(
        scales.astype(np.float64), table.vector(3, "i8").copy(), dtype, table.number(6, "i")
    )


def _unpacked_int4(raw: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return four-bit numbers, low half first, as int8."""
    halves = np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1)[: int(np.prod(shape))]
    return np.asarray(((halves.astype(np.int8) ^ 8) - 8), np.int8)
