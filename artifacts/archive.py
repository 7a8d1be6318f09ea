"""Writes and reads `.npz` archives; a file is read once, and its arrays are views of its bytes.

`numpy.load` would read the file again after it was hashed, verify a second checksum and copy every
array, which takes longer than running a small network. `zipfile` and NumPy parse the headers.
"""

from __future__ import annotations

import functools
import io
import math
import os
import re
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from ..files import atomic_path, regular

# PKWARE's APPNOTE, 4.3.7: a local header is 30 bytes, then a name and an extra field so long.
_LOCAL_HEADER, _LOCAL_LENGTHS = 30, struct.Struct("<26xHH")

# An archive is refused if it expands to more bytes than this and to more than this many times its
# size, since a few compressed megabytes of zeros could fill any memory.
_MOST_BYTES, _MOST_TIMES = 1 << 30, 100

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_SUFFIX = ".npy"


class DamageError(ValueError):
    """A file is not an archive of arrays, or is damaged."""


def packed_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return arrays as the bytes of an `.npz` file."""
    buffer = io.BytesIO()
    _save(buffer, arrays)
    return buffer.getvalue()


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write an `.npz` file, whole or not at all."""
    with atomic_path(path) as partial, open(partial, "wb") as file:
        _save(file, arrays)


def _save(file: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    # NumPy 1, which devices have, would treat `allow_pickle` as the name of an array.
    np.savez(file, **arrays)  # type: ignore[arg-type]


def load_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read an `.npz` file into new arrays.

    Raises:
        OSError: It cannot be read.
        DamageError: It is not an archive of arrays, or is damaged.
    """
    return {name: array.copy() for name, array in Archive(path).items()}


def load_array(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an `.npy` file.

    Raises:
        OSError: It cannot be read.
        DamageError: It is not an array of numbers or text, or is damaged.
    """
    return array_of(regular(path).read_bytes(), Path(path).name).copy()


def array_of(data: bytes, name: str) -> np.ndarray:
    """Return the array in the bytes of an `.npy` file, as a view.

    Raises:
        DamageError: It is not an array of numbers or text, or is damaged.
    """
    with damage():
        return _array(data, name)


class Archive(Mapping[str, np.ndarray]):
    """The arrays of an `.npz` archive by name, read-only and not aligned.

    Args:
        path: The file.

    Attributes:
        data: The bytes of the file, of which the arrays are views.

    Raises:
        OSError: It cannot be read.
        DamageError: On access, if the file is not an archive of arrays or is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.data = regular(path).read_bytes()

    def __getitem__(self, name: str) -> np.ndarray:
        member = self._members[name]
        with damage():
            if member.compress_type != zipfile.ZIP_STORED:
                return _array(self._zip.read(member), name)
            lengths = _LOCAL_LENGTHS.unpack_from(self.data, member.header_offset)
            start = member.header_offset + _LOCAL_HEADER + sum(lengths)
            return _array(memoryview(self.data)[start : start + member.file_size], name)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    @functools.cached_property
    def _zip(self) -> zipfile.ZipFile:
        with damage():
            opened = zipfile.ZipFile(io.BytesIO(self.data))
            refuse_bomb(opened, len(self.data))
            return opened

    @functools.cached_property
    def _members(self) -> dict[str, zipfile.ZipInfo]:
        """Array name to its file in the archive."""
        return members(self._zip)


def members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return array name to its file in the archive."""
    return {
        info.filename[: -len(_SUFFIX)]: info
        for info in archive.infolist()
        if info.filename.endswith(_SUFFIX)
    }


def refuse_bomb(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse an archive that expands to very many times its size in bytes.

    Raises:
        DamageError: The archive does.
    """
    expanded = sum(info.file_size for info in archive.infolist())
    if expanded > max(_MOST_BYTES, _MOST_TIMES * size):
        raise DamageError(
            f"{size / 1e6:.1f} MB that expand to {expanded / 1e9:.1f} GB; numpy.savez writes "
            "arrays without compression"
        )


class damage:  # noqa: N801 (used like a function; a generator would take longer than most arrays)
    """Converts every exception that zipfile and NumPy raise for hostile bytes to one error.

    Their parsers are not designed for hostile input and raise a dozen unrelated types, from
    NotImplementedError and RuntimeError to SystemError, RecursionError and TokenError.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, DamageError):
            raise DamageError(str(error) or type(error).__name__) from error


def read_header(stream: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an `.npy` file: shape, whether in Fortran order, and element type.

    Raises:
        ValueError: It is of no known version, or not an array of numbers or text; or whatever NumPy
            raises for damage.
    """
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"{_array_named(name)} has the unknown .npy version {version}")
    shape, fortran_order, dtype = _HEADERS[version](stream)
    if dtype.hasobject or dtype.names or dtype.subdtype:
        raise ValueError(f"{_array_named(name)} is not an array of numbers or text")
    _require_possible(shape, dtype, name)
    return shape, fortran_order, dtype


def _require_possible(shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> None:
    """Refuse a shape that no array can have.

    Raises:
        ValueError: It is such a shape.
    """
    known = all(type(size) is int and size >= 0 for size in shape)  # NumPy allows True and -1
    if not known or math.prod(filter(None, shape)) * max(dtype.itemsize, 1) > sys.maxsize:
        raise ValueError(f"{_array_named(name)} has the impossible shape {shape}")


def require_text(array: np.ndarray, name: str) -> None:
    """Refuse an array of text with numbers that are no characters; accept any other array.

    Python raises a SystemError when it reads a number above 0x10FFFF as text, and cannot print half
    of a surrogate pair.

    Raises:
        DamageError: It contains such a number.
    """
    if array.dtype.kind != "U" or not array.itemsize:
        return
    codes = np.ascontiguousarray(array).view(
        np.dtype(np.uint32).newbyteorder(array.dtype.byteorder)
    )
    if np.any((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes <= 0xDFFF))):
        raise DamageError(f"{_array_named(name)} contains numbers that are no characters")


def truncated(name: str) -> DamageError:
    """Return the error for an array that claims more data than its file has."""
    return DamageError(f"{_array_named(name)} is truncated")


def _array_named(name: str) -> str:
    return f"'{name}'" if name else "the array"


# The header of `.npy` files as NumPy writes it, for numbers or text and at most four axes.
_USUAL = re.compile(
    rb"\x93NUMPY\x01\x00(..){'descr': '([<|][bfiu]\d|<U\d{1,8})', 'fortran_order': False, "
    rb"'shape': \(((?:\d{1,9}, ){0,3}\d{1,9}|\d{1,9},|)\), } *\n",
    re.DOTALL,
)
_USUAL_LENGTH = 128


def _array(data: bytes | memoryview, name: str) -> np.ndarray:
    """Return the array that an `.npy` file holds, as a view."""
    usual = _USUAL.fullmatch(data[:_USUAL_LENGTH])
    if usual is not None and int.from_bytes(usual[1], "little") == _USUAL_LENGTH - 10:
        # NumPy's own parser takes ten times as long.
        shape = tuple(map(int, filter(None, usual[3].split(b","))))
        fortran_order, dtype, start = False, np.dtype(usual[2].decode()), _USUAL_LENGTH
        if 0 in shape:  # the data limit the others
            _require_possible(shape, dtype, name)
    else:
        stream = io.BytesIO(data[: npy.MAGIC_LEN + 2 + (1 << 16)])
        shape, fortran_order, dtype = read_header(stream, name)
        start = stream.tell()
    count = math.prod(shape)  # Python's integers do not overflow
    if start + count * dtype.itemsize > len(data):
        raise truncated(name)
    flat = np.frombuffer(data, dtype, count, start)
    require_text(flat, name)
    return flat.reshape(shape[::-1]).T if fortran_order else flat.reshape(shape)
