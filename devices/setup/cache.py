"""The cache of emulated systems, wheels and web packages.

A component is a folder that is created atomically and holds the recipe it was built from. It is
rebuilt when the recipe changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base import DeviceError

Progress = Callable[[str], None]
_RECIPE = "component.json"


def cache_root() -> Path:
    """Return `$RENORMLITE_CACHE`, else `renormlite` in the user's cache folder (XDG)."""
    chosen = os.environ.get("RENORMLITE_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "renormlite"


@dataclass(frozen=True)
class Component:
    """One folder of the cache.

    Attributes:
        name: Name of the folder.
        recipe: What it is built from, as JSON; a changed recipe means a rebuild.
        needs_bytes: Disk space that building needs, checked before anything is downloaded.
    """

    name: str
    recipe: Mapping[str, Any]
    needs_bytes: int

    @property
    def path(self) -> Path:
        """Its folder, which may not exist."""
        return cache_root() / "devices" / self.name

    def record(self) -> dict[str, Any] | None:
        """Return the record of its build, or None when it is absent or outdated."""
        try:
            note = json.loads((self.path / _RECIPE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return note if note.get("recipe") == dict(self.recipe) else None

    def make(
        self, build: Callable[[Path], Mapping[str, Any]], progress: Progress
    ) -> dict[str, Any]:
        """Return its record, building it first where that is needed.

        Args:
            build: Fills an empty folder and returns the record to keep.
            progress: Called with one line for each step.

        Raises:
            DeviceError: The cache cannot be written or has too little space.
        """
        found = self.record()
        if found is not None:
            progress(f"{self.name}: ready ({megabytes(found['bytes'])} at {self.path})")
            return found
        with self._locked(progress):
            found = self.record()  # another process may have built it meanwhile
            if found is not None:
                return found
            self._remove_partial()
            self._check_space()
            folder = Path(tempfile.mkdtemp(prefix=self._partial, dir=self.path.parent))
            try:
                noted = {**build(folder), "recipe": dict(self.recipe), "bytes": folder_size(folder)}
                (folder / _RECIPE).write_text(json.dumps(noted, indent=1), encoding="utf-8")
                self._discard()
                os.replace(folder, self.path)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        progress(f"{self.name}: made ({megabytes(noted['bytes'])} at {self.path})")
        return noted

    def remove(self) -> int:
        """Remove it and return the bytes freed; 0 when it was not there."""
        if not self.path.parent.exists():
            return 0
        with self._locked():
            size = folder_size(self.path) if self.path.exists() else 0
            self._discard()
            return size + self._remove_partial()

    @property
    def _partial(self) -> str:
        """Prefix of the names of unfinished folders."""
        return f".{self.name}.part-"

    def _discard(self) -> None:
        """Remove its folder, if there is one; a killed process leaves none that seems whole."""
        if self.path.exists():
            gone = tempfile.mkdtemp(prefix=self._partial, dir=self.path.parent)
            os.replace(self.path, gone)
            shutil.rmtree(gone)

    def _remove_partial(self) -> int:
        """Remove unfinished folders of killed processes and return the bytes freed."""
        size = 0
        for folder in self.path.parent.glob(f"{self._partial}*"):
            size += folder_size(folder)
            shutil.rmtree(folder)
        return size

    @contextlib.contextmanager
    def _locked(self, progress: Progress | None = None) -> Iterator[None]:
        """Hold the component's lock."""
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = open(folder / f".{self.name}.lock", "w")  # noqa: SIM115 (closed with the lock)
        except OSError as error:
            raise DeviceError(
                f"The cache folder {folder} cannot be written ({error.strerror}): set "
                "RENORMLITE_CACHE to one that can."
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if progress is not None:
                    progress(f"{self.name}: waiting for another process that builds it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _check_space(self) -> None:
        free = shutil.disk_usage(self.path.parent).free
        if free < self.needs_bytes:
            raise DeviceError(
                f"{self.path.parent} has {megabytes(free)} free and {self.name} takes "
                f"{megabytes(self.needs_bytes)}: free some space, or set RENORMLITE_CACHE to a "
                "folder elsewhere."
            )


def folder_size(folder: Path) -> int:
    """Return the total size of all files below a folder in bytes."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def megabytes(size: float) -> str:
    """Return a size in bytes as text in megabytes."""
    return f"{size / 1e6:.1f} MB"
