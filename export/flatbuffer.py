"""A TFLite file as objects: read it, name its tensors, add a signature and metadata, write it.

Uses the schema's generated object API that ships with ai-edge-litert, so TensorFlow is not needed.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ..errors import UserError
from .manifest import TensorInfo
from .signature import unique_names

SIGNATURE_KEY = "serving_default"
_BUFFER_ALIGNMENT = 16  # `force_align` of Buffer.data in the schema; kernels map weights in place


def _names_of(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


_OPERATOR_NAMES = _names_of(schema.BuiltinOperator)
_TYPE_NAMES = {number: name.lower() for number, name in _names_of(schema.TensorType).items()}


class _AlignedBuilder(flatbuffers.Builder):
    """A builder that aligns byte vectors as the schema demands.

    The generated Python code forgets `force_align`: weights would land on odd addresses, which
    microcontrollers that read them in place answer with a fault.
    """

    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> int:  # noqa: N802, N803
        if elemSize == 1:
            alignment = _BUFFER_ALIGNMENT
        offset: int = super().StartVector(elemSize, numElems, alignment)
        return offset


def parse(data: bytes) -> Any:
    """Return the file's content as a `schema.ModelT`.

    Raises:
        UserError: `data` is not a TFLite file.
    """
    if data[4:8] != b"TFL3":
        raise UserError("Expected a TFLite file. Received: a file without the mark 'TFL3'.")
    return schema.ModelT.InitFromPackedBuf(bytearray(data), 0)


def pack(model: Any) -> bytes:
    """Return the bytes of the file that holds `model`, buffers aligned to 16 bytes."""
    size = sum(0 if buffer.data is None else len(buffer.data) for buffer in model.buffers)
    builder = _AlignedBuilder(size + (1 << 16))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def set_interface(
    model: Any,
    inputs: Sequence[str],
    outputs: Sequence[str],
    readable: Callable[[str], str],
) -> None:
    """Name the inputs, the outputs and every other tensor, and add the signature.

    Args:
        model: The parsed file, each output a tensor of its own; changed in place.
        inputs: Names for the inputs, in the file's order, which the converter keeps.
        outputs: Names for the outputs, in the file's order.
        readable: From the converter's name of an inner tensor to the one to write.

    Raises:
        UserError: The converter dropped or merged an input or output.
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
    names = unique_names(
        [interface.get(i) or readable(_text(graph.tensors[i].name)) for i in order]
    )
    for index, name in zip(order, names, strict=True):
        graph.tensors[index].name = name.encode()
    model.signatureDefs = [
        _signature(
            [(name, int(index)) for name, index in zip(inputs, graph.inputs, strict=True)],
            [(name, int(index)) for name, index in zip(outputs, graph.outputs, strict=True)],
        )
    ]


def _signature(inputs: Sequence[tuple[str, int]], outputs: Sequence[tuple[str, int]]) -> Any:
    definition = schema.SignatureDefT()
    definition.signatureKey = SIGNATURE_KEY.encode()
    definition.subgraphIndex = 0
    definition.inputs = [_tensor_map(*pair) for pair in inputs]
    definition.outputs = [_tensor_map(*pair) for pair in outputs]
    return definition


def _tensor_map(name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), index
    return entry


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
        _text(entry.name): b""
        if model.buffers[entry.buffer].data is None
        else bytes(bytearray(model.buffers[entry.buffer].data))
        for entry in model.metadata or []
    }


@dataclasses.dataclass(frozen=True)
class Content:
    """What a TFLite file holds, as read back.

    Attributes:
        ops: Operator names (`CONV_2D`; custom ones by their own name) and their number.
        inputs: In file order.
        outputs: In file order.
        signature_inputs: Name to tensor name, of the signature.
        signature_outputs: Name to tensor name, of the signature.
    """

    ops: dict[str, int]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    signature_inputs: dict[str, str]
    signature_outputs: dict[str, str]


def content_of(model: Any) -> Content:
    """Read operators, interface and signature of a parsed file (main subgraph's interface)."""
    graph = model.subgraphs[0]
    ops = Counter(
        operator_name(model.operatorCodes[operator.opcodeIndex])
        for subgraph in model.subgraphs
        for operator in subgraph.operators or []
    )
    names = [_text(tensor.name) for tensor in graph.tensors]
    signature = (model.signatureDefs or [None])[0]
    return Content(
        ops=dict(ops),
        inputs=tuple(_tensor_info(graph.tensors[i]) for i in graph.inputs),
        outputs=tuple(_tensor_info(graph.tensors[i]) for i in graph.outputs),
        signature_inputs={_text(m.name): names[m.tensorIndex] for m in signature.inputs}
        if signature
        else {},
        signature_outputs={_text(m.name): names[m.tensorIndex] for m in signature.outputs}
        if signature
        else {},
    )


def operator_name(code: Any) -> str:
    """Return the name of an operator code: `CONV_2D`, or a custom operator's own."""
    # Files written for old runtimes carry the code in the deprecated 8-bit field.
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    if number == schema.BuiltinOperator.CUSTOM:
        return _text(code.customCode)
    return _OPERATOR_NAMES[number]


def _tensor_info(tensor: Any) -> TensorInfo:
    free = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    scale = zero_point = None
    quantization = tensor.quantization
    if quantization is not None and quantization.scale is not None and len(quantization.scale):
        scale, zero_point = float(quantization.scale[0]), int(quantization.zeroPoint[0])
    return TensorInfo(
        _text(tensor.name),
        tuple(None if size < 0 else int(size) for size in (free if free is not None else ())),
        _TYPE_NAMES[tensor.type],
        scale=scale,
        zero_point=zero_point,
    )


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else (value or "")
