"""Reads an `.npz` archive in place: mapped once, hashed, its arrays views of the mapped bytes.

NumPy's own reader checks another checksum of every byte, copies every array and parses each header
as Python; on small networks that takes longer than to run them.
"""

from __future__ import annotations

import functools
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..files import mapped

# PKWARE's APPNOTE: the end of the central directory (4.3.16), its entries (4.3.12) and how long
# name and extra field of a local header are (4.3.7).
_END, _END_MARK = struct.Struct("<HII"), b"PK\x05\x06"
_ENTRY, _ENTRY_MARK = struct.Struct("<4s6xH8xIIHHH8xI"), b"PK\x01\x02"
_LOCAL_HEADER, _LOCAL_LENGTHS = 30, struct.Struct("<26xHH")
_STORED, _DEFLATED = 0, 8
_ZIP64 = 0xFFFFFFFF

# NumPy's NEP 1, as `numpy.save` writes it; a header of Python objects or records is none of ours.
_NPY = re.compile(
    rb"\x93NUMPY(?:\x01.(?s:..)|[\x02\x03].(?s:....))"
    rb"\{'descr': '([^']*)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), *\} *\n"
)

# What reading a damaged archive ends in.
DAMAGE = (ValueError, EOFError, struct.error, zlib.error)


@dataclass(frozen=True)
class _Member:
    """Where an array's file lies in the archive."""

    method: int
    stored: int
    header: int


class Archive(Mapping[str, np.ndarray]):
    """The arrays of an `.npz` archive by name, read-only and not aligned.

    Args:
        path: The file.

    Attributes:
        data: The whole file: what a hash says of it, it says of the arrays.

    Raises:
        OSError: It cannot be opened.
        ValueError: On access, for a file that is no archive of arrays or is cut short, or another
            one of `DAMAGE`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.data = mapped(path)

    def __getitem__(self, name: str) -> np.ndarray:
        member = self._members[name]
        lengths = _LOCAL_LENGTHS.unpack_from(self.data, member.header)
        start = member.header + _LOCAL_HEADER + sum(lengths)
        if member.method == _STORED:
            return _array(memoryview(self.data)[start : start + member.stored], name)
        if member.method == _DEFLATED:
            return _array(
                zlib.decompress(self.data[start : start + member.stored], -zlib.MAX_WBITS), name
            )
        raise ValueError(f"'{name}' is compressed by method {member.method}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    @functools.cached_property
    def _members(self) -> dict[str, _Member]:
        """The central directory."""
        data = self.data
        end = data.rfind(_END_MARK)
        if end < 0:
            raise ValueError("it lacks the directory of a zip file")
        count, _, place = _END.unpack_from(data, end + 10)
        if place == _ZIP64:
            raise ValueError("it is larger than 4 GiB")
        members = {}
        for _ in range(count):
            mark, method, stored, _, name, extra, comment, header = _ENTRY.unpack_from(data, place)
            if mark != _ENTRY_MARK:
                raise ValueError("its directory is damaged")
            place += _ENTRY.size
            key = bytes(data[place : place + name]).decode()
            members[key[:-4] if key.endswith(".npy") else key] = _Member(method, stored, header)
            place += name + extra + comment
        return members


def _array(data: bytes | memoryview, name: str) -> np.ndarray:
    """Return the array that an `.npy` file holds, as a view."""
    header = _NPY.match(data)
    if header is None:
        raise ValueError(f"'{name}' is not an array of numbers or text")
    shape = tuple(int(size) for size in header[3].split(b",") if size.strip())
    count = int(np.prod(shape, dtype=np.int64))
    dtype = np.dtype(header[1].decode())
    if dtype.hasobject:
        raise ValueError(f"'{name}' holds Python objects")
    flat = np.frombuffer(data, dtype, count, header.end())
    return flat.reshape(shape[::-1]).T if header[2] == b"True" else flat.reshape(shape)
