"""Verifies a zip application against the hashes that it carries.

This module needs the standard library only: its source is also the beginning of every
application's `__main__.py`, so that a damaged copy is noticed before any of its code is imported.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from typing import IO

# SHA-256 and size of each entry by its name.
HASHES = "carried.json"
_MAIN = "__main__.py"


def verify(application: str) -> None:
    """Check every entry of a zip application.

    Args:
        application: Its path.

    Raises:
        ValueError: An entry is missing, unknown, of another size or has another hash, or the file
            is no zip application; one clause.
    """
    try:
        with zipfile.ZipFile(application) as archive:
            found = {entry.filename: entry for entry in archive.infolist()}
            carried = json.loads(archive.read(HASHES))
            missing = set(carried) - set(found)
            unknown = set(found) - set(carried) - {HASHES, _MAIN}
            if missing or unknown:
                names = ", ".join(sorted(map(ascii, missing or unknown))[:3])
                raise ValueError(f"it {'lacks' if missing else 'holds the unknown entry'} {names}")
            for name, (digest, size) in carried.items():
                if found[name].file_size != size:
                    raise ValueError(f"{name} has another size")
                with archive.open(name) as stream:
                    if _sha256(stream) != digest:
                        raise ValueError(f"{name} has another SHA-256")
    except ValueError:
        raise
    except Exception as error:  # hostile bytes make zipfile raise a dozen unrelated types
        raise ValueError(str(error) or type(error).__name__) from error


def _sha256(stream: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while True:
        part = stream.read(1 << 20)
        if not part:
            return digest.hexdigest()
        digest.update(part)


def exit_if_damaged(application: str) -> None:
    """End the process with exit code 2 and one sentence where an application is damaged."""
    if sys.version_info < (3, 9):  # noqa: UP036 - a device may have any
        version = sys.version.split()[0]
        print(f"This bundle needs Python 3.9 or newer, this is {version}.", file=sys.stderr)
        sys.exit(2)
    try:
        verify(application)
    except ValueError as error:
        print(f"{application} is damaged: {error}. Copy it again.", file=sys.stderr)
        sys.exit(2)
