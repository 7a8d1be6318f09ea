"""Zip applications: code of this package and files in one `.pyz` that Python runs.

Each holds the runtimes, the readers of an export, what else its program needs, its own files under
`export/`, and `carried.json` with SHA-256 and size of every entry. The code needs Python 3.9,
NumPy and one runtime. The same contents give the same bytes.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from . import verification
from .verification import HASHES

# The folder of the entries that are no code.
FOLDER = "export"

_ROOT = Path(__file__).resolve().parents[1]
# The code that every application carries.
_CODE = (
    "__init__.py",
    "errors.py",
    "files.py",
    "locks.py",
    "quiet.py",
    "version.py",
    "artifacts/archive.py",
    "artifacts/directory.py",
    "artifacts/golden_set.py",
    "artifacts/html_table.py",
    "artifacts/manifest.py",
    "artifacts/network.py",
    "artifacts/plain_json.py",
    "artifacts/precisions.py",
    "artifacts/ranges.py",
    "artifacts/record.py",
    "artifacts/sample_kinds.py",
    "runtimes",
)

# What `__main__.py` does after the source of `verification`.
_MAIN = """

exit_if_damaged(sys.argv[0])
try:
    import numpy
except ImportError:
    print("This bundle needs NumPy. Install it: pip install numpy", file=sys.stderr)
    sys.exit(2)

from renormlite.{module} import main

sys.exit(main(sys.argv[0]))
"""
# The earliest time a zip file can hold: bundles of the same export are equal bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def unpack(application: Path, folder: Path) -> None:
    """Write the non-code contents of a verified application into a folder."""
    with zipfile.ZipFile(application) as archive:
        for name in archive.namelist():
            if name.startswith(f"{FOLDER}/"):
                (folder / PurePosixPath(name).name).write_bytes(archive.read(name))


def pack(module: str, contents: Mapping[str, bytes], code: Sequence[str] = ()) -> bytes:
    """Return a zip application.

    Args:
        module: Module of this package, dotted, whose ``main(path)`` returns the exit code.
        contents: Name to bytes of the files it carries.
        code: Modules and packages that the program needs besides those that every application
            carries, as paths: "devices/on_device" or "runtime_checks/report/json_report.py".
    """
    files = {f"{FOLDER}/{name}": data for name, data in contents.items()}
    carried = {**travelling_code(code), **files}
    hashes = {name: [hashlib.sha256(data).hexdigest(), len(data)] for name, data in carried.items()}
    everything = {
        "__main__.py": (inspect.getsource(verification) + _MAIN.format(module=module)).encode(),
        HASHES: json.dumps(hashes, indent=1).encode(),
        **carried,
    }
    buffer = io.BytesIO()
    buffer.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, data in everything.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def travelling_code(further: Sequence[str] = ()) -> dict[str, bytes]:
    """Return the code that travels, by its path in the application.

    Args:
        further: Modules and packages besides those that every application carries.
    """
    paths: list[Path] = []
    for name in (*_CODE, *further):
        path = _ROOT / name
        paths.extend(sorted(path.rglob("*.py")) if path.is_dir() else [path])
    # A package is imported through those above it, whose own code does not travel.
    parents = {
        parent / "__init__.py" for path in paths for parent in path.relative_to(_ROOT).parents
    }
    empty = sorted({_ROOT / parent for parent in parents} - set(paths))
    code = {path: path.read_bytes() for path in paths} | dict.fromkeys(empty, b"")
    return {f"renormlite/{path.relative_to(_ROOT).as_posix()}": data for path, data in code.items()}
