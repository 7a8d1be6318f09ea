"""Locks on folders, which distinguish temporary folders in use from those of killed processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and folders of killed processes remain
    fcntl = None  # type: ignore[assignment]

# Prefix of the names of folders with temporary files.
_RUN_FOLDER = "renormlite-run-"

# Until a folder is locked, its name has this prefix, and only an old one is removed (seconds).
_NEW, _YOUNG_S = ".new", 60.0


class LockedError(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder; the system releases it when the process ends in any way.

    On a file system without locks, nothing is locked.

    Args:
        folder: An existing folder. If the holder of the lock replaces it by another folder, the
            new one is not locked.

    Raises:
        LockedError: Another process, or other code of this process, holds the lock.
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
    made = Path(tempfile.mkdtemp(prefix=_NEW + prefix, dir=parent))
    folder, maker = made.with_name(made.name[len(_NEW) :]), os.getpid()
    try:
        with locked(made):
            made.rename(folder)  # from now on its name marks it as removable
            yield folder
    finally:
        if os.getpid() == maker:  # a fork ends the block too, and its parent still uses the folder
            shutil.rmtree(made, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)


def temporary_folder() -> AbstractContextManager[Path]:
    """Make a folder in the system's temporary folder; see `own_folder`."""
    return own_folder(_RUN_FOLDER, Path(tempfile.gettempdir()))


@contextlib.contextmanager
def run_folder() -> Iterator[None]:
    """Put all temporary files of this process and of those it starts into one folder.

    It is removed at the end of the block; that of a killed process is removed when the next process
    makes its own. Without it, TensorFlow and other libraries leave files.
    """
    outside = os.environ.get("TMPDIR"), tempfile.tempdir
    with temporary_folder() as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = outside[1]
            if outside[0] is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = outside[0]


def _clear_left_behind(prefix: str, parent: Path) -> None:
    """Remove the folders of killed processes; those of running ones are locked."""
    if fcntl is None:
        return
    for folder in (*parent.glob(f"{prefix}*"), *parent.glob(f"{_NEW}{prefix}*")):
        with contextlib.suppress(LockedError, OSError):
            if folder.name.startswith(_NEW) and time.time() - folder.stat().st_mtime < _YOUNG_S:
                continue
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                _lock(handle)  # fails on a file system without locks: then nothing is removed
                shutil.rmtree(folder)
            finally:
                os.close(handle)
