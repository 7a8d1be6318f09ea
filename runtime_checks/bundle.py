"""Packs an export with the code that checks it into one file: `python3 NAME.parity.pyz`.

A bundle is a Python zip application: the part of `runtime_checks` that needs Python, NumPy and a
runtime only; the artifacts with manifest, golden set and folded network under `export/`; and
`carried.json` with the SHA-256 of each of these. The same export gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..files import write_bytes
from .manifest import FILE, read_export
from .replay import CARRIED, EXPORT

_ROOT = Path(__file__).resolve().parent.parent

# What travels, by module of the package: nothing here imports Keras, jinja2 or rich.
_MODULES = (
    "__init__.py",
    "errors.py",
    "files.py",
    "quiet.py",
    "runtime_checks/__init__.py",
    "runtime_checks/agreement.py",
    "runtime_checks/bounds.py",
    "runtime_checks/compare.py",
    "runtime_checks/golden.py",
    "runtime_checks/host.py",
    "runtime_checks/kinds.py",
    "runtime_checks/manifest.py",
    "runtime_checks/network.py",
    "runtime_checks/replay.py",
    "runtime_checks/session.py",
    "runtime_checks/stages.py",
    "runtime_checks/target_check.py",
    "runtime_checks/verdict.py",
    "runtime_checks/report/__init__.py",
    "runtime_checks/report/json_report.py",
)
_PACKAGES = ("runtime_checks/operators", "runtime_checks/runners")

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
_REPLAY = (
    _START
    + """\
from renormlite.runtime_checks.replay import main

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
    record = {
        **export.record,
        "artifacts": [e for e in export.record["artifacts"] if e["file"] in carried],
    }
    contents = {
        f"{EXPORT}/{FILE}": json.dumps(record, indent=1).encode(),
        f"{EXPORT}/{export.golden.name}": export.golden.read_bytes(),
        **{f"{EXPORT}/{name}": (export.path / name).read_bytes() for name in carried},
    }
    if export.network:
        contents[f"{EXPORT}/{export.network.name}"] = export.network.read_bytes()
    final = Path(path) if path else export.path / f"{export.name}.parity.pyz"
    write_bytes(final, _packed(_REPLAY, {**code(), **contents}))
    return final


def write_worker(path: Path) -> Path:
    """Write the program that `runners.isolated` starts in another environment."""
    write_bytes(path, _packed(_WORKER, code()))
    return path


def code() -> dict[str, bytes]:
    """Return the code that travels, by its path in the bundle."""
    paths = [_ROOT / name for name in _MODULES]
    for package in _PACKAGES:
        paths.extend(sorted((_ROOT / package).glob("*.py")))
    return {f"renormlite/{path.relative_to(_ROOT).as_posix()}": path.read_bytes() for path in paths}


def _packed(main: str, contents: dict[str, bytes]) -> bytes:
    """Return the zip application that starts with ``main`` and holds ``contents``."""
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    everything = {
        "__main__.py": main.encode(),
        CARRIED: json.dumps(hashes, indent=1).encode(),
        **contents,
    }
    buffer = io.BytesIO()
    buffer.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, data in everything.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
