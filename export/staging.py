"""An export's files appear together, or the old ones stay."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError
from .manifest import FILE_NAME as MANIFEST_FILE
from .manifest import Manifest


@contextlib.contextmanager
def moved_in_when_done(directory: Path) -> Iterator[Path]:
    """Yield a folder to write into; move what it holds into `directory` when all is done.

    The manifest goes last, so that it never names a file that is not there. Files of an earlier
    export that the new manifest no longer names are removed; whatever else lies in the directory
    stays. If the block raises or the process is interrupted, nothing has changed.

    Args:
        directory: Where to; made when missing.

    Raises:
        UserError: `directory` is a file.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"Expected a directory to export to. Received: {directory}, a file.")
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=directory) as folder:
        staging = Path(folder)
        yield staging
        earlier = _files_of_earlier_export(directory)
        new = sorted(path.name for path in staging.iterdir())
        for name in sorted(new, key=lambda name: name == MANIFEST_FILE):
            _remove(directory / name, only_folders=True)  # os.replace cannot replace those
            os.replace(staging / name, directory / name)
        for name in sorted(earlier - set(new)):
            _remove(directory / name)


def _remove(path: Path, *, only_folders: bool = False) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif not only_folders:
        path.unlink(missing_ok=True)


def _files_of_earlier_export(directory: Path) -> set[str]:
    try:
        manifest = Manifest.load(directory)
    except UserError:  # none, or damaged: nothing is known to be ours
        return set()
    named = {a.file for a in manifest.artifacts}
    named |= {a.network.file for a in manifest.artifacts if a.network is not None}
    # Only plain names: a manifest from elsewhere must not point out of its directory.
    return {name for name in named if Path(name).name == name}
