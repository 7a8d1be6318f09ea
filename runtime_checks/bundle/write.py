"""Packs files with the code that runs them into one file: `python3 NAME.parity.pyz`.

A bundle is a program in one file (`runtimes.application`) that carries artifacts with their
manifest, golden set and folded network, runs them where it is started, and judges them there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ...artifacts.directory import read_export
from ...artifacts.manifest import FILE
from ...errors import UserError
from ...files import write_bytes
from ...runtimes.application import pack

# The code that judges. Nothing here imports Keras, jinja2 or rich.
CODE = (
    "options.py",
    "runtime_checks/bundle/replay.py",
    "runtime_checks/end_to_end",
    "runtime_checks/report/json_report.py",
)


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
    entries = [entry for entry in export.record["artifacts"] if entry["file"] in carried]
    record = {**export.record, "artifacts": entries}
    paths = [export.golden, *([export.network] if export.network else [])]
    contents = {
        FILE: json.dumps(record, indent=1).encode(),
        **{file.name: file.read_bytes() for file in paths},
        **{
            name: (export.path / name).read_bytes()
            for entry in export.artifacts
            if entry.file in carried
            for name in entry.all_files
        },
    }
    final = Path(path) if path else export.path / f"{export.name}.parity.pyz"
    write_bytes(final, pack("runtime_checks.bundle.replay", contents, CODE))
    return final
