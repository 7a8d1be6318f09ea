"""Real data for the golden set and for calibration, from wherever the user keeps it."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from .manifest import TensorInfo


def load_samples(source: Path, inputs: Sequence[TensorInfo]) -> dict[str, np.ndarray]:
    """Read samples from a `.npz` or `.npy` file.

    Args:
        source: `.npz` with one array for each input by its Keras name (other arrays, such as
            labels, are left alone; a single array of any name serves a single input), or `.npy`
            with the samples of the only input.
        inputs: The model's inputs.

    Returns:
        Input name to (N, …) array.

    Raises:
        UserError: No such file, not of these kinds, or it lacks an input.
    """
    if not source.is_file():
        raise UserError(f"There is no file {source}. Expected samples as .npz or .npy.")
    try:
        loaded = np.load(source, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{source} is not a .npz or .npy file of numbers ({error}).") from error
    if isinstance(loaded, np.ndarray):
        arrays = {inputs[0].name: loaded} if len(inputs) == 1 else {}
        held = "one array"
    else:
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
        held = ", ".join(sorted(arrays))
        if len(arrays) == 1 and len(inputs) == 1:
            arrays = {inputs[0].name: next(iter(arrays.values()))}
    names = [tensor.name for tensor in inputs]
    if not set(names) <= set(arrays):
        raise UserError(
            f"{source} must hold one array for each input: {', '.join(names)}. Received: {held}. "
            "Write it with numpy.savez(path, **arrays_by_input_name)."
        )
    return {name: arrays[name] for name in names}
