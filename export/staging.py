"""Replaces the files of an export atomically: all files are new, or all are old.

The files are written to a temporary folder. Then a second directory is assembled beside the old
one, from hard links to the new files and to unrelated files of the old directory, and the two
directories are exchanged by one system call. At any time, even if the process is killed, the
directory contains either all old files or all new ones.

Where directories cannot be exchanged (a mount point, a system or file system without that call, the
current directory of the shell), the temporary folder is renamed to `.moving-in` and its files are
moved one by one. If the process is killed meanwhile, the next export first completes the move.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..artifacts.manifest import FILE as MANIFEST_FILE
from ..artifacts.manifest import Manifest
from ..errors import UserError
from ..files import remove
from ..locks import LockedError, locked

_PARTIAL = ".export-"  # prefix of the folders that an export writes to
_MOVING_IN = ".moving-in"  # a complete export whose files are being moved
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # fcntl.h, stdio.h of Linux


@contextlib.contextmanager
def moved_in_when_done(directory: Path) -> Iterator[Path]:
    """Yield a folder to write to; move its files to `directory` when the block succeeds.

    Files of an earlier export that the new manifest does not name are removed; other files in the
    directory are kept. If the block raises or the process is interrupted, nothing is changed.

    Args:
        directory: The final directory; created if missing.

    Raises:
        UserError: `directory` is a file, or another export is being written to it.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"Expected a directory to export to. Received: {directory}, a file.")
    directory.mkdir(parents=True, exist_ok=True)
    directory = directory.resolve()  # a symbolic link is kept
    with _alone_in(directory):
        _finish_move(directory)
        for killed in directory.glob(f"{_PARTIAL}*"):
            shutil.rmtree(killed)
        with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=directory) as folder:
            staging = Path(folder)
            yield staging
            if not _change_places(staging, directory):
                os.rename(staging, directory / _MOVING_IN)
                _finish_move(directory)


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory, which excludes other exports."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(directory))
        except LockedError as error:
            raise UserError(
                f"Another export is being written to {directory}. Wait until it has finished, or "
                "name another directory."
            ) from error
        yield


def _change_places(staging: Path, directory: Path) -> bool:
    """Replace the old directory by one with the new files; return whether that was possible."""
    if sys.platform != "linux":
        return False  # the system call exists only on Linux
    if Path.cwd().is_relative_to(directory):
        return False  # the shell that started this process would be in a deleted directory
    beside = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(beside, ignore_errors=True)  # a killed export's
    replaced = {path.name for path in staging.iterdir()} | _files_of_export(directory)
    others = {p.name for p in directory.iterdir() if not p.name.startswith(_PARTIAL)} - replaced
    try:
        _link(staging, beside)
        for name in sorted(others):
            _link(directory / name, beside / name)
        owner = directory.stat()
        os.chown(beside, owner.st_uid, owner.st_gid)
        shutil.copystat(directory, beside)
        _exchange(beside, directory)
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)
        return False
    for path in list(beside.iterdir()):  # files that were created in the meantime
        if path.name not in replaced | others and not path.name.startswith(_PARTIAL):
            os.rename(path, directory / path.name)
    shutil.rmtree(beside)
    return True


def _link(source: Path, target: Path) -> None:
    """Create `target` as a hard link to `source`; for a folder, recursively."""
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, copy_function=os.link)
    else:
        os.link(source, target, follow_symlinks=False)


def _exchange(one: Path, other: Path) -> None:
    """Exchange two directories atomically.

    Raises:
        OSError: The system or the file system does not support it.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError("the C library has no renameat2")
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), one, None, other)


def _finish_move(directory: Path) -> None:
    """Move the files of a complete export from `.moving-in` to the directory, the manifest last.

    It can be repeated after the process was killed: until the new manifest is moved, the old one
    lists the files to remove.
    """
    arriving = directory / _MOVING_IN
    if not arriving.is_dir():
        return
    new = {path.name for path in arriving.iterdir()}
    if MANIFEST_FILE in new:
        kept = _files_of_export(arriving) | {MANIFEST_FILE}
        for name in sorted(_files_of_export(directory) - kept):
            remove(directory / name)
    for name in sorted(new, key=lambda name: name == MANIFEST_FILE):
        if (directory / name).is_dir():
            remove(directory / name)  # os.replace cannot replace a folder
        os.replace(arriving / name, directory / name)
    arriving.rmdir()


def _files_of_export(directory: Path) -> set[str]:
    """Return the files that the manifest in a directory names, and the manifest itself."""
    try:
        manifest = Manifest.load(directory)
    except UserError:  # without a readable manifest, no file is known to belong to an export
        return set()
    networks = [manifest.network, *(a.network for a in manifest.artifacts)]
    named = {name for a in manifest.artifacts for name in a.all_files} | {
        manifest.golden.file,
        MANIFEST_FILE,
    }
    named |= {network.file for network in networks if network is not None}
    # Only plain names: an untrusted manifest must not refer to files outside its directory.
    return {name for name in named if Path(name).name == name != ".."}
