"""What every file format offers, and the table of them."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import UserError
from .freeze import FrozenGraph
from .manifest import TensorInfo
from .options import ExportOptions

# One module a format; loaded when used, since each brings its own converter and runtime.
_HOMES = {"tflite": ("tflite", "TFLite"), "onnx": ("onnx", "Onnx")}

FORMAT_NAMES = tuple(_HOMES)


@dataclasses.dataclass(frozen=True)
class Job:
    """One file to write.

    Attributes:
        graph: The folded network as a frozen graph.
        precision: One of the format's `precisions`.
        options: The export's options.
        description: One line about the model for the file's own description field.
        metadata: Named entries for the file's own metadata.
    """

    graph: FrozenGraph
    precision: str
    options: ExportOptions
    description: str
    metadata: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a written file holds, as read back from disk.

    Attributes:
        ops: Operator names and how often each occurs.
        inputs: Inputs in file order.
        outputs: Outputs in file order.
    """

    ops: dict[str, int]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


class Session(Protocol):
    """A loaded file, ready to run."""

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch of the file's own size; names and types are the file's."""
        ...


class Format(Protocol):
    """A file format: how to write it, read it back and run it."""

    name: str
    suffix: str
    precisions: tuple[str, ...]

    def write(self, job: Job, path: Path) -> None:
        """Write one file.

        Raises:
            UserError: The converter refuses the network; the message names the first culprit.
        """
        ...

    def validate(self, path: Path, job: Job) -> Contents:
        """Read a written file back and refuse it when it is not what was asked for.

        Raises:
            UserError: An operator outside the standard set, a variable left over, an input or
                output renamed, dropped, reordered or of an unexpected type.
        """
        ...

    def open(self, path: Path) -> Session:
        """Load a written file in the format's host runtime."""
        ...


def format_named(name: str) -> Format:
    """Return the format called `name`.

    Raises:
        UserError: There is none.
    """
    if name not in _HOMES:
        raise UserError(f"Expected a format among {', '.join(_HOMES)}. Received: {name!r}.")
    module, type_name = _HOMES[name]
    format_type: type[Format] = getattr(
        importlib.import_module(f".{module}", __package__), type_name
    )
    return format_type()


def check_interface(
    path: Path, kind: str, found: tuple[TensorInfo, ...], expected: tuple[TensorInfo, ...]
) -> None:
    """Refuse a file whose inputs or outputs differ from what was asked for.

    Args:
        path: The file, for the message.
        kind: `input` or `output`.
        found: As read back.
        expected: Names, shapes and types as they must be.

    Raises:
        UserError: Any difference.
    """
    if [t.name for t in found] != [t.name for t in expected]:
        raise UserError(
            f"{path.name}: expected {kind}s {[t.name for t in expected]}, the converter wrote "
            f"{[t.name for t in found]}. Report this with the model's architecture."
        )
    for got, want in zip(found, expected, strict=True):
        if got.dtype != want.dtype or got.shape != want.shape:
            raise UserError(
                f"{path.name}: expected {kind} {want.name!r} as {want.dtype}{list(want.shape)}, "
                f"the converter wrote {got.dtype}{list(got.shape)}. Give every dimension a size "
                "with input_shapes, or report this with the model's architecture."
            )
