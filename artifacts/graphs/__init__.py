"""The graph of an exported file, in the same form for every format: operators, tensors, constants.

It describes the content of a file; the expected values come from the network.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

from ...errors import UserError
from ...files import regular
from .base import ArtifactGraph, GraphOp
from .soundness import TooLargeError as TooLargeError
from .soundness import demand_sound_ops, demand_sound_tensors
from .soundness import reading as reading

# Format to the module here that reads it.
READERS = {"tflite": "tflite_graph", "onnx": "onnx_graph"}
_NAMES = {"tflite": "a TFLite file", "onnx": "an ONNX file"}

# First bytes of files that are neither, and what these are.
_OTHERS = {
    b"PK": "a ZIP archive, such as a .keras or .npz file",
    b"\x89HDF": "an HDF5 file, such as an .h5 model",
    b"version https://git-lfs": "a pointer of Git LFS, which `git lfs pull` replaces by the file",
    b"<": "a web page or another text with tags",
}


def read_graph(
    path: Path, format_name: str, data: bytes | None = None, *, bounded: bool = True
) -> ArtifactGraph:
    """Read an exported file.

    Args:
        path: The file.
        format_name: "tflite" or "onnx".
        data: Its bytes, where they have been read already.
        bounded: Whether a file that computes gigabytes from little is refused; not needed for one
            that has been run already.

    Returns:
        Its graph.

    Raises:
        UserError: The file is damaged or not well-formed; its ops are checked on first use.
        MissingPackageError: The package that reads the format is not installed.
    """
    if format_name not in READERS:
        raise UserError(
            f"The ops of {path.name} cannot be read: expected a format among "
            f"{', '.join(READERS)}. Received: '{format_name}'."
        )
    reader = importlib.import_module(f".{READERS[format_name]}", __package__)
    what = _NAMES[format_name]
    content = regular(path).read_bytes() if data is None else data
    _demand_format(path, content, format_name)
    with reading(path, what):
        graph: ArtifactGraph = reader.read(path, content, bounded=bounded)
        demand_sound_tensors(graph)

    def sound_ops() -> tuple[GraphOp, ...]:
        with reading(path, what):
            ops = graph.read_ops()
            demand_sound_ops(graph, ops)
        return ops

    return replace(graph, read_ops=sound_ops)


def _demand_format(path: Path, content: bytes, format_name: str) -> None:
    """Refuse a file whose first bytes are those of another format."""
    marked = content[4:8] == b"TFL3"
    # The first field of an ONNX file is its version.
    other = "tflite" if marked else "onnx" if content[:1] == b"\x08" else ""
    if other and other != format_name:
        says = f"it seems to be {_NAMES[other]}. Rename it to {path.stem}.{other}"
    else:
        found = [kind for start, kind in _OTHERS.items() if content.startswith(start)]
        if not content:
            found = ["empty"]
        if not found:
            return
        says = f"it is {found[0]}"
    raise UserError(f"{path} cannot be read as {_NAMES[format_name]}: {says}.")


def format_of(path: Path) -> str:
    """Return the format of a file, by its suffix.

    Raises:
        UserError: There is no such file, or the suffix is unknown.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    name = path.suffix.lstrip(".")
    if name not in READERS:
        known = " or ".join(f".{format_name}" for format_name in READERS)
        raise UserError(f"Expected a file name that ends in {known}. Received: '{path}'.")
    return name


def with_shapes(graph: ArtifactGraph, path: Path, *, one_sample: bool = False) -> ArtifactGraph:
    """Return a file's graph with the shapes that the format leaves to be inferred.

    Args:
        graph: The graph.
        path: The file.
        one_sample: Whether a free batch size is set to one.
    """
    if path.suffix != ".onnx":
        return graph
    from .onnx_graph import with_inferred_shapes

    with reading(path, _NAMES["onnx"]):
        return with_inferred_shapes(graph, path, one_sample=one_sample)
