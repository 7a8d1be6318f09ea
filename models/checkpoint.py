"""Saves the state of a training run after each epoch, in one file that is replaced atomically.

`keras.callbacks.BackupAndRestore` does not resume exactly. It does not save random generators, so
the masks of dropout and the order of batches differ after a restart. It writes the weights and the
number of the epoch one after the other and in place; if the process is killed between the two, an
epoch is repeated with weights that were already trained in it. It also restores the state of a run
with other options.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ..artifacts.archive import DamageError, damage, save_arrays

_RUN, _EPOCH = "run", "epoch"


class Checkpoint(keras.callbacks.Callback):
    """Saves weights, optimizer and random generators of layers after each epoch.

    The steps and statistics of batch renormalization are weights of its layers, so they are saved
    as well.

    Args:
        path: The file, whose name ends in ``.npz``.
        run: The options of the run, in JSON types. A checkpoint of another run is not restored.
    """

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        super().__init__()
        self._path = path
        self._run = json.dumps(run, sort_keys=True)

    def restore(self, model: keras.Model) -> int:
        """Load the checkpoint, if there is one of this run, and return its number of epochs.

        Args:
            model: The compiled model as it is at the start of the run.

        Returns:
            The number of the next epoch. It is 0, and the model is unchanged, if no checkpoint of
            this run can be read.
        """
        model.optimizer.build(model.trainable_variables)
        variables = _state(model)
        try:
            # `np.load` verifies the checksums.
            with damage(), open(self._path, "rb") as file, np.load(file) as saved:
                if str(saved[_RUN]) != self._run:
                    return 0
                epoch = int(saved[_EPOCH])
                values = [saved[str(number)] for number in range(len(variables))]
        except DamageError:  # or missing
            return 0
        if any(v.shape != x.shape for v, x in zip(variables, values, strict=True)):
            return 0
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return epoch

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Save the state after an epoch, numbered from 0."""
        arrays = {str(n): np.asarray(v) for n, v in enumerate(_state(self.model))}
        arrays |= {_RUN: np.array(self._run), _EPOCH: np.array(epoch + 1)}
        save_arrays(self._path, arrays)


def _state(model: keras.Model) -> list[keras.Variable]:
    """Return all variables that a training step changes, in a fixed order."""
    return [*model.variables, *model.optimizer.variables]
