"""Reads a saved Keras model, whichever of our layers and schedules it uses."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import keras

from ..errors import UserError
from . import layers as _registers_our_layers  # noqa: F401
from . import learned as _registers_more_layers  # noqa: F401

HOW_TO_SAVE = "Save the trained model with model.save('NAME.keras')."


def load_model(path: str | os.PathLike[str]) -> keras.Model:
    """Load a model saved by ``model.save("NAME.keras")``, ready to fold and export.

    ``keras.models.load_model`` does the same once renormlite's layers are imported, which this
    makes sure of.

    Args:
        path: The ``.keras`` file.

    Returns:
        The model with its weights, not compiled.

    Raises:
        UserError: There is no such file, it is not a Keras model, or it needs a layer class that
            this process does not know.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}. {HOW_TO_SAVE}")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not a .keras file, or was cut short. {HOW_TO_SAVE}")
    try:
        return keras.models.load_model(path, compile=False)
    except (ValueError, TypeError, KeyError, OSError) as error:
        # Keras puts what went wrong between the configs of everything that was being built.
        reason = str(error).rpartition("Exception encountered: ")[2].strip().splitlines()[0]
        raise UserError(
            f"Keras cannot load {path}: {reason.partition(' Full object config')[0]} "
            "If it needs a layer of your own, import its module first and call renormlite from "
            "Python: renormlite.export_model(model, 'build/NAME')."
        ) from error
