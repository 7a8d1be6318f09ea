"""The table of file formats, and which precisions each can hold.

Known without loading a converter, so that `--help` and a wrong option are answered at once.
"""

from __future__ import annotations

import dataclasses

from ...artifacts.precisions import PRECISIONS


@dataclasses.dataclass(frozen=True)
class FormatEntry:
    """One format.

    Attributes:
        module: The module of this package that holds it; loaded when used, since each brings its
            own converter and runtime.
        type_name: Its class there.
        channels_first: Whether the layout option is for it.
        precisions: Precisions that it can hold, besides those whose own entry names the format.
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
    """Return the precisions a format can write."""
    own = FORMATS[name].precisions
    return tuple(key for key, entry in PRECISIONS.items() if name in entry.formats or key in own)


def needs_calibration(name: str, precision: str) -> bool:
    """Return whether a precision of a format takes ranges from samples."""
    return PRECISIONS[precision].calibrated and precision in precisions_of(name)


def takes_channels_first(name: str) -> bool:
    """Return whether the layout option is for this format."""
    return FORMATS[name].channels_first
