"""Reads an `.npz` archive that is in memory: each array on demand, without copying its bytes.

The golden set and the network are read once, hashed, and then used as they lie: NumPy's own reader
would open the file again, check another checksum and copy every array.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.lib import format as npy

# The fixed part of a local header, and where it says how long the name and the extra field are
# (PKWARE's APPNOTE, 4.3.7).
_LOCAL_HEADER, _LENGTHS = 30, 26


class Archive(Mapping[str, np.ndarray]):
    """The arrays of an `.npz` archive by name, read-only.

    Args:
        data: The whole file, whose bytes the caller has found to be the right ones.

    Raises:
        ValueError: It is no archive of arrays; on access as well, for one that is damaged or
            holds Python objects.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(data))
        except zipfile.BadZipFile as error:
            raise ValueError(str(error)) from error
        self._members = {
            info.filename[: -len(".npy")]: info
            for info in self._archive.infolist()
            if info.filename.endswith(".npy")
        }

    def __getitem__(self, name: str) -> np.ndarray:
        data, start = self._content(self._members[name])
        stream = io.BytesIO(data)
        stream.seek(start)
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        if dtype.hasobject:
            raise ValueError(f"'{name}' holds Python objects")
        count = int(np.prod(shape, dtype=np.int64))
        flat = np.frombuffer(data, dtype, count, stream.tell())
        array = flat.reshape(shape, order="F" if fortran else "C")
        # Runtimes read what they are fed in place, and some processors only from aligned places.
        return array if array.flags.aligned else array.copy(order="A")

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def _content(self, info: zipfile.ZipInfo) -> tuple[bytes, int]:
        """Return bytes that hold a member, and where in them it starts."""
        if info.compress_type != zipfile.ZIP_STORED:
            return self._archive.read(info), 0
        lengths = struct.unpack_from("<HH", self._data, info.header_offset + _LENGTHS)
        start = info.header_offset + _LOCAL_HEADER + sum(lengths)
        if start + info.file_size > len(self._data):
            raise ValueError(f"'{info.filename}' is cut short")
        return self._data, start
