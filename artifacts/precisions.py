"""The precisions of exported files, and constants of IEEE arithmetic.

A precision is one entry of `PRECISIONS`, which exporters, runtimes, noise models and checks read.
The module needs only NumPy, since it is also used on devices.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError

# Unit roundoff: half the distance from 1 to the next number (Higham, Accuracy and Stability, 2.1).
UNIT_ROUNDOFF = {"float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}

# Runtimes may flush denormals to zero, which changes a float32 result by at most this much.
SMALLEST_NORMAL = 2.0**-126

GREATEST_FLOAT32 = 2.0**128 - 2.0**104

# The least signal-to-noise ratio at which an output is usable, in decibels: an error of 32 %.
LEAST_SNR = 10.0

# A healthy runtime makes the same roundings in another order, so its error is about as large as the
# noise, not a multiple of it. docs/checks.md lists the ratios measured on healthy files.
WORST_SAMPLE_LIMIT = 5.0
POOLED_LIMIT = 1.5


def half_rounding(size: Any) -> Any:
    """Return a bound on the error of numbers up to a size that are rounded to half precision.

    Below the least normal half the error is half of its last place, 2^-25.
    """
    return UNIT_ROUNDOFF["float16"] * size + 2.0**-25


class Arithmetic(enum.Enum):
    """The kind of arithmetic that an operator of a file needs from its runtime."""

    FLOAT32 = "float32"
    FLOAT16 = "float16 weights, computed in float16 or float32"
    HYBRID = "integer weights, float activations that are quantized at run time"
    INTEGER = "integer weights and activations"


@dataclass(frozen=True)
class Precision:
    """The storage and arithmetic of the weights and activations of a file.

    Attributes:
        name: Name in options, file names and the manifest.
        summary: One line for `--help` and the docs.
        arithmetic: The arithmetic that a runtime must support.
        formats: File formats that support it.
        calibrated: Whether the ranges of activations come from samples.
        unit_roundoff: Unit roundoff of its float arithmetic.
        noise: The cause of the error that the noise model predicts, as the end of a sentence: the
            error against truth or, for integers, the difference from another correct runtime. Empty
            if there is no model.
        integer_io: Element type of inputs and outputs with `quantized_io="integer"`; None if they
            are always floats.
        variant_of: Name of the precision whose converter writes it; empty if it has its own.
    """

    name: str
    summary: str
    arithmetic: Arithmetic
    formats: tuple[str, ...]
    calibrated: bool = False
    unit_roundoff: float = UNIT_ROUNDOFF["float32"]
    noise: str = ""
    integer_io: str | None = None
    variant_of: str = ""

    @property
    def converter(self) -> str:
        """The name under which each format finds its converter."""
        return self.variant_of or self.name

    @property
    def quantized(self) -> bool:
        """Whether weights are integers, which benefit from equalization."""
        return self.arithmetic in (Arithmetic.HYBRID, Arithmetic.INTEGER)

    @functools.cached_property
    def takes_nonfinite(self) -> bool:
        """Whether a file accepts NaN and infinity, which integers cannot represent."""
        return not self.quantized


def _table(*entries: Precision) -> Mapping[str, Precision]:
    return {entry.name: entry for entry in entries}


PRECISIONS = _table(
    Precision(
        "float32", "float32 throughout", Arithmetic.FLOAT32, ("tflite", "onnx", "saved_model")
    ),
    Precision(
        "float16",
        "float16 weights; TFLite computes in float32",
        Arithmetic.FLOAT16,
        ("tflite", "onnx"),
        unit_roundoff=UNIT_ROUNDOFF["float16"],
        noise="half-precision weights and arithmetic on this network",
    ),
    Precision(
        "dynamic",
        "int8 weights; activations are quantized at run time",
        Arithmetic.HYBRID,
        ("tflite", "onnx"),
        noise="8-bit weights and inputs of ops on this network",
    ),
    Precision(
        "int8",
        "int8 weights and activations",
        Arithmetic.INTEGER,
        ("tflite", "onnx"),
        calibrated=True,
        noise="one step of difference in every integer operation",
        integer_io="int8",
    ),
    Precision(
        "auto",
        "int8 with the best recipe: equalization, ranges, rounding, single layers in more bits",
        Arithmetic.INTEGER,
        ("tflite", "onnx"),
        calibrated=True,
        noise="one step of difference in every integer operation",
        integer_io="int8",
        variant_of="int8",
    ),
    Precision(
        "int16x8",
        "int8 weights, int16 activations",
        Arithmetic.INTEGER,
        ("tflite",),
        calibrated=True,
        noise="one step of difference in every integer operation",
        integer_io="int16",
    ),
    Precision(
        "int4",
        "int4 weights; activations are quantized at run time",
        Arithmetic.HYBRID,
        ("tflite",),
        noise="4-bit weights and 8-bit inputs of ops on this network",
    ),
)


def precision_named(name: str) -> Precision:
    """Return a precision by its name.

    Raises:
        UserError: There is no precision with that name.
    """
    if name not in PRECISIONS:
        raise UserError(f"Expected a precision among {', '.join(PRECISIONS)}. Received: '{name}'.")
    return PRECISIONS[name]
