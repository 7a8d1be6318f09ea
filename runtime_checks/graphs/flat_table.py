"""Reads the tables of a FlatBuffers file in place: nothing is copied, nothing read unasked.

The generated object API turns every table of a file into an object, which takes longer than to run
a small network on thirty samples. The layout is that of the FlatBuffers internals document: a table
starts with the distance back to its vtable, which lists where each field lies (0: left out).
"""

from __future__ import annotations

import functools
import mmap
import struct
from collections.abc import Sequence

import numpy as np

Buffer = bytes | mmap.mmap


class FlatTable:
    """One table of a file.

    Fields are numbered in the order of the schema. What a field holds is the schema's business, so
    each is read by the method for its type; one that the file leaves out gives ``default``.

    Args:
        data: The whole file.
        position: Where the table starts.

    Raises:
        struct.error: On reading, where the file is cut short; ValueError likewise for vectors.
    """

    __slots__ = ("_fields", "data", "position")

    def __init__(self, data: Buffer, position: int) -> None:
        self.data, self.position = data, position
        (back,) = struct.unpack_from("<i", data, position)
        self._fields = _vtable(data, position - back)

    @classmethod
    def root(cls, data: Buffer) -> FlatTable:
        """Return the root table of a file."""
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def number(self, field: int, code: str, default: int = 0) -> int:
        """Return a scalar of a `struct` format code."""
        place = self._place(field)
        return int(struct.unpack_from(f"<{code}", self.data, place)[0]) if place else default

    def table(self, field: int) -> FlatTable | None:
        """Return the table that a field points to."""
        place = self._place(field)
        return FlatTable(self.data, self._follow(place)) if place else None

    def text(self, field: int) -> str:
        """Return a string; empty where there is none."""
        return self.vector(field, "u1").tobytes().decode(errors="replace")

    def vector(self, field: int, dtype: str) -> np.ndarray:
        """Return a vector of scalars as a read-only view; empty where there is none."""
        place = self._place(field)
        if not place:
            return np.empty(0, dtype)
        start = self._follow(place)
        (count,) = struct.unpack_from("<I", self.data, start)
        return np.frombuffer(self.data, np.dtype(dtype).newbyteorder("<"), count, start + 4)

    def tables(self, field: int) -> Sequence[FlatTable]:
        """Return a vector of tables."""
        place = self._place(field)
        if not place:
            return ()
        start = self._follow(place)
        (count,) = struct.unpack_from("<I", self.data, start)
        starts = range(start + 4, start + 4 + 4 * count, 4)
        return [FlatTable(self.data, self._follow(entry)) for entry in starts]

    def _place(self, field: int) -> int:
        """Return where a field lies; 0 for one that is left out."""
        offset = self._fields[field] if field < len(self._fields) else 0
        return self.position + offset if offset else 0

    def _follow(self, place: int) -> int:
        return place + int(struct.unpack_from("<I", self.data, place)[0])


def _vtable(data: Buffer, position: int) -> tuple[int, ...]:
    """Return the offsets of a table's fields."""
    (size,) = struct.unpack_from("<H", data, position)
    return _fields(bytes(data[position + 4 : position + size]))


@functools.lru_cache(maxsize=256)
def _fields(vtable: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(vtable) // 2}H", vtable)
