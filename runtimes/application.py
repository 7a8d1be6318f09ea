"""Programs in one file: code of this package and files in one `.pyz` that Python runs.

Each contains the runtimes, the readers of an export, the other code of its program, and its files
under `export/`. The code needs Python 3.9, NumPy and one runtime. The same contents give the same
bytes.

The file is Python source: a few statements, the program `verification` as a comment in hexadecimal,
the contents (a zip archive) as comments in base64, and the SHA-256 of all that. Python ignores the
content of comments, so a truncated or modified copy still starts and can report the damage. (For a
truncated zip archive, Python only reports that it cannot find a program in it.)
"""

from __future__ import annotations

import binascii
import hashlib
import inspect
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ..errors import UserError
from . import verification

# The folder of the entries that are not code.
FOLDER = "export"

_ROOT = Path(__file__).resolve().parents[1]
# The code that every application contains.
_CODE = (
    "__init__.py",
    "advance.py",
    "errors.py",
    "files.py",
    "locks.py",
    "quiet.py",
    "version.py",
    "artifacts/archive.py",
    "artifacts/axes.py",
    "artifacts/directory.py",
    "artifacts/golden_set.py",
    "artifacts/html_table.py",
    "artifacts/joined_outputs.py",
    "artifacts/manifest.py",
    "artifacts/network.py",
    "artifacts/plain_json.py",
    "artifacts/precisions.py",
    "artifacts/ranges.py",
    "artifacts/record.py",
    "artifacts/sample_kinds.py",
    "runtimes",
)

# The statements of every program. They are few, since only damage within them can make Python
# itself refuse the file: the tests count the bits. Everything else is a comment for Python.
_START = """\
#!/usr/bin/env python3
# coding: latin1
try:
    import sys, zlib
    with open(sys.argv[0], "rb") as file:
        comments = file.read(99999).decode("latin1").split("\\n#")
    exec(zlib.decompress(bytes.fromhex(comments[2])))
except Exception:
    import sys
    print("This file is damaged or needs Python 3.9. Copy it again.", file=sys.stderr)
    sys.exit(2)
"""
# The earliest time a zip file can hold: bundles of the same export are equal bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def unpack(archive_path: Path, folder: Path) -> None:
    """Write the non-code contents of a verified program into a folder.

    Args:
        archive_path: The archive that `verification.start` passes.
        folder: An empty folder.
    """
    with zipfile.ZipFile(archive_path) as archive:
        for name in archive.namelist():
            if name.startswith(f"{FOLDER}/"):
                (folder / PurePosixPath(name).name).write_bytes(archive.read(name))


def pack(module: str, contents: Mapping[str, bytes], code: Sequence[str] = ()) -> bytes:
    """Return a program.

    Args:
        module: Module of this package, dotted, whose ``main(path)`` returns the exit code.
        contents: Name to bytes of the files that it contains.
        code: Additional modules and packages that the program needs, as paths: "devices/on_device"
            or "runtime_checks/report/json_report.py".

    Raises:
        UserError: The files exceed the size of an archive that Python can import from.
    """
    files = {f"{FOLDER}/{name}": data for name, data in contents.items()}
    carried = {**travelling_code(code), **files}
    if sum(map(len, carried.values())) > verification.LARGEST:
        raise UserError(
            f"A program in one file carries {verification.LARGEST >> 30} GiB at most. Carry fewer "
            "files: `renormlite bundle --artifact FILE`."
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in carried.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)
    return sealed(module, buffer.getvalue())


def sealed(module: str, archive: bytes) -> bytes:
    """Return the program that runs a module of a zip archive."""
    start = f"{inspect.getsource(verification)}\n\nstart(sys.argv[0], {module!r})\n"
    text = binascii.b2a_base64(archive, newline=False)
    text = text.translate(bytes.maketrans(verification.BASE64, verification.ENCODED))
    size = verification.LINE
    program = b"".join(
        [
            _START.encode(),
            b"#" + zlib.compress(start.encode(), 9).hex().encode(),
            *(
                b"\n" + verification.CONTENTS + text[place : place + size]
                for place in range(0, len(text), size)
            ),
            verification.LAST,
        ]
    )
    return program + hashlib.sha256(program).hexdigest().encode()


def travelling_code(further: Sequence[str] = ()) -> dict[str, bytes]:
    """Return the code of an application, by its path in it.

    Args:
        further: Additional modules and packages.
    """
    paths: list[Path] = []
    for name in (*_CODE, *further):
        path = _ROOT / name
        paths.extend(sorted(path.rglob("*.py")) if path.is_dir() else [path])
    # The parent packages must exist for the import; their own code is not included.
    parents = {
        parent / "__init__.py" for path in paths for parent in path.relative_to(_ROOT).parents
    }
    empty = sorted({_ROOT / parent for parent in parents} - set(paths))
    code = {path: path.read_bytes() for path in paths} | dict.fromkeys(empty, b"")
    return {f"renormlite/{path.relative_to(_ROOT).as_posix()}": data for path, data in code.items()}
