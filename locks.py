"""Locks on folders, which tell temporary folders in use from those that a killed process left."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and left folders stay
    fcntl = None  # type: ignore[assignment]

# A folder is locked shortly after it is made, so young folders are never removed.
_YOUNG_S = 60.0


class LockedError(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder; the system releases it however the process ends.

    On a file system without locks, nothing is locked.

    Args:
        folder: An existing folder. If the holder of the lock replaces it by another folder, the
            new one is not locked.

    Raises:
        LockedError: Another process, or another place of this one, holds the lock.
    """
    if fcntl is None:
        yield
        return
    while True:
        handle = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                _lock(handle)
            if os.path.samestat(os.fstat(handle), os.stat(folder)):
                yield
                return
        finally:
            os.close(handle)


def _lock(handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockedError from error


@contextlib.contextmanager
def own_folder(prefix: str, parent: Path) -> Iterator[Path]:
    """Make a folder for the duration of the block, and remove those that killed processes left.

    Args:
        prefix: How the names of such folders begin.
        parent: The folder to make it in.

    Yields:
        The new folder, locked.
    """
    _clear_left_behind(prefix, parent)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as folder, locked(Path(folder)):
        yield Path(folder)


def _clear_left_behind(prefix: str, parent: Path) -> None:
    """Remove the folders of killed processes; those of running ones are locked."""
    if fcntl is None:
        return
    for folder in parent.glob(f"{prefix}*"):
        with contextlib.suppress(LockedError, OSError):
            if time.time() - folder.stat().st_mtime > _YOUNG_S:
                with locked(folder):
                    shutil.rmtree(folder)
