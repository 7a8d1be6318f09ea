"""The table of file formats: where each lives and what it can write.

Known without loading a converter, so that `--help` and a wrong option are answered at once.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class FormatEntry:
    """One format.

    Attributes:
        module: The module of this package that holds it; loaded when used, since each brings its
            own converter and runtime.
        type_name: Its class there.
        precisions: What it can write.
        calibrated: Those that take the ranges of activations from samples.
        channels_first: Whether the layout option is for it.
    """

    module: str
    type_name: str
    precisions: tuple[str, ...]
    calibrated: tuple[str, ...] = ()
    channels_first: bool = False


FORMATS = {
    "tflite": FormatEntry(
        "tflite",
        "TFLite",
        ("float32", "float16", "dynamic", "int8", "int16x8", "int4"),
        calibrated=("int8", "int16x8"),
    ),
    "onnx": FormatEntry(
        "onnx",
        "Onnx",
        ("float32", "float16", "dynamic", "int8"),
        calibrated=("int8",),
        channels_first=True,
    ),
    "saved_model": FormatEntry("saved_model", "SavedModel", ("float32",)),
}

FORMAT_NAMES = tuple(FORMATS)

# All of them, each once, as the formats first name them.
PRECISIONS = tuple(dict.fromkeys(p for entry in FORMATS.values() for p in entry.precisions))


def precisions_of(name: str) -> tuple[str, ...]:
    """Return the precisions a format can write."""
    return FORMATS[name].precisions


def needs_calibration(name: str, precision: str) -> bool:
    """Tell whether a precision of a format takes ranges from samples."""
    return precision in FORMATS[name].calibrated


def takes_channels_first(name: str) -> bool:
    """Tell whether the layout option is for this format."""
    return FORMATS[name].channels_first
