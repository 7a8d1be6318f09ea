"""The table of file formats, with the precisions that each supports.

It needs no converter, so that `--help` and option errors are fast.
"""

from __future__ import annotations

import dataclasses

from ...artifacts.precisions import PRECISIONS


@dataclasses.dataclass(frozen=True)
class FormatEntry:
    """One format.

    Attributes:
        module: The module of this package that defines it; imported on use, since each imports its
            converter and runtime.
        type_name: Its class in that module.
        channels_first: Whether the layout option applies to it.
        precisions: Supported precisions, in addition to those whose entry names the format.
    """

    module: str
    type_name: str
    channels_first: bool = False
    precisions: tuple[str, ...] = ()


FORMATS = {
    "tflite": FormatEntry("tflite", "TFLite"),
    "onnx": FormatEntry("onnx", "Onnx", channels_first=True),
    "saved_model": FormatEntry("saved_model", "SavedModel"),
}

FORMAT_NAMES = tuple(FORMATS)


def precisions_of(name: str) -> tuple[str, ...]:
    """Return the precisions that a format supports."""
    own = FORMATS[name].precisions
    return tuple(key for key, entry in PRECISIONS.items() if name in entry.formats or key in own)


def needs_calibration(name: str, precision: str) -> bool:
    """Return whether a precision of a format needs calibration samples."""
    return PRECISIONS[precision].calibrated and precision in precisions_of(name)


def takes_channels_first(name: str) -> bool:
    """Return whether the layout option applies to a format."""
    return FORMATS[name].channels_first
