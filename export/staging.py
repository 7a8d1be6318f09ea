"""An export's files appear together, or the old ones stay.

They are made in a folder aside. Then a second directory is put together beside the old one, out of
hard links to the new files and to whatever else lay in the old one, and the two directories change
places in one system call: whoever looks, or kills the process, at any moment finds all old files or
all new ones.

Where directories cannot change places (a mount point, a file system or a system without that call,
a shell standing in the directory), the folder aside is renamed to `.moving-in` and its files are
moved in one by one. A process killed in between leaves the folder, and the next export finishes
the move before it begins.
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
from ..locks import LockedError, locked

_PARTIAL = ".export-"  # prefix of folders that an export writes into
_MOVING_IN = ".moving-in"  # a complete export whose files are on their way
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # fcntl.h, stdio.h of Linux


@contextlib.contextmanager
def moved_in_when_done(directory: Path) -> Iterator[Path]:
    """Yield a folder to write into; put what it holds into `directory` when all is done.

    Files of an earlier export that the new manifest no longer names are removed; whatever else
    lies in the directory stays. If the block raises or the process is interrupted, nothing has
    changed.

    Args:
        directory: Where to; made when missing.

    Raises:
        UserError: `directory` is a file, or another export is being written to it.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"Expected a directory to export to. Received: {directory}, a file.")
    directory.mkdir(parents=True, exist_ok=True)
    directory = directory.resolve()  # a link keeps pointing where it points
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
    """Keep other exports out of a directory."""
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
    """Put a directory with the new files in the place of the old one, if that can be done."""
    if sys.platform != "linux":
        return False  # the system call is Linux's
    if Path.cwd().is_relative_to(directory):
        return False  # the shell that started us would be left in a directory that is gone
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
    for path in list(beside.iterdir()):  # what came in while we were linking
        if path.name not in replaced | others and not path.name.startswith(_PARTIAL):
            os.rename(path, directory / path.name)
    shutil.rmtree(beside)
    return True


def _link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a folder of such."""
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, copy_function=os.link)
    else:
        os.link(source, target, follow_symlinks=False)


def _exchange(one: Path, other: Path) -> None:
    """Let two directories change names, in one step.

    Raises:
        OSError: The system or the file system cannot do that.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError("the C library has no renameat2")
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), one, None, other)


def _finish_move(directory: Path) -> None:
    """Move in what a complete export has left in `.moving-in`, the manifest last.

    Repeats without harm what was done before the process was killed: until the new manifest is in
    its place, the old one tells which files are to go.
    """
    arriving = directory / _MOVING_IN
    if not arriving.is_dir():
        return
    new = {path.name for path in arriving.iterdir()}
    if MANIFEST_FILE in new:
        kept = _files_of_export(arriving) | {MANIFEST_FILE}
        for name in sorted(_files_of_export(directory) - kept):
            _remove(directory / name)
    for name in sorted(new, key=lambda name: name == MANIFEST_FILE):
        if (directory / name).is_dir():
            _remove(directory / name)  # os.replace cannot replace those
        os.replace(arriving / name, directory / name)
    arriving.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _files_of_export(directory: Path) -> set[str]:
    """Return what the manifest in a directory names, itself included."""
    try:
        manifest = Manifest.load(directory)
    except UserError:  # none, or damaged: nothing is known to be ours
        return set()
    networks = [manifest.network, *(a.network for a in manifest.artifacts)]
    named = {a.file for a in manifest.artifacts} | {manifest.golden.file, MANIFEST_FILE}
    named |= {network.file for network in networks if network is not None}
    # Only plain names: a manifest from elsewhere must not point out of its directory.
    return {name for name in named if Path(name).name == name != ".."}
