"""Reads folders of images as inputs of a network, for export and checks alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")

# Modes with one channel, kept without loss; other modes are reduced to 8 bits.
_GRAY = ("L", "I;16", "I")

# Entry of the metadata that says that the files compute the preprocessing.
IN_MODEL = "preprocessing_in_model"

PerChannel = float | tuple[float, ...]


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become the numbers the network was trained on: (pixel - mean) * scale.

    Attributes:
        mean: One number, or one for each channel.
        scale: One number, or one for each channel.
    """

    mean: PerChannel = 0.0
    scale: PerChannel = 1.0

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Preprocessing:
        """Read the record that an export's manifest keeps in its metadata."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()})

    @classmethod
    def inside(cls, metadata: Mapping[str, Any]) -> Preprocessing | None:
        """Return what the files of an export compute of raw pixels; None where they take inputs.

        Args:
            metadata: That of the manifest.
        """
        return cls.from_json(metadata["preprocessing"]) if metadata.get(IN_MODEL) else None

    @classmethod
    def before(cls, metadata: Mapping[str, Any]) -> Preprocessing | None:
        """Return how pixels become what the files of an export take; None where unknown."""
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


@dataclass(frozen=True)
class Images:
    """Images of a folder.

    Attributes:
        inputs: (N, height, width, channels) preprocessed, in the input's type.
        classes: For each image, its folder directly below the given one; empty for images in that
            folder itself.
        available: Number of images in the folder.
    """

    inputs: np.ndarray
    classes: tuple[str, ...]
    available: int


def read_images(
    folder: Path,
    shape: Sequence[int | None],
    dtype: str,
    preprocessing: Preprocessing | None,
    *,
    limit: int,
) -> Images:
    """Read images of a folder and its subfolders, evenly spread in the order of their paths.

    Each is resized to the input's size by bilinear interpolation, ignoring its aspect ratio, as
    `keras.utils.image_dataset_from_directory` does.

    Args:
        folder: The folder.
        shape: The input's, (None, height, width, 1 or 3).
        dtype: The input's element type.
        preprocessing: How pixels, 0 to 255, become inputs; None where unknown, which is refused.
        limit: Read at most this many.

    Raises:
        UserError: The folder holds no image, an image cannot be read, the input is not an image, or
            the preprocessing is unknown: a guess would cost accuracy silently.
    """
    if len(shape) != 4 or shape[-1] not in (1, 3):
        raise UserError(
            f"A folder of images ({folder}) serves a model of one image input with 1 or 3 "
            f"channels. Received an input of shape {list(shape)}."
        )
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise UserError(f"{folder} holds no image ({', '.join(SUFFIXES)}).")
    if preprocessing is None:
        raise UserError(
            f"Expected to be told how the pixels of {folder} become the network's inputs, with "
            "--mean and --scale (preprocessing= in Python): (pixel - mean) * scale. --scale 1 "
            "leaves pixels as they are, 0 to 255; --scale 0.00392157 makes them 0 to 1; "
            "--mean 127.5 --scale 0.00784314 makes them -1 to 1."
        )
    spread = np.unique(np.linspace(0, len(paths) - 1, min(limit, len(paths))).round().astype(int))
    chosen = [paths[index] for index in spread]
    pixels = np.stack([_pixels(path, shape) for path in chosen])
    inputs = preprocessing(pixels)
    if dtype == "uint8" and inputs.max() > np.iinfo(np.uint8).max:
        raise UserError(
            f"{folder} holds images of more than 8 bits a channel, and the network takes 8. Save "
            "them with 8 bits."
        )
    return Images(
        inputs.astype(dtype),
        tuple(_class(path.relative_to(folder)) for path in chosen),
        len(paths),
    )


def _pixels(path: Path, shape: Sequence[int | None]) -> np.ndarray:
    """Return one image as (height, width, channels) float32, 0 to 255."""
    from PIL import Image, UnidentifiedImageError

    _, height, width, channels = shape
    assert height is not None
    assert width is not None
    try:
        with Image.open(path) as opened:
            if channels == 1:
                image = opened if opened.mode in _GRAY else opened.convert("L")
            else:
                image = opened.convert("RGB")
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            array = np.asarray(image, np.float32)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}). Remove it.") from error
    return array.reshape(height, width, -1)


def _class(path: Path) -> str:
    """Return the first folder of a relative path."""
    return path.parts[0] if len(path.parts) > 1 else ""
