"""Verifies a program that carries its own code and files, and starts it.

This module needs the standard library only: its source is also the beginning of every program, so
that a damaged copy is noticed before any of its code is imported. `application` describes the file.
"""

from __future__ import annotations

import binascii
import hashlib
import os
import shutil
import sys
import tempfile
import time
import traceback
import zipfile
from importlib import import_module
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and left folders stay
    fcntl = None  # type: ignore[assignment]

# The contents are comment lines of base64. "J" and "M" are replaced since one flipped bit makes a
# line end of them, and Python would read the rest of the line as code.
CONTENTS = b"#:"
LINE = 1 << 20  # characters of base64 in one line
ENCODED, BASE64 = b"!$", b"JM"
LAST = b"\n#"  # before the SHA-256 of everything up to here
FOLDERS = ("renormlite/", "export/")
LARGEST = (1 << 32) - 1  # bytes: what a zip archive can hold that Python imports from

_PREFIX, _YOUNG_S = "renormlite-bundle-", 60.0
_DIGITS = 64
_PART = 1 << 20


def verify(application: str) -> None:
    """Check a program without running it.

    Args:
        application: Its path.

    Raises:
        ValueError: It is damaged, or contains entries that no program of this package contains; the
            message is one clause.
    """
    with tempfile.TemporaryFile() as stream:
        verified_contents(application, stream)


def verified_contents(application: str, stream: IO[bytes]) -> None:
    """Write the contents of a program, a zip archive, into a stream after verifying them.

    Args:
        application: Path of the program.
        stream: Where the archive is written; opened for reading and writing.

    Raises:
        ValueError: As in `verify`.
    """
    with open(application, "rb") as file:
        _check_digest(file)
        file.seek(0)
        table = bytes.maketrans(ENCODED, BASE64)
        for line in iter(lambda: file.readline(LINE + 3), b""):
            if line.startswith(CONTENTS):
                stream.write(binascii.a2b_base64(line[len(CONTENTS) :].translate(table)))
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
    except Exception as error:  # zipfile raises a dozen unrelated types for hostile bytes
        raise ValueError(str(error) or type(error).__name__) from error
    for entry in entries:
        if not entry.filename.startswith(FOLDERS) or ".." in entry.filename:
            raise ValueError(f"it holds the unknown entry {entry.filename!a}")
    if sum(entry.file_size for entry in entries) > LARGEST:
        raise ValueError(f"its contents are larger than {LARGEST >> 30} GiB")


def _check_digest(file: IO[bytes]) -> None:
    left = file.seek(0, os.SEEK_END) - _DIGITS
    file.seek(0)
    digest = hashlib.sha256()
    while left > 0:
        part = file.read(min(left, _PART))
        if not part:
            break
        digest.update(part)
        left -= len(part)
    if file.read(_DIGITS + 1) != digest.hexdigest().encode():
        raise ValueError("it does not end with its SHA-256, so it was cut off or changed")


def start(application: str, module: str) -> None:
    """Verify a program, run a module of it and end the process with its exit code.

    The code is imported from the archive, which is written to a temporary folder for it. The exit
    code is 2, with one sentence, where the program is damaged or cannot run here.

    Args:
        application: Path of the program.
        module: Module of this package, dotted, whose ``main(path)`` returns the exit code; it is
            given the path of the archive, which has the name of the program.
    """
    name = os.path.basename(application)
    if sys.version_info < (3, 9):  # noqa: UP036 - a device may have any
        _refuse(f"{name} needs Python 3.9 or newer, this is {sys.version.split()[0]}.")
    _clear_left_behind()
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
        _lock(folder)
        archive = os.path.join(folder, name)
        try:
            with open(archive, "w+b") as stream:
                verified_contents(application, stream)
        except ValueError as error:
            _refuse(f"{name} is damaged: {error}. Copy it again.")
        except OSError as error:
            _refuse(f"{name} cannot be unpacked in {folder}: {error.strerror}.")
        beside = os.path.dirname(os.path.realpath(application))
        if os.path.realpath(sys.path[0]) == beside:
            del sys.path[0]  # Python's default: other modules in the program's folder
        sys.path.insert(0, archive)
        try:
            import_module("numpy")
        except ImportError:
            _refuse(f"{name} needs NumPy. Install it: pip install numpy")
        try:
            code = import_module(f"renormlite.{module}").main(archive)
        except Exception:  # the caller takes what escapes here for damage
            traceback.print_exc()
            code = 1
        sys.exit(code)


def _clear_left_behind() -> None:
    """Remove the folders of killed programs; those of running ones are locked."""
    base = tempfile.gettempdir()
    for name in os.listdir(base):
        folder = os.path.join(base, name)
        if name.startswith(_PREFIX) and _is_old(folder) and _lock(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_old(folder: str) -> bool:
    """Return whether no program is about to lock a folder."""
    try:
        return time.time() - os.path.getmtime(folder) > _YOUNG_S
    except OSError:  # another program has removed it
        return False


def _lock(folder: str) -> bool:
    """Lock a folder until the process ends; return whether that was possible."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it is in use, or the file system has no locks
        return False
    return True


def _refuse(sentence: str) -> None:
    print(sentence, file=sys.stderr)
    sys.exit(2)
