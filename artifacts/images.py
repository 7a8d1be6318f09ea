"""Reads folders of images as inputs of a network, for export and checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import UserError
from .manifest import TensorSpec
from .sample_stream import spread

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")

# Modes with one channel, kept without loss; other modes are reduced to 8 bits.
_GRAY = ("L", "I;16", "I")

# Entry of the metadata that says that the files compute the preprocessing.
IN_MODEL = "preprocessing_in_model"

PerChannel = float | tuple[float, ...]


@dataclass(frozen=True)
class Preprocessing:
    """The conversion of pixels to inputs of the network: (pixel - mean) * scale.

    Attributes:
        mean: One number, or one per channel.
        scale: One number, or one per channel.

    Raises:
        UserError: The mean or the scale is not a finite number or a sequence of them.
    """

    mean: PerChannel = 0.0
    scale: PerChannel = 1.0

    def __post_init__(self) -> None:
        """Raise an error if mean or scale are not numbers."""
        for name, values in (("mean", self.mean), ("scale", self.scale)):
            try:
                finite = bool(np.isfinite(np.asarray(values, np.float64)).all())
            except (TypeError, ValueError):
                finite = False
            if not finite:
                raise UserError(
                    f"The {name} of the preprocessing must be one finite number or one for each "
                    f"channel. Received: {values!r}."
                )

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Preprocessing:
        """Read the record in the metadata of a manifest."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()})

    @classmethod
    def inside(cls, metadata: Mapping[str, Any]) -> Preprocessing | None:
        """Return the preprocessing that an export's files contain; None if they take inputs.

        Args:
            metadata: That of the manifest.
        """
        return cls.from_json(metadata["preprocessing"]) if metadata.get(IN_MODEL) else None

    @classmethod
    def before(cls, metadata: Mapping[str, Any]) -> Preprocessing | None:
        """Return how pixels become the inputs of an export's files; None if unknown."""
        if metadata.get(IN_MODEL):
            return cls()
        return cls.from_json(metadata["preprocessing"]) if "preprocessing" in metadata else None

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Return `pixels` (…, channels) preprocessed, float32.

        Raises:
            UserError: The number of values is neither 1 nor the number of channels.
        """
        mean, scale = np.asarray(self.mean), np.asarray(self.scale)
        for name, values in (("mean", mean), ("scale", scale)):
            if values.size not in (1, pixels.shape[-1]):
                raise UserError(
                    f"The {name} of the preprocessing must be one number or one for each of "
                    f"{pixels.shape[-1]} channels. Received: {values.size}."
                )
        return ((pixels.astype(np.float64) - mean) * scale).astype(np.float32)


def find_images(folder: Path, limit: int) -> tuple[list[Path], int]:
    """Return paths of images in a folder and its subfolders, and how many there are in all.

    Args:
        folder: The folder.
        limit: At most this many, evenly spread in the order of their paths.

    Raises:
        UserError: The folder holds no image.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise UserError(f"{folder} holds no image ({', '.join(SUFFIXES)}).")
    chosen = spread(len(paths), min(limit, len(paths)))
    return [paths[index] for index in chosen], len(paths)


def class_of(path: Path, folder: Path) -> str:
    """Return the subfolder directly below a folder that an image is in; empty for none."""
    parts = path.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else ""


@dataclass(frozen=True)
class ImageInput:
    """The only input of a network that takes images.

    Attributes:
        tensor: The input, of shape (None, height, width, 1 or 3).
        preprocessing: How pixels, 0 to 255, become its numbers.
    """

    tensor: TensorSpec
    preprocessing: Preprocessing

    @classmethod
    def of(
        cls, source: str, tensors: Sequence[TensorSpec], preprocessing: Preprocessing | None
    ) -> ImageInput:
        """Return the image input of a network.

        Args:
            source: What holds the images, for the message.
            tensors: The network's inputs.
            preprocessing: How pixels become inputs; None if unknown.

        Raises:
            UserError: There are several inputs, it is not an image, or the preprocessing is
                unknown: a guess would cost accuracy silently.
        """
        if len(tensors) != 1:
            raise UserError(
                f"{source} can only be used for a model with one input. "
                f"Received: {', '.join(f'{t.name} {list(t.shape)}' for t in tensors)}."
            )
        (tensor,) = tensors
        if len(tensor.shape) != 4 or tensor.shape[-1] not in (1, 3):
            raise UserError(
                f"{source} can only be used for an image input with 1 or 3 channels. Received an "
                f"input of shape {list(tensor.shape)}."
            )
        if preprocessing is None:
            raise UserError(
                f"{source}: unknown preprocessing. State how pixels become inputs with "
                "--mean and --scale (preprocessing= in Python): (pixel - mean) * scale. --scale 1 "
                "keeps pixels unchanged, 0 to 255; --scale 0.00392157 makes them 0 to 1; "
                "--mean 127.5 --scale 0.00784314 makes them -1 to 1."
            )
        return cls(tensor, preprocessing)

    def read(self, images: Iterable[tuple[Path | IO[bytes], str]], source: str) -> np.ndarray:
        """Read images, resized to the input's size.

        Args:
            images: The path of each image, or an open file, and its name for messages.
            source: What holds the images, for messages.

        Returns:
            (N, height, width, channels) in the input's type.

        Raises:
            UserError: One cannot be read, or has more than 8 bits a channel while the network
                takes bytes.
        """
        shape, dtype = self.tensor.shape, self.tensor.dtype
        pixels = np.stack([_read_pixels(file, name, shape) for file, name in images])
        inputs = self.preprocessing(pixels)
        if dtype == "uint8" and inputs.max() > np.iinfo(np.uint8).max:
            raise UserError(
                f"{source} holds images of more than 8 bits a channel, and the network takes 8. "
                "Save them with 8 bits."
            )
        return inputs.astype(dtype)


def _read_pixels(file: Path | IO[bytes], name: str, shape: Sequence[int | None]) -> np.ndarray:
    """Read one image and resize it to an input's size.

    The interpolation is bilinear and ignores the aspect ratio, as that of
    `keras.utils.image_dataset_from_directory`.

    Args:
        file: A path or an open file.
        name: Its name, for messages.
        shape: The input's, (None, height, width, 1 or 3).

    Returns:
        (height, width, channels) float32, 0 to 255.

    Raises:
        UserError: It cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    _, height, width, channels = shape
    if height is None or width is None:
        raise UserError(
            f"Images ({name}) are resized to the size of the input, which is free here: "
            f"{list(shape)}. Export with --shape, or give arrays."
        )
    try:
        with Image.open(file) as opened:
            if channels == 1:
                image = opened if opened.mode in _GRAY else opened.convert("L")
            else:
                image = opened.convert("RGB")
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            array = np.asarray(image, np.float32)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{name} cannot be read as an image ({error}). Remove it.") from error
    return array.reshape(height, width, -1)
