"""Finds class names that were not given explicitly: in labels.txt, or as names of folders."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from ..errors import UserError
from ..files import regular
from .images import SUFFIXES
from .manifest import TensorSpec

LABELS = "labels.txt"


@dataclass(frozen=True)
class ClassNames:
    """Class names that were found.

    Attributes:
        names: One for each class, by number; empty if none were found.
        note: A sentence on their origin, or on why they were not used; may be empty.
    """

    names: tuple[str, ...] = ()
    note: str = ""


def class_counts(outputs: Sequence[TensorSpec]) -> frozenset[int]:
    """Return how many classes the outputs of shape (N, classes) may decide between."""
    widths = [tensor.shape[1] for tensor in outputs if len(tensor.shape) == 2]
    return frozenset(2 if width == 1 else width for width in widths if width is not None)


def find_class_names(
    source: Any,
    counts: Collection[int],
    model: Optional[Path] = None,  # noqa: UP045
) -> ClassNames:
    """Find class names in a folder of images, or next to a model.

    The names are the lines of `labels.txt` in the folder or next to the model, or else the
    subfolders with images in alphabetical order, as in `keras.utils.image_dataset_from_directory`.
    Names are used only if an output has as many classes.

    Args:
        source: The source of samples, of any kind; only a folder has class names.
        counts: Numbers of classes of the model's outputs.
        model: The model's file; None if it is unknown.
    """
    folder = Path(source) if isinstance(source, (str, os.PathLike)) else None
    folder = folder if folder is not None and folder.is_dir() else None
    for place in (folder, model.parent if model is not None else None):
        file = place / LABELS if place is not None else None
        if file is not None and file.is_file():
            names = tuple(line.strip() for line in read_lines(file) if line.strip())
            return _fitting(names, counts, f"lines of {file}")
    if folder is None:
        return ClassNames()
    names = tuple(sorted(path.name for path in folder.iterdir() if _has_images(path)))
    if not names:
        return ClassNames()
    return _fitting(names, counts, f"folders of {folder}, in alphabetical order")


def read_lines(file: Path) -> list[str]:
    """Return the lines of a text file with class names.

    Raises:
        UserError: It is not UTF-8.
    """
    try:
        return regular(file).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 text ({error}). Expected one class name per line; save it as "
            "UTF-8."
        ) from error


def _fitting(names: tuple[str, ...], counts: Collection[int], origin: str) -> ClassNames:
    """Return the names if an output has as many classes, and a note."""
    if len(names) not in counts:
        return ClassNames(
            note=f"the {len(names)} {origin.partition(',')[0]} are not used as classes: no output "
            f"of the model has {len(names)}; --labels FILE of `renormlite export` names the classes"
        )
    shown = ", ".join(f"{number} {name}" for number, name in enumerate(names[:4]))
    more = f", … {len(names) - 1} {names[-1]}" if len(names) > 4 else ""
    return ClassNames(names, f"classes are the {len(names)} {origin}: {shown}{more}")


def _has_images(path: Path) -> bool:
    """Return whether a path is a folder with an image at any depth."""
    if not path.is_dir():
        return False
    return any(file.suffix.lower() in SUFFIXES for file in path.rglob("*"))
