"""Reads, changes and writes TFLite files as objects.

Uses the schema's generated object API in ai-edge-litert, so TensorFlow is not needed. The exporter
finishes its files with it, and the reproducer cuts single operators out of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ..errors import UserError

MARK = b"TFL3"
SIGNATURE_KEY = "serving_default"
_BUFFER_ALIGNMENT = 16  # `force_align` of Buffer.data in the schema; kernels read weights in place


def names_of(enumeration: type) -> dict[int, str]:
    """Return number to name of one of the schema's enumerations."""
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


_OPERATOR_NAMES = names_of(schema.BuiltinOperator)
_GREATEST_DEPRECATED = schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES


class _AlignedBuilder(flatbuffers.Builder):
    """A builder that aligns byte vectors as the schema requires.

    The generated Python code ignores `force_align`: weights could have odd addresses, which causes
    faults on microcontrollers that read them in place.
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
    if data[4:8] != MARK:
        raise UserError("Expected a TFLite file. Received: a file without the mark 'TFL3'.")
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    for buffer in model.buffers or ():
        _bring_in(buffer, data)
    return model


def _bring_in(buffer: Any, data: bytes) -> None:
    """Load the bytes of a buffer that is stored after the flatbuffer, as in large files.

    Raises:
        UserError: It would lie outside the file.
    """
    if buffer.offset <= 1 or not buffer.size:  # the schema reserves 0 and 1 for "not there"
        return
    end = buffer.offset + buffer.size
    if end > len(data):
        raise UserError(
            f"Expected a whole TFLite file. Received: {len(data)} bytes with a buffer up to byte "
            f"{end}. Copy the file again."
        )
    buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
    buffer.offset = buffer.size = 0


def pack(model: Any) -> bytes:
    """Return the bytes of the file that holds `model`, buffers aligned to 16 bytes."""
    return bytes(packed(model))


def packed(model: Any) -> memoryview:
    """Return the bytes of the file that holds `model` without a copy; see `pack`."""
    size = sum(0 if buffer.data is None else len(buffer.data) for buffer in model.buffers)
    builder = _AlignedBuilder(size + (1 << 16))
    builder.Finish(model.Pack(builder), file_identifier=MARK)
    return memoryview(builder.Bytes)[builder.Head() :]


def sign(model: Any, inputs: Sequence[tuple[str, int]], outputs: Sequence[tuple[str, int]]) -> None:
    """Add the signature of the main subgraph, which runtimes use.

    Args:
        model: The parsed file; changed in place.
        inputs: Name and index of the tensor of each input.
        outputs: The same of each output.
    """
    definition = schema.SignatureDefT()
    definition.signatureKey = SIGNATURE_KEY.encode()
    definition.subgraphIndex = 0
    definition.inputs = [_tensor_map(*pair) for pair in inputs]
    definition.outputs = [_tensor_map(*pair) for pair in outputs]
    model.signatureDefs = [definition]


def _tensor_map(name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), index
    return entry


def operator_name(code: Any) -> str:
    """Return the name of an operator code: `CONV_2D`, or the name of a custom operator."""
    number = _number(code)
    if number == schema.BuiltinOperator.CUSTOM:
        return text(code.customCode)
    return _OPERATOR_NAMES[number]


def operator_kind(model: Any, operator: Any) -> str:
    """Return the name of an operator of a parsed file."""
    return operator_name(model.operatorCodes[operator.opcodeIndex])


def _number(code: Any) -> int:
    # Files written for old runtimes carry the code in the deprecated 8-bit field.
    return max(code.builtinCode, code.deprecatedBuiltinCode)


def operator_code(model: Any, number: int, version: int) -> int:
    """Return the index of a builtin operator among a file's, to which it is added if missing.

    Args:
        model: The parsed file; changed in place.
        number: Number of the operator, of `schema.BuiltinOperator`.
        version: Its version.
    """
    codes = model.operatorCodes = model.operatorCodes or []
    for index, code in enumerate(codes):
        if (_number(code), code.version) == (number, version):
            return index
    added = schema.OperatorCodeT()
    added.builtinCode, added.version = number, version
    added.deprecatedBuiltinCode = min(number, _GREATEST_DEPRECATED)
    codes.append(added)
    return len(codes) - 1


def text(value: bytes | str | None) -> str:
    """Decode a string of the file; empty for None."""
    return value.decode() if isinstance(value, bytes) else (value or "")
