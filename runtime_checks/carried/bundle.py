"""Packs files with the code that runs them into one file: `python3 NAME.parity.pyz`.

Each is a Python zip application: the part of `runtime_checks` that needs Python, NumPy and a
runtime only; what it is for under `export/`; and `carried.json` with the SHA-256 of each of these.
A bundle carries artifacts with manifest, golden set and folded network, and judges; a device run
carries artifacts and inputs, and brings back outputs. The same contents give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ...files import write_bytes
from ..export_directory import ExportDirectory, read_export
from ..formats.archive import packed_arrays
from ..formats.records import FILE, Artifact
from .contents import FOLDER, HASHES
from .device_run import ARTIFACTS, INPUT, INPUTS

_ROOT = Path(__file__).resolve().parents[2]

# What travels, by module of the package: nothing here imports Keras, jinja2 or rich.
_MODULES = (
    "__init__.py",
    "errors.py",
    "files.py",
    "quiet.py",
    "runtime_checks/__init__.py",
    "runtime_checks/export_directory.py",
    "runtime_checks/target_check.py",
    "runtime_checks/carried/__init__.py",
    "runtime_checks/carried/contents.py",
    "runtime_checks/carried/device_run.py",
    "runtime_checks/carried/replay.py",
    "runtime_checks/formats/__init__.py",
    "runtime_checks/formats/archive.py",
    "runtime_checks/formats/golden.py",
    "runtime_checks/formats/records.py",
    "runtime_checks/report/__init__.py",
    "runtime_checks/report/json_report.py",
)
_PACKAGES = tuple(
    f"runtime_checks/{name}" for name in ("runners", "truth", "truth/operators", "verdict")
)

_START = """\
import sys

if sys.version_info < (3, 9):
    sys.exit("This bundle needs Python 3.9 or newer, this is " + sys.version.split()[0])
try:
    import numpy
except ImportError:
    print("This bundle needs NumPy. Install it: pip install numpy", file=sys.stderr)
    sys.exit(2)

"""
_MAIN = (
    _START
    + """\
from renormlite.runtime_checks.carried.{module} import main

sys.exit(main(sys.argv[0]))
"""
)
_WORKER = (
    _START
    + """\
from renormlite.runtime_checks.runners.worker import serve

serve()
"""
)

# The earliest time a zip file can hold: bundles of the same export are equal bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_bundle(
    directory: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    artifacts: Sequence[str] = (),
) -> Path:
    """Write the bundle of an export.

    Args:
        directory: What `renormlite export` wrote.
        path: The file to write; `NAME.parity.pyz` in the directory by default.
        artifacts: Which files to carry; all that some runtime loads by default.

    Returns:
        The path of the bundle.

    Raises:
        UserError: The directory cannot be read, or an artifact is not in it.
    """
    export = read_export(directory)
    known = [entry.file for entry in export.artifacts if (export.path / entry.file).is_file()]
    unknown = [name for name in artifacts if name not in known]
    if unknown:
        raise UserError(
            f"A bundle carries files of the export: {', '.join(known)}. Received: {unknown[0]!r}."
        )
    carried = list(artifacts) or known
    record = {**export.record, "artifacts": _records(export, carried)}
    paths = [export.golden, *([export.network] if export.network else [])]
    contents = {
        FILE: json.dumps(record, indent=1).encode(),
        **{file.name: file.read_bytes() for file in paths},
        **{name: (export.path / name).read_bytes() for name in carried},
    }
    final = Path(path) if path else export.path / f"{export.name}.parity.pyz"
    write_bytes(final, _packed(_MAIN.format(module="replay"), contents))
    return final


def write_device_run(
    export: ExportDirectory,
    artifacts: Sequence[Artifact],
    inputs: Mapping[str, np.ndarray],
    path: Path,
) -> Path:
    """Write what a device runs for the host: `device_run` with files and inputs.

    Args:
        export: The export that the artifacts belong to.
        artifacts: The files to run.
        inputs: Keras input name to (N, …) floats: any samples, not only the golden ones.
        path: The file to write.

    Returns:
        The path.
    """
    files = [artifact.file for artifact in artifacts]
    contents = {
        ARTIFACTS: json.dumps(_records(export, files)).encode(),
        INPUTS: packed_arrays({f"{INPUT}:{name}": array for name, array in inputs.items()}),
        **{name: (export.path / name).read_bytes() for name in files},
    }
    write_bytes(path, _packed(_MAIN.format(module="device_run"), contents))
    return path


def _records(export: ExportDirectory, files: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the manifest says of some artifacts."""
    return [entry for entry in export.record["artifacts"] if entry["file"] in files]


def write_worker(path: Path) -> Path:
    """Write the program that `runners.isolated` starts in another environment."""
    write_bytes(path, _packed(_WORKER, {}))
    return path


def code() -> dict[str, bytes]:
    """Return the code that travels, by its path in the bundle."""
    paths = [_ROOT / name for name in _MODULES]
    for package in _PACKAGES:
        paths.extend(sorted((_ROOT / package).glob("*.py")))
    return {f"renormlite/{path.relative_to(_ROOT).as_posix()}": path.read_bytes() for path in paths}


def _packed(main: str, contents: dict[str, bytes]) -> bytes:
    """Return the zip application that starts with ``main`` and carries code and ``contents``."""
    carried = {**code(), **{f"{FOLDER}/{name}": data for name, data in contents.items()}}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in carried.items()}
    everything = {
        "__main__.py": main.encode(),
        HASHES: json.dumps(hashes, indent=1).encode(),
        **carried,
    }
    buffer = io.BytesIO()
    buffer.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, data in everything.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
