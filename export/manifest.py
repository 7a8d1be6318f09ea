"""What the exporter writes besides the files themselves: its door to the manifest's records.

They are defined where the checks that read them are (`artifacts/manifest.py`), since
those travel to devices and this package does not.
"""

from __future__ import annotations

from pathlib import Path

from ..artifacts.manifest import FILE as FILE_NAME
from ..artifacts.manifest import SCHEMA, Artifact, FileRecord, Manifest
from ..artifacts.manifest import TensorSpec as TensorInfo
from ..files import sha256

METADATA_KEY = "renormlite"  # of the entry inside exported files that holds their metadata, JSON


def hash_folder(folder: Path) -> dict[str, str]:
    """Return relative path to hash of every file in a folder, in the order of the paths."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in paths}


__all__ = [
    "FILE_NAME",
    "METADATA_KEY",
    "SCHEMA",
    "Artifact",
    "FileRecord",
    "Manifest",
    "TensorInfo",
    "hash_folder",
]
