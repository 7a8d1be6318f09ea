"""Reads the model file that `inspect`, `fold` and `export` are given."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    import keras

HOW_TO_SAVE = "Save the trained model with model.save('NAME.keras')."


def load_model(path: Path) -> keras.Model:
    """Load a Keras model for inference, with renormlite's own layers known to Keras.

    Args:
        path: A file written by ``model.save("NAME.keras")``.

    Returns:
        The model, not compiled.

    Raises:
        UserError: There is no such file, it is not a Keras model, or it needs a layer class that
            this process does not know.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}. {HOW_TO_SAVE}")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not a .keras file, or was cut short. {HOW_TO_SAVE}")
    import keras

    from ..toolkit import layers as _registers_our_layers  # noqa: F401

    try:
        return keras.models.load_model(path, compile=False)
    except (ValueError, TypeError, KeyError, OSError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f"Keras cannot load {path}: {first_line} If it needs a layer of your own, decorate its "
            "class with keras.saving.register_keras_serializable() and call renormlite.fold or "
            "renormlite.export_model from Python instead."
        ) from error
