"""Reads the graph of a .tflite file with LiteRT's schema; the key of a tensor is its index."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from .base import ArtifactGraph, GraphOp, GraphTensor, Quantization

_DTYPES = {
    "FLOAT32": "float32",
    "FLOAT16": "float16",
    "FLOAT64": "float64",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "INT4": "int8",
    "UINT32": "uint32",
}


def read(path: Path) -> ArtifactGraph:
    """Return the main subgraph of a .tflite file.

    Raises:
        UserError: The file is damaged, or LiteRT is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise UserError(
            "Reading the ops of a .tflite file needs ai-edge-litert. "
            "Install it: pip install ai-edge-litert"
        ) from error
    data = path.read_bytes()
    try:
        if data[4:8] != b"TFL3":
            raise ValueError("it lacks the mark TFL3")
        model = schema.ModelT.InitFromPackedBuf(bytearray(data), 0)
        return _graph(model, schema)
    except (ValueError, IndexError, struct.error, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a TFLite file: {error}") from error


def _graph(model: Any, schema: Any) -> ArtifactGraph:
    main = model.subgraphs[0]
    types = {number: name for name, number in vars(schema.TensorType).items() if name.isupper()}
    codes = {number: name for name, number in vars(schema.BuiltinOperator).items()}
    tensors = [
        _tensor(index, tensor, model.buffers, types[tensor.type])
        for index, tensor in enumerate(main.tensors)
    ]
    ops = []
    for index, op in enumerate(main.operators):
        code = model.operatorCodes[op.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        outputs = tuple(str(i) for i in op.outputs)
        options = vars(op.builtinOptions) if op.builtinOptions is not None else {}
        ops.append(
            GraphOp(
                index=index,
                kind=code.customCode.decode() if code.customCode else codes[number],
                name=tensors[op.outputs[0]].name if len(op.outputs) else "",
                inputs=tuple(str(i) if i >= 0 else "" for i in op.inputs),
                outputs=outputs,
                attributes={
                    key: value
                    for key, value in options.items()
                    if isinstance(value, (int, float, bool, str))
                },
            )
        )
    return ArtifactGraph(
        tensors={tensor.key: tensor for tensor in tensors},
        ops=tuple(ops),
        inputs=tuple(str(i) for i in main.inputs),
        outputs=tuple(str(i) for i in main.outputs),
    )


def _tensor(index: int, tensor: Any, buffers: Any, type_name: str) -> GraphTensor:
    shape = tuple(int(size) for size in tensor.shape) if tensor.shape is not None else ()
    dtype = np.dtype(_DTYPES.get(type_name, "uint8"))
    data = buffers[tensor.buffer].data
    constant: np.ndarray | None = None
    if data is not None and len(data) and type_name in _DTYPES:
        raw = np.frombuffer(np.asarray(data, np.uint8).tobytes(), np.uint8)
        constant = _unpacked_int4(raw, shape) if type_name == "INT4" else raw.view(dtype)
        constant = constant.reshape(shape)
    quantization = tensor.quantization
    scale = None if quantization is None else quantization.scale
    return GraphTensor(
        key=str(index),
        name=tensor.name.decode() if tensor.name else "",
        shape=shape,
        dtype=dtype,
        quantization=None
        if scale is None or not len(scale)
        else Quantization(
            np.asarray(scale, np.float64),
            np.asarray(quantization.zeroPoint, np.int64),
            dtype,
            int(quantization.quantizedDimension),
        ),
        data=constant,
    )


def _unpacked_int4(raw: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return four-bit numbers, low half first, as int8."""
    halves = np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1)[: int(np.prod(shape))]
    return np.asarray(((halves.astype(np.int8) ^ 8) - 8), np.int8)
