"""Writes ONNX files whose large weights are not in the protocol buffer.

Messages of protocol buffers copy what they hold, and hold less than 2 GiB. Therefore large weights
stay arrays until they are written: into the file, or beside it as ONNX's external data.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ...files import atomic_path

if TYPE_CHECKING:
    import onnx

#: A protocol buffer is smaller than 2 GiB; its nodes and names need some of that.
MOST_INSIDE = 2**31 - 2**26
_SUFFIX = ".data"
# Smaller constants, such as shapes, stay in the model, where shape inference reads them.
_LEAST = 1024  # bytes
# Runtimes map the file into memory page by page.
_PAGE = 4096

# Numbers of fields in onnx.proto.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_WEIGHT = (_GRAPH, _INITIALIZER, _RAW_DATA)
# Kinds of fields of a fixed length to that length.
_FIXED = {1: 8, 5: 4}


@dataclasses.dataclass(frozen=True)
class Held:
    """The large weights of a model; the `raw_data` of their initializers is only a key.

    Attributes:
        arrays: Key to weight.
    """

    arrays: dict[bytes, np.ndarray] = dataclasses.field(default_factory=dict)

    def tensor(self, value: np.ndarray, name: str) -> onnx.TensorProto:
        """Return an initializer for a weight, which is held."""
        import onnx

        key = b"held %d" % len(self.arrays)
        self.arrays[key] = value
        dtype = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        return onnx.TensorProto(name=name, data_type=dtype, dims=value.shape, raw_data=key)

    def holds(self, tensor: onnx.TensorProto) -> bool:
        """Return whether an initializer has only a key."""
        return tensor.raw_data in self.arrays

    def array(self, tensor: onnx.TensorProto) -> np.ndarray:
        """Return the value of an initializer."""
        import onnx

        held = self.arrays.get(tensor.raw_data)
        return onnx.numpy_helper.to_array(tensor) if held is None else held


def weights_path(path: Path) -> Path:
    """Return the path of the separate file for the weights of an .onnx file."""
    return path.with_name(path.name + _SUFFIX)


def write_model(model: onnx.ModelProto, path: Path, held: Held) -> None:
    """Write a model, with its weights in a second file if they are too large for one.

    Args:
        model: The model, changed in place.
        path: The .onnx file.
        held: The weights that the model does not contain.
    """
    sizes = [_size(tensor, held) for tensor in model.graph.initializer]
    if sum(size for size in sizes if size >= _LEAST) > MOST_INSIDE:
        _move_weights(model, weights_path(path), held)
    with atomic_path(path) as partial, open(partial, "wb") as file:
        for piece in _of_model(model, held):
            file.write(piece)


def _move_weights(model: onnx.ModelProto, beside: Path, held: Held) -> None:
    import onnx

    with atomic_path(beside) as partial, open(partial, "wb") as file:
        for tensor in model.graph.initializer:
            length = _size(tensor, held)
            if length < _LEAST:
                continue
            file.write(bytes(-file.tell() % _PAGE))
            offset = file.tell()
            file.write(_content(tensor, held))
            onnx.external_data_helper.set_external_data(tensor, beside.name, offset, length)
            tensor.ClearField("raw_data")


def _size(tensor: onnx.TensorProto, held: Held) -> int:
    array = held.arrays.get(tensor.raw_data)
    return len(tensor.raw_data) if array is None else array.nbytes


def _content(tensor: onnx.TensorProto, held: Held) -> bytes | memoryview:
    array = held.arrays.get(tensor.raw_data)
    return tensor.raw_data if array is None else np.ascontiguousarray(array).data.cast("B")


def _of_model(model: onnx.ModelProto, held: Held) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a model with its weights, equal to those of protobuf's own writer.

    That writes the fields of a message in the order of their numbers. A message in a field is
    preceded by the number of the field and its length.
    """
    if not any(map(held.holds, model.graph.initializer)):
        yield model.SerializeToString(deterministic=True)
        return
    before, after = _around(model, _GRAPH)
    yield before
    nodes, rest = _around(model.graph, _INITIALIZER)
    tensors = [(tensor, *_around(tensor, _RAW_DATA)) for tensor in model.graph.initializer]
    sizes = []
    for tensor, first, last in tensors:
        length = _size(tensor, held)
        raw = len(_head(_RAW_DATA, length)) + length if tensor.HasField("raw_data") else 0
        sizes.append(len(first) + raw + len(last))
    whole = len(nodes) + len(rest) + sum(len(_head(_INITIALIZER, n)) + n for n in sizes)
    yield _head(_GRAPH, whole)
    yield nodes
    for (tensor, first, last), size in zip(tensors, sizes, strict=True):
        yield _head(_INITIALIZER, size) + first
        if tensor.HasField("raw_data"):
            yield _head(_RAW_DATA, _size(tensor, held))
            yield _content(tensor, held)
        yield last
    yield rest
    yield after


def _around(message: Any, number: int) -> tuple[bytes, bytes]:
    """Return the bytes of the fields of a message before and after the one of a number."""
    parts = []
    for wanted in (lambda n: n < number, lambda n: n > number):
        part = type(message)()
        for field, value in message.ListFields():
            if not wanted(field.number):
                continue
            if field.is_repeated:
                getattr(part, field.name).extend(value)
            elif field.message_type is not None:
                getattr(part, field.name).CopyFrom(value)
            else:
                setattr(part, field.name, value)
        parts.append(part.SerializeToString(deterministic=True))
    return parts[0], parts[1]


def _head(number: int, length: int) -> bytes:
    """Return what precedes a field that has a length."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    """Return a number in groups of seven bits, the lowest first."""
    groups: list[int] = []
    for place in itertools.count():
        group = number >> 7 * place
        if group < 0x80:
            return bytes([*groups, group])
        groups.append(group & 0x7F | 0x80)
    raise AssertionError


def read_light(path: Path, large: int) -> onnx.ModelProto:
    """Read a model; the large weights in the file are left out and never in memory.

    Args:
        path: An .onnx file that `write_model` wrote.
        large: Least number of bytes of a weight that is left out.
    """
    import onnx

    with open(path, "rb") as file:
        end = os.fstat(file.fileno()).st_size
        return onnx.ModelProto.FromString(_light(file, end, _WEIGHT, large))


def _light(file: IO[bytes], end: int, place: Sequence[int], large: int) -> bytes:
    """Return the bytes of a message without the large fields at a place.

    Args:
        file: The file at the beginning of the message.
        end: Position of its end.
        place: Numbers of the fields that lead to the one to leave out.
        large: Least length of a field that is left out.
    """
    pieces: list[bytes] = []
    while file.tell() < end:
        key = _number(file)
        number, kind = key >> 3, key & 7
        if kind in _FIXED:
            pieces += _varint(key), file.read(_FIXED[kind])
            continue
        value = _number(file)
        if kind == 0:
            pieces += _varint(key), _varint(value)
        elif number != place[0] or value < large:
            pieces += _head(number, value), file.read(value)
        elif place[1:]:
            inner = _light(file, file.tell() + value, place[1:], large)
            pieces += _head(number, len(inner)), inner
        else:
            file.seek(value, os.SEEK_CUR)
    return b"".join(pieces)


def _number(file: IO[bytes]) -> int:
    """Read a number in groups of seven bits; the inverse of `_varint`."""
    number = 0
    for place in itertools.count():
        group = file.read(1)[0]
        number |= (group & 0x7F) << 7 * place
        if group < 0x80:
            break
    return number
