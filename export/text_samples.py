"""Computes, for samples that hold text, the inputs of a network without its text processing.

The app computes these in the place of the removed layers (`fold/preparation/text.py`). At export
the layers are at hand, so that samples may be what the trained model takes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ..artifacts.archive import save_arrays
from ..artifacts.samples import Source
from ..errors import UserError
from .fold.preparation import text_processing

_BATCH = 256


class TextSamples:
    """The layers that are removed from a model because they process text.

    Args:
        model: The trained model.
        inputs: Names of the inputs of the network without them.
        folder: A folder for temporary files.
    """

    def __init__(self, model: keras.Model, inputs: list[str], folder: Path) -> None:
        self._names, self._folder = inputs, folder
        self._layers = text_processing(model)

    def computed(self, source: Source | None) -> Source | None:
        """Return samples in which text is replaced by what the layers make of it.

        Args:
            source: Arrays, a list of texts, or a `.npz` or `.npy` file, with the inputs of the
                trained model. Other samples are returned unchanged.

        Raises:
            UserError: The layers cannot process the samples.
        """
        path = Path(source) if isinstance(source, (str, os.PathLike)) else None
        if path is not None and (path.suffix not in (".npz", ".npy") or not path.is_file()):
            return source
        arrays = self._arrays(source if path is None else _loaded(path))
        given = [tensor.name for tensor in self._layers.inputs]
        if arrays is None or set(self._names) <= set(arrays) or not set(given) <= set(arrays):
            return source
        made = self._run([arrays[name] for name in given])
        kept = {name: array for name, array in arrays.items() if name not in given}
        kept |= {name: arrays[name] for name in given if name in self._names}
        computed = kept | dict(zip(self._layers.output_names, made, strict=True))
        if path is None:
            return computed
        copy = self._folder / path.with_suffix(".npz").name
        save_arrays(copy, computed)
        return copy

    def _arrays(self, source: Any) -> dict[str, np.ndarray] | None:
        if isinstance(source, (list, tuple)) and all(isinstance(x, (str, bytes)) for x in source):
            source = np.array(source)
        if isinstance(source, np.ndarray) and len(self._layers.inputs) == 1:
            return {self._layers.inputs[0].name: source}
        if not isinstance(source, Mapping):
            return None
        return {str(name): np.asarray(array) for name, array in source.items()}

    def _run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        shaped = [
            _as_column(array, tensor)
            for array, tensor in zip(arrays, self._layers.inputs, strict=True)
        ]
        parts: list[list[np.ndarray]] = []
        try:
            for start in range(0, len(shaped[0]), _BATCH):
                batch = [
                    keras.ops.convert_to_tensor(array[start : start + _BATCH]) for array in shaped
                ]
                results = keras.tree.flatten(self._layers(batch))
                parts.append([keras.ops.convert_to_numpy(result) for result in results])
        except Exception as error:  # whatever TensorFlow makes of the user's samples
            first = str(error).strip().partition("\n")[0]
            raise UserError(
                f"The layers that process text cannot process the samples: {first}"
            ) from error
        return [np.concatenate(results) for results in zip(*parts, strict=True)]


def _loaded(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError):  # the reader of samples says what is wrong
        return {}


def _as_column(array: np.ndarray, tensor: Any) -> np.ndarray:
    """Return text as bytes, (N,) as (N, 1) if the model wants a column, numbers in its dtype."""
    if array.ndim == 1 and len(tensor.shape) == 2:
        array = array[:, None]
    return array.astype(object) if tensor.dtype == "string" else array.astype(tensor.dtype)
