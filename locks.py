"""Folders of a running process, told from those that a killed one left."""

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
except ImportError:  # Windows; what a killed process left stays there
    fcntl = None  # type: ignore[assignment]

# A folder is locked right after it is made; only much older ones are taken for left behind.
_YOUNG_S = 60.0


class LockedError(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder; the system releases it however the process ends.

    Where the file system knows no locks there is none.

    Args:
        folder: An existing folder. Whoever replaces it by another one while it holds the lock
            lets others lock the new one.

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
    """Make a folder for as long as the block runs, and clear what killed processes left.

    Args:
        prefix: How the names of such folders begin.
        parent: The folder to make it in.

    Yields:
        The new folder, locked.
    """
    clear_left_behind(prefix, parent)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as folder, locked(Path(folder)):
        yield Path(folder)


def clear_left_behind(prefix: str, parent: Path) -> None:
    """Remove the folders of killed processes; those of running ones are locked.

    Args:
        prefix: How the names of such folders begin.
        parent: Where they are.
    """
    if fcntl is None:
        return
    for folder in parent.glob(f"{prefix}*"):
        with contextlib.suppress(LockedError, OSError):
            if time.time() - folder.stat().st_mtime > _YOUNG_S:
                with locked(folder):
                    shutil.rmtree(folder)
