"""Arrays in `.npz` and `.npy` files, read a few rows at a time."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..files import regular
from .archive import (
    Archive,
    damage,
    load_array,
    members,
    read_header,
    refuse_bomb,
    require_text,
    truncated,
)


@dataclasses.dataclass(frozen=True)
class ArrayRows:
    """An array in a file.

    Attributes:
        name: Its name.
        shape: Its shape.
        dtype: The type of its elements.
        open: Opens the file at its beginning.
        whole: Reads the whole array if the file does not store it row by row; else None.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    open: Callable[[], IO[bytes]]
    whole: Callable[[], np.ndarray] | None = None

    def parts(self, size: int) -> Iterator[np.ndarray]:
        """Yield the rows in parts of `size`; the last part may be smaller.

        Raises:
            DamageError: The file is damaged.
        """
        if self.whole is not None:
            array = self.whole()
            for start in range(0, len(array), size):
                yield array[start : start + size]
            return
        with damage(), self.open() as stream:
            read_header(stream, self.name)
            row = math.prod(self.shape[1:]) * self.dtype.itemsize
            for start in range(0, self.shape[0], size):
                count = min(size, self.shape[0] - start)
                data = bytearray(stream.read(count * row))
                if len(data) < count * row:
                    raise truncated(self.name)
                rows = np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])
                require_text(rows, self.name)
                yield rows


def open_arrays(path: Path) -> dict[str, ArrayRows]:
    """Open the arrays of an `.npz` file, or the one array of an `.npy` file under the name "".

    Raises:
        OSError: The file cannot be read.
        DamageError: The file holds no arrays of numbers or text, or is damaged.
    """
    if path.suffix == ".npy":
        opener = functools.partial(_open_file, path)
        return {"": _rows(opener, "", os.path.getsize(path), functools.partial(load_array, path))}
    with damage(), zipfile.ZipFile(path) as archive:
        refuse_bomb(archive, os.path.getsize(path))
        found = {}
        for name, info in members(archive).items():
            opener = functools.partial(_open_member, path, info.filename)
            found[name] = _rows(
                opener, name, info.file_size, functools.partial(_array_of, path, name)
            )
    return found


def _rows(
    opener: Callable[[], IO[bytes]], name: str, size: int, whole: Callable[[], np.ndarray]
) -> ArrayRows:
    """Read the header of an array in a file of `size` bytes."""
    with damage(), opener() as stream:
        shape, fortran, dtype = read_header(stream, name)
        if stream.tell() + math.prod(shape) * dtype.itemsize > size:
            raise truncated(name)
    scattered = not shape or not math.prod(shape) or (fortran and len(shape) > 1)
    return ArrayRows(name, shape, dtype, opener, whole if scattered else None)


def _open_file(path: Path) -> IO[bytes]:
    return regular(path).open("rb")


def _open_member(path: Path, name: str) -> IO[bytes]:
    return zipfile.ZipFile(path).open(name)


def _array_of(path: Path, name: str) -> np.ndarray:
    return Archive(path)[name].copy()
