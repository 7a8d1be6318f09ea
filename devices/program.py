"""The program that a device runs for the host: `on_device.run` with files and inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..artifacts.archive import packed_arrays
from ..artifacts.directory import ExportDirectory
from ..artifacts.manifest import Artifact
from ..files import write_bytes
from ..runtimes.application import pack
from .on_device.run import ARTIFACTS, INPUT, INPUTS


def write_program(
    export: ExportDirectory,
    artifacts: Sequence[Artifact],
    inputs: Mapping[str, np.ndarray],
    path: Path,
) -> Path:
    """Write the program that runs files on a device and returns their outputs.

    Args:
        export: The export that the artifacts belong to.
        artifacts: The files to run.
        inputs: Keras input name to (N, …) floats: the golden set's or any other samples.
        path: The file to write.

    Returns:
        The path.
    """
    files = [artifact.file for artifact in artifacts]
    contents = {
        ARTIFACTS: json.dumps(
            [entry for entry in export.record["artifacts"] if entry["file"] in files]
        ).encode(),
        INPUTS: packed_arrays({f"{INPUT}:{name}": array for name, array in inputs.items()}),
        **{
            name: (export.path / name).read_bytes()
            for artifact in artifacts
            for name in artifact.all_files
        },
    }
    write_bytes(path, pack("devices.on_device.run", contents, ["devices/on_device/run.py"]))
    return path
