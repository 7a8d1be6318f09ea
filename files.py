"""Writes files atomically, and computes hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from .errors import UserError
from .locks import own_folder, temporary_folder

# Above this size, hashing takes longer than starting a thread.
_WORTH_A_THREAD = 1 << 18
_PIECE = 1 << 20  # bytes read at a time


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; rename it to ``path`` when the block succeeds.

    The temporary name keeps the suffixes of ``path``, since writers such as ``keras.Model.save``
    use them to choose a format. If the block raises or the process is interrupted, ``path`` is not
    changed. Temporary files of killed processes are removed by the next process that writes to the
    folder. A device or a pipe, such as /dev/null, is not replaced but written to.

    Args:
        path: Final path of the file. Its folder is created if missing.

    Yields:
        The path to write to.

    Raises:
        UserError: The file cannot be written: no space, no permission, a directory with that name,
            or a file in place of a parent directory.
    """
    final = Path(path)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        special = _is_special(final)
        with temporary_folder() if special else own_folder(".partial-", final.parent) as folder:
            partial = folder / final.name
            yield partial
            if special:
                with open(partial, "rb") as source, open(final, "wb") as target:
                    shutil.copyfileobj(source, target)
            else:
                os.replace(partial, final)
    except OSError as error:
        raise UserError(
            f"{final} cannot be written ({error.strerror or error}). Name another file, or provide "
            "space and permissions for this one."
        ) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_bytes(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write ``data`` to ``path``, atomically."""
    with atomic_path(path) as partial:
        partial.write_bytes(data)


def regular(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file to read; refuse pipes and devices, which may have no end.

    Raises:
        OSError: It is neither a regular file, nor a link to one, nor a folder. A missing file
            raises when it is opened.
    """
    found = Path(path)
    if _is_special(found):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
    return found


def _is_special(path: Path) -> bool:
    """Return whether a path is a pipe, a device or the like, or a link to one."""
    return path.exists() and not (path.is_file() or path.is_dir())


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(regular(path), "rb") as file:
        while data := file.read(_PIECE):
            digest.update(data)
    return digest.hexdigest()


class Hashing:
    """The SHA-256 of bytes, computed in a background thread.

    Args:
        data: The bytes; small data is hashed immediately.

    Attributes:
        data: The bytes.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._digest = ""
        self._thread: threading.Thread | None = None
        if len(data) < _WORTH_A_THREAD:
            self._run()
        else:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        self._digest = hashlib.sha256(self.data).hexdigest()

    def result(self) -> str:
        """Wait for the hash and return it as 64 hexadecimal digits."""
        if self._thread is not None:
            self._thread.join()
        return self._digest


def hash_folder(folder: Path) -> dict[str, str]:
    """Return relative path to hash of every file in a folder, in the order of the paths."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in paths}


def remove(path: Path) -> None:
    """Remove a file, which may be missing, or a folder with its content."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
