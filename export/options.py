"""The options of an export, validated in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ..artifacts.images import Preprocessing
from ..artifacts.precisions import PRECISIONS
from ..errors import UserError
from .formats.format_table import FORMAT_NAMES, precisions_of, takes_channels_first

OPSETS = range(13, 22)  # 13 brought per-channel quantization; onnx converts beyond what tf2onnx has
QUANTIZED_IO = ("float", "integer")
LAYOUTS = ("nhwc", "nchw")
EQUALIZE = ("auto", "always", "never")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How to export.

    Attributes:
        formats: File formats, among `FORMAT_NAMES`.
        precisions: What numbers the files compute with; a format that lacks one leaves it out.
        batch_size: The batch size the files are made for; None leaves it free.
        opset: Version of ONNX's operator set.
        layout: `nhwc`, or `nchw` for channels-first inputs and outputs of ONNX files.
        quantized_io: Whether fully quantized TFLite files take and give `float` or `integer`
            numbers.
        equalize: Whether quantized files are made from weights equalized across layers: `always`,
            `never`, or `auto` for where it raises the measured signal-to-noise ratio.
        calibration_samples: At most so many samples are calibrated with.
        allow_flex: Whether TFLite files may call TensorFlow operators, which most runtimes lack.
        labels: Names of the classes, kept as metadata.
        preprocessing: How pixels become inputs, kept as metadata and applied to image folders.
        description: One line about the model, kept as metadata.
    """

    formats: tuple[str, ...] = ("tflite", "onnx")
    precisions: tuple[str, ...] = ("float32",)
    batch_size: int | None = 1
    opset: int = 17
    layout: str = "nhwc"
    quantized_io: str = "float"
    equalize: str = "auto"
    calibration_samples: int = 200
    allow_flex: bool = False
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    description: str = ""

    def __post_init__(self) -> None:
        _names("formats", self.formats, FORMAT_NAMES)
        offered = {name: precisions_of(name) for name in self.formats}
        _names("precisions", self.precisions, sorted({p for ps in offered.values() for p in ps}))
        _one_of("layout", self.layout, LAYOUTS)
        _one_of("quantized_io", self.quantized_io, QUANTIZED_IO)
        _one_of("equalize", self.equalize, EQUALIZE)
        self._refuse_what_has_no_use()
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(
                "Expected batch_size to be a positive number, or None for a free batch. "
                f"Received: {self.batch_size}."
            )
        if self.opset not in OPSETS:
            raise UserError(
                f"Expected opset between {OPSETS[0]} and {OPSETS[-1]}. Received: {self.opset}."
            )
        if self.calibration_samples < 1:
            raise UserError(
                "Expected calibration_samples to be at least 1. "
                f"Received: {self.calibration_samples}."
            )

    def _refuse_what_has_no_use(self) -> None:
        """Refuse an option that no file asked for has any use for: something else was meant."""
        if self.layout != LAYOUTS[0] and not any(map(takes_channels_first, self.formats)):
            raise UserError(
                f"layout {self.layout} is for onnx files. Received formats: "
                f"{', '.join(self.formats)}. Add onnx or leave the layout out."
            )
        integer = [name for name, precision in PRECISIONS.items() if precision.integer_io]
        if self.quantized_io != QUANTIZED_IO[0] and not any(
            ("tflite", name) in self.files for name in integer
        ):
            raise UserError(
                f"quantized_io {self.quantized_io} is for {' and '.join(integer)} tflite files, "
                "and none is asked for. Add such a precision or leave quantized_io out."
            )

    @property
    def files(self) -> tuple[tuple[str, str], ...]:
        """The (format, precision) pairs to write, those a format lacks left out."""
        return tuple(
            (name, precision)
            for precision in self.precisions
            for name in self.formats
            if precision in precisions_of(name)
        )

    @property
    def left_out(self) -> tuple[tuple[str, str], ...]:
        """The (format, precision) pairs asked for that the format does not have."""
        return tuple(
            (name, precision)
            for precision in self.precisions
            for name in self.formats
            if precision not in precisions_of(name)
        )

    def to_json(self) -> dict[str, Any]:
        """Return the options for the manifest."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
            if key not in ("labels", "preprocessing", "description")  # these are metadata
        }

    def metadata(self) -> dict[str, Any]:
        """Return what the user said of the model, for the files and the manifest."""
        said: dict[str, Any] = {}
        if self.description:
            said["description"] = self.description
        if self.labels:
            said["labels"] = list(self.labels)
        if self.preprocessing is not None:
            said["preprocessing"] = dataclasses.asdict(self.preprocessing)
        return said


def _one_of(what: str, received: str, known: Sequence[str]) -> None:
    if received not in known:
        raise UserError(f"Expected {what} to be one of {', '.join(known)}. Received: {received!r}.")


def _names(what: str, received: Sequence[str], known: Sequence[str]) -> None:
    if not received or not set(received) <= set(known) or len(set(received)) < len(received):
        raise UserError(
            f"Expected {what} to be different names among {', '.join(known)}. "
            f"Received: {', '.join(received) or 'none'}."
        )
