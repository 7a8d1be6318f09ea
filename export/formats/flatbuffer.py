"""Finishes a TFLite file: names its tensors, adds metadata, and reads the contents back.

Parsing, packing and signing are shared with the checks (`artifacts/flatbuffer.py`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ...artifacts.flatbuffer import names_of, operator_kind, pack, packed, parse, sign, text
from ...artifacts.manifest import TensorSpec
from ...errors import UserError
from ..signature import unique_names

_TYPE_NAMES = {number: name.lower() for number, name in names_of(schema.TensorType).items()}


def set_interface(
    model: Any,
    inputs: Sequence[str],
    outputs: Sequence[str],
    readable: Callable[[str], str],
) -> None:
    """Name the inputs, the outputs and every other tensor, and add the signature.

    Args:
        model: The parsed file, in which each output is a separate tensor; changed in place.
        inputs: Names of the inputs, in the file's order, which the converter keeps.
        outputs: Names of the outputs, in the file's order.
        readable: Converts the converter's name of an intermediate tensor to the name to write.

    Raises:
        UserError: The converter removed or merged an input or output.
    """
    graph = model.subgraphs[0]
    for kind, indices, names in (
        ("input", graph.inputs, inputs),
        ("output", graph.outputs, outputs),
    ):
        if len(indices) != len(names):
            raise UserError(
                f"The converter left {len(indices)} of {len(names)} {kind}s {list(names)}. "
                f"An {kind} that nothing uses or computes cannot be exported; remove it."
            )
    interface = {int(i): n for i, n in zip(graph.outputs, outputs, strict=True)}
    interface |= {int(i): n for i, n in zip(graph.inputs, inputs, strict=True)}
    # Interface names are taken first, so that an inner tensor never takes one of them.
    order = [*interface, *(i for i in range(len(graph.tensors)) if i not in interface)]
    names = unique_names([interface.get(i) or readable(text(graph.tensors[i].name)) for i in order])
    for index, name in zip(order, names, strict=True):
        graph.tensors[index].name = name.encode()
    sign(
        model,
        [(name, int(index)) for name, index in zip(inputs, graph.inputs, strict=True)],
        [(name, int(index)) for name, index in zip(outputs, graph.outputs, strict=True)],
    )


def set_metadata(model: Any, entries: Mapping[str, bytes], description: str) -> None:
    """Replace the file's description and add named metadata buffers, in the order given."""
    model.description = description.encode()
    model.metadata = list(model.metadata or [])
    for name, content in entries.items():
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(content, np.uint8)
        entry = schema.MetadataT()
        entry.name, entry.buffer = name.encode(), len(model.buffers)
        model.buffers.append(buffer)
        model.metadata.append(entry)


def get_metadata(model: Any) -> dict[str, bytes]:
    """Return the file's named metadata buffers."""
    return {
        text(entry.name): b""
        if model.buffers[entry.buffer].data is None
        else bytes(bytearray(model.buffers[entry.buffer].data))
        for entry in model.metadata or []
    }


@dataclasses.dataclass(frozen=True)
class Content:
    """The contents of a TFLite file, as read back.

    Attributes:
        ops: Operator names (`CONV_2D`, or the name of a custom operator) with their number.
        inputs: The inputs, in file order.
        outputs: The outputs, in file order.
        signature_inputs: Name in the signature to name of the tensor.
        signature_outputs: Name in the signature to name of the tensor.
    """

    ops: dict[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    signature_inputs: dict[str, str]
    signature_outputs: dict[str, str]


def content_of(model: Any) -> Content:
    """Return operators, interface and signature of the main subgraph of a parsed file."""
    graph = model.subgraphs[0]
    ops = Counter(
        operator_kind(model, operator)
        for subgraph in model.subgraphs
        for operator in subgraph.operators or []
    )
    names = [text(tensor.name) for tensor in graph.tensors]
    signature = (model.signatureDefs or [None])[0]
    return Content(
        ops=dict(ops),
        inputs=tuple(_tensor_info(graph.tensors[i]) for i in graph.inputs),
        outputs=tuple(_tensor_info(graph.tensors[i]) for i in graph.outputs),
        signature_inputs={text(m.name): names[m.tensorIndex] for m in signature.inputs}
        if signature
        else {},
        signature_outputs={text(m.name): names[m.tensorIndex] for m in signature.outputs}
        if signature
        else {},
    )


def _tensor_info(tensor: Any) -> TensorSpec:
    free = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    scale = zero_point = None
    quantization = tensor.quantization
    if quantization is not None and quantization.scale is not None and len(quantization.scale):
        scale, zero_point = float(quantization.scale[0]), int(quantization.zeroPoint[0])
    return TensorSpec(
        text(tensor.name),
        tuple(None if size < 0 else int(size) for size in (free if free is not None else ())),
        _TYPE_NAMES[tensor.type],
        scale=scale,
        zero_point=zero_point,
    )


__all__ = [
    "Content",
    "content_of",
    "get_metadata",
    "pack",
    "packed",
    "parse",
    "schema",
    "set_interface",
    "set_metadata",
]
