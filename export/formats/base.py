"""The interface of file formats: write a file, read it back, run it."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ...artifacts.manifest import TensorSpec
from ...errors import UserError
from ...runtimes.base import Runner
from .format_table import FORMATS

if TYPE_CHECKING:
    from ..options import ExportOptions
    from ..quantization.calibration import Calibration
    from ..quantization.quantizer_choices import QuantizerChoices
    from ..quantization.trained import IntegerModel
    from ..signature import Signature
    from .freeze import FrozenGraph


@dataclasses.dataclass(frozen=True)
class Job:
    """One file to write.

    Attributes:
        graph: The folded network as a frozen graph, in the layout of the file.
        precision: A precision that the format supports.
        options: The options of the export.
        metadata: JSON text for the metadata of the file.
        calibration: Calibration samples; None if the precision needs none.
        trained: The integer network of a quantization-aware model; None for other models.
        choices: Settings of single layers and ranges in an int8 file; None for the quantizer's
            defaults.
        float_layers: Layers that compute in float32 in every precision, if the format supports it.
    """

    graph: FrozenGraph
    precision: str
    options: ExportOptions
    metadata: str
    calibration: Calibration | None = None
    trained: IntegerModel | None = None
    choices: QuantizerChoices | None = None
    float_layers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Contents:
    """The contents of a written file, as read back from disk.

    Attributes:
        ops: Operator names with the number of occurrences.
        inputs: Inputs in file order.
        outputs: Outputs in file order.
    """

    ops: dict[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Format(Protocol):
    """A file format: how to write it, read it back and run it."""

    name: str
    suffix: str

    def write(self, job: Job, path: Path) -> None:
        """Write one file.

        Raises:
            UserError: The converter refuses the network; the message names the first cause.
        """
        ...

    def validate(self, path: Path, job: Job) -> Contents:
        """Read a written file back and check it.

        Raises:
            UserError: The file contains a nonstandard operator or a variable, or an input or output
                is renamed, missing, reordered or of an unexpected type.
        """
        ...

    def runner(self, path: Path) -> Runner:
        """Return an unopened runner for a written file, on the format's runtime on this machine."""
        ...


def format_named(name: str) -> Format:
    """Return the format called `name`; its converter is imported."""
    home = FORMATS[name]
    module = importlib.import_module(f".{home.module}", __package__)
    format_type: type[Format] = getattr(module, home.type_name)
    return format_type()


def check_interface(path: Path, contents: Contents, expected: Signature) -> None:
    """Refuse a file whose inputs or outputs differ from the expected ones.

    Args:
        path: The file, for the message.
        contents: Its contents, as read back.
        expected: The expected names, shapes and types, in order.

    Raises:
        UserError: There is a difference.
    """
    for kind, found, wanted in (
        ("input", contents.inputs, expected.inputs),
        ("output", contents.outputs, expected.outputs),
    ):
        if [t.name for t in found] != [t.name for t in wanted]:
            raise UserError(
                f"{path.name}: expected {kind}s {[t.name for t in wanted]}, the converter wrote "
                f"{[t.name for t in found]}."
            )
        for got, want in zip(found, wanted, strict=True):
            if got.dtype != want.dtype or got.shape != want.shape:
                raise UserError(
                    f"{path.name}: expected {kind} {want.name!r} as {want.dtype}"
                    f"{list(want.shape)}, the converter wrote {got.dtype}{list(got.shape)}."
                )
