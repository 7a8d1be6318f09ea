"""The options of an export, validated in one place."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..artifacts.images import IN_MODEL, Preprocessing
from ..artifacts.precisions import PRECISIONS
from ..errors import UserError
from ..options import option, validate
from .formats.format_table import FORMAT_NAMES, precisions_of, takes_channels_first
from .quantization.budget import Budget
from .quantization.recipe import Recipe

OPSETS = (13, 21)  # 13 added per-channel quantization; the onnx package converts to later ones
AUTO = "auto"
MIXED = ("int8", AUTO)  # precisions in which single layers can have other precisions
QUANTIZED_IO = ("float", "integer")
LAYOUTS = ("nhwc", "nchw")

_FILES, _QUANTIZATION, _METADATA = "Files", "Quantization", "About the model"
_PIXELS = "Samples"  # where --mean and --scale are
# Options that the manifest stores as metadata.
_STORED_AS_METADATA = ("labels", "preprocessing", IN_MODEL, "description")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of an export; each flag holds the description."""

    formats: tuple[str, ...] = option(
        ("tflite", "onnx"), "--to", "File formats.", group=_FILES, choices=FORMAT_NAMES
    )
    precisions: tuple[str, ...] = option(
        ("float32",),
        "--precision",
        f"{', '.join(PRECISIONS)}. Precisions that a format does not support are not written.",
        group=_FILES,
        choices=tuple(PRECISIONS),
    )
    batch_size: int | None = option(
        1,
        "--batch",
        "Batch size of the files; `dynamic` leaves it free.",
        group=_FILES,
        least=1,
        most=65536,
        none="dynamic",
    )
    layout: str = option(
        "nhwc",
        "--layout",
        "Order of the axes of inputs and outputs; nchw is for ONNX only.",
        group=_FILES,
        choices=LAYOUTS,
    )
    opset: int = option(
        17, "--opset", "ONNX operator set.", group=_FILES, least=OPSETS[0], most=OPSETS[1]
    )
    allow_flex: bool = option(
        False,
        "--allow-flex",
        "Let TFLite files call TensorFlow operators, which most runtimes lack.",
        group=_FILES,
    )
    calibration_samples: int = option(
        200,
        "--calibration-samples",
        "Calibrate with at most this many samples.",
        group=_QUANTIZATION,
        least=1,
    )
    split_outputs: tuple[str, ...] = option(
        (),
        "--split-outputs",
        "Outputs that join parts, such as boxes and scores, are given as these parts.",
        group=_FILES,
        metavar="NAME[,NAME…]",
    )
    quantized_io: str = option(
        "float",
        "--quantized-io",
        "Type of the inputs and outputs of int8 and int16x8 TFLite files.",
        group=_QUANTIZATION,
        choices=QUANTIZED_IO,
    )
    equalize: str = option(
        "auto",
        "--equalize",
        "Equalize the weights of quantized files across layers; auto: if it raises the measured "
        "signal-to-noise ratio.",
        group=_QUANTIZATION,
        choices=("auto", "always", "never"),
    )
    keep_float: tuple[str, ...] = option(
        (),
        "--keep-float",
        "Layers that compute in float32 in int8 files: names, paths or patterns, separated by "
        "commas.",
        group=_QUANTIZATION,
        metavar="LAYER[,LAYER…]",
    )
    keep_int16: tuple[str, ...] = option(
        (),
        "--keep-int16",
        "Layers with 16-bit activations in int8 files; ONNX needs --opset 21.",
        group=_QUANTIZATION,
        metavar="LAYER[,LAYER…]",
    )
    input_norms: str = option(
        "auto",
        "--input-norms",
        "Fold or keep norms of raw inputs; auto: keep them in quantized and float16 files if it "
        "raises the measured signal-to-noise ratio.",
        group=_QUANTIZATION,
        choices=("auto", "fold", "keep"),
    )
    portable: bool = option(
        False,
        "--portable",
        "Adjust the scales of weights in int8 TFLite files by units in the last place, so that "
        "more runtimes compute equal integers.",
        group=_QUANTIZATION,
    )
    budget: str = option(
        "",
        "--budget",
        "Limits of an auto file: 120KB, 2.5ms, 40dB, or several separated by commas.  [default: "
        "10 % more bytes than int8]",
        group=_QUANTIZATION,
        metavar="BUDGET",
    )
    recipe: Recipe | None = None
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    preprocessing_in_model: bool = option(
        False,
        "--preprocessing-in-model",
        "Make (pixel - mean) * scale a part of the files, which then take raw pixels, uint8.",
        group=_PIXELS,
    )
    description: str = option(
        "", "--description", "One line about the model, stored in the files.", group=_METADATA
    )

    def __post_init__(self) -> None:
        validate(self)
        self._refuse_unused()

    def _refuse_unused(self) -> None:
        """Refuse an option that affects no requested file, since it is probably a mistake."""
        offered = {precision for name in self.formats for precision in precisions_of(name)}
        if not set(self.precisions) <= offered:
            raise UserError(
                f"Expected precisions that {' or '.join(self.formats)} supports: "
                f"{', '.join(sorted(offered))}. Received: {', '.join(self.precisions)}."
            )
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
                f"quantized_io {self.quantized_io} is for {', '.join(integer)} tflite files, "
                "and none is requested. Add such a precision or leave quantized_io out."
            )
        if self.budget and AUTO not in self.precisions:
            raise UserError(
                "budget is for auto files, and none is requested. Add the precision auto or leave "
                "budget out."
            )
        Budget.parse(self.budget or "")
        if self.recipe is not None and not set(MIXED) & set(self.precisions):
            raise UserError(
                f"recipe is for {' and '.join(MIXED)} files, and none is requested. Add int8 or "
                "leave recipe out."
            )
        if self.portable and not {("tflite", name) for name in MIXED} & set(self.files):
            raise UserError(
                "portable is for int8 tflite files, and none is requested. Add one or leave "
                "portable out."
            )
        self._refuse_unusable_preprocessing()
        for name in ("keep_float", "keep_int16"):
            if getattr(self, name) and not set(MIXED) & set(self.precisions):
                raise UserError(
                    f"{name} is for {' and '.join(MIXED)} files, and none is requested. Add such a "
                    f"precision or leave {name} out."
                )

    def _refuse_unusable_preprocessing(self) -> None:
        """Refuse preprocessing in the model if it is not given or a file cannot contain it."""
        if not self.preprocessing_in_model:
            return
        if self.preprocessing is None:
            raise UserError(
                "preprocessing_in_model must know how pixels become the network's inputs, "
                "with --mean and --scale (preprocessing= in Python): (pixel - mean) * scale. "
                "--scale 1 is for a network that takes 0 to 255."
            )
        if ("tflite", "int16x8") in self.files:
            raise UserError(
                "int16x8 files cannot take pixels: TFLite has no 16-bit operator that reads uint8. "
                "Leave int16x8 or preprocessing_in_model out, or export int8."
            )

    @property
    def samples_preprocessing(self) -> Preprocessing | None:
        """The conversion of images in folders to inputs of the files."""
        return Preprocessing() if self.preprocessing_in_model else self.preprocessing

    @property
    def files(self) -> tuple[tuple[str, str], ...]:
        """The (format, precision) pairs to write, without those that a format does not support."""
        return tuple(
            (name, precision)
            for precision in self.precisions
            for name in self.formats
            if precision in precisions_of(name)
        )

    @property
    def left_out(self) -> tuple[tuple[str, str], ...]:
        """The requested (format, precision) pairs that the format does not support."""
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
            if key not in _STORED_AS_METADATA
        }

    def metadata(self) -> dict[str, Any]:
        """Return the metadata given by the user, for the files and the manifest."""
        said: dict[str, Any] = {}
        if self.description:
            said["description"] = self.description
        if self.labels:
            said["labels"] = list(self.labels)
        if self.preprocessing is not None:
            said["preprocessing"] = dataclasses.asdict(self.preprocessing)
        if self.preprocessing_in_model:
            said[IN_MODEL] = True
        return said
