"""Weights of .onnx files that are stored in another file, as ONNX's external data.

A protocol buffer holds less than 2 GB, so larger models store their weights in a separate file. It
must be in the same folder: with a path, an .onnx file could read any file.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import UserError, printable
from ...files import sha256
from ..manifest import FileRecord
from ..record import is_plain_name

if TYPE_CHECKING:
    import onnx

# Types of attributes (`onnx.AttributeProto`) that are read as numbers and texts whatever else they
# hold: FLOAT, INT, STRING, and lists of these.
_WITHOUT_TENSORS = frozenset((1, 2, 3, 6, 7, 8))


def weights_file(path: Path, model: onnx.ModelProto) -> str | None:
    """Return the name of the separate file with a model's weights; None if there is none.

    Args:
        path: The .onnx file, for messages.
        model: Its content.

    Raises:
        UserError: The weights lie outside the folder, or in several files.
    """
    names = sorted({_place(tensor)[0] for tensor in _tensors(model.graph) if is_outside(tensor)})
    for name in names:
        if not is_plain_name(name):
            raise UserError(
                f"{path} keeps weights in {printable(name)!r}. Expected the plain name of a file "
                "in its own folder. Write the model again with onnx.save(model, path, "
                "save_as_external_data=True)."
            )
    if len(names) > 1:
        raise UserError(
            f"{path} keeps its weights in {len(names)} files. Write one: onnx.save(model, path, "
            "save_as_external_data=True, all_tensors_to_one_file=True)."
        )
    return names[0] if names else None


def weights_beside(path: Path) -> str | None:
    """Return the name of the file that holds weights of an .onnx file; see `weights_file`.

    Returns:
        The name. None also for a file of another format or a damaged one.
    """
    if path.suffix != ".onnx":
        return None
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # the reader of the graph reports the damage
        return None
    return weights_file(path, model)


def copy_weights(path: Path, folder: Path) -> FileRecord | None:
    """Copy the file that holds weights of an .onnx file into a folder.

    Args:
        path: The .onnx file, or a file of another format.
        folder: Where to.

    Returns:
        The record of the copy; None if the file holds its weights itself.

    Raises:
        UserError: It is missing, or the folder has another file of that name.
    """
    name = weights_beside(path)
    if name is None:
        return None
    source, target = path.with_name(name), folder / name
    if not source.is_file():
        raise UserError(f"{source}, which holds the weights of {path.name}, is missing.")
    if target.exists() and sha256(target) != sha256(source):
        raise UserError(
            f"{path} keeps its weights in {name}, and so does another of the files. Write one of "
            "them again with onnx.save(..., location='OTHER NAME')."
        )
    shutil.copy(source, target)
    return FileRecord.of(target)


def value_of(tensor: onnx.TensorProto, folder: Path) -> np.ndarray:
    """Return the value of a tensor; of one in another file, a view of that file.

    Args:
        tensor: The tensor.
        folder: The folder of its model.

    Raises:
        ValueError: A size is negative, or the other file is missing or too short.
    """
    import onnx

    shape = tuple(tensor.dims)
    if min(shape, default=0) < 0:
        raise ValueError(f"tensor {tensor.name!a} has the shape {shape}")
    if not is_outside(tensor):
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    name, offset, length = _place(tensor)
    file = folder / name
    if not file.is_file():
        raise ValueError(f"{name}, which holds its weights, is missing in its folder")
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    size = file.stat().st_size
    length = size - offset if length is None else length
    if min(offset, length) < 0 or offset + length > size:
        raise ValueError(f"tensor {tensor.name!a} lies beyond the end of {name}")
    if dtype.kind in "fiub":
        if math.prod(shape) * dtype.itemsize != length:
            raise ValueError(f"tensor {tensor.name!a} has {length} bytes in {name}")
        if not length:
            return np.zeros(shape, dtype)
        return np.memmap(file, dtype, "r", offset, shape)
    whole = onnx.TensorProto()
    whole.CopyFrom(tensor)
    whole.ClearField("external_data")
    whole.data_location = onnx.TensorProto.DEFAULT
    with open(file, "rb") as stream:
        stream.seek(offset)
        whole.raw_data = stream.read(length)
    return np.asarray(onnx.numpy_helper.to_array(whole))


def is_outside(tensor: onnx.TensorProto) -> bool:
    """Return whether the value of a tensor is in another file."""
    return bool(tensor.data_location) or bool(tensor.external_data)


def _place(tensor: onnx.TensorProto) -> tuple[str, int, int | None]:
    """Return file name, offset and number of bytes."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    length = entries.get("length")
    try:
        return (
            entries.get("location", ""),
            int(entries.get("offset", 0)),
            None if length is None else int(length),
        )
    except ValueError as error:
        raise ValueError(f"tensor {tensor.name!a} has no place in its file") from error


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a graph, those of nodes and of inner graphs included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type in _WITHOUT_TENSORS:
                continue
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _tensors(inner)
