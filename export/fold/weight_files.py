"""Keeps the large weights of folded networks in temporary files instead of memory.

An export holds the trained network, the folded one, and whatever a converter or a runtime needs.
The system can drop the pages of a file when memory is short, and read them again.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

import keras
import numpy as np
from numpy.typing import NDArray

#: Smaller weights stay in memory.
LARGE = 1 << 20  # bytes
_FILE = 1 << 28  # bytes; a larger weight has a file of its own
_ALIGNMENT = 64  # bytes, of TensorFlow's tensors
_SIZES = {"float32": 4, "float64": 8}


class _WeightFiles:
    """Temporary files in one folder, without names, which exist as long as arrays of them do."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._memory: mmap.mmap | None = None
        self._end = 0

    def put(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """Write an array; return it as a view of the file.

        Raises:
            OSError: It cannot be written there.
        """
        if self._memory is None or self._end + array.nbytes > len(self._memory):
            self._begin(max(_FILE, array.nbytes))
        assert self._file is not None
        assert self._memory is not None
        # Writing fails if the disk is full; changing memory would end the process.
        self._file.seek(self._end)
        data = array.data.cast("B")
        while data:
            data = data[self._file.write(data) :]
        view = np.frombuffer(self._memory, np.float32, array.size, self._end)
        self._end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        return view.reshape(array.shape)

    def close(self) -> None:
        """Write no more to the last file; its arrays stay."""
        if self._file is not None:
            self._file.close()
        self._file = self._memory = None

    def _begin(self, size: int) -> None:
        self.close()
        file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
        try:
            file.truncate(size)
            self._memory = mmap.mmap(file.fileno(), size)
        except OSError:
            file.close()
            raise
        self._file, self._end = file, 0


_files: ContextVar[_WeightFiles | None] = ContextVar("_files", default=None)


@contextlib.contextmanager
def weights_in_files(directory: Path) -> Iterator[None]:
    """Within the block, keep the large weights of new networks in temporary files.

    The files have no names and vanish with the networks.

    Args:
        directory: Where to put them. If it does not exist, they are in the folder where it would.
    """
    exists = next(path for path in (directory, *directory.absolute().parents) if path.is_dir())
    files = _WeightFiles(exists)
    token = _files.set(files)
    try:
        yield
    finally:
        _files.reset(token)
        files.close()


def assign(variable: keras.Variable, value: Any) -> None:
    """Set a variable; a large one to memory that TensorFlow does not allocate.

    TensorFlow keeps memory that it frees, and `tf.constant` needs it twice for a moment. In float32
    and within `weights_in_files`, the memory is that of a file.

    Args:
        variable: The variable.
        value: An array or tensor of its shape, of any dtype.
    """
    large = math.prod(variable.shape) * _SIZES.get(variable.dtype, 0) >= LARGE
    if large and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        array = _stored(keras.ops.convert_to_numpy(value), np.dtype(variable.dtype))
        value = tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    variable.assign(value)


def _stored(value: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a copy in a file, or in memory that the system gets back."""
    files = _files.get()
    if files is not None and dtype == np.float32:  # networks in float64 exist only briefly
        with contextlib.suppress(OSError):  # no space, or no permission: memory may suffice
            return files.put(np.ascontiguousarray(value, dtype))
    memory = mmap.mmap(-1, value.size * dtype.itemsize, access=mmap.ACCESS_COPY)
    array = np.frombuffer(memory, dtype, value.size).reshape(value.shape)
    array[...] = value
    return array
