"""The training loop of the recipes, and the files that it writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from ..files import atomic_path
from .checkpoint import Checkpoint
from .data import Dataset, ShuffledBatches, Split

_NUMBER = re.compile(r"_\d+\b")


@dataclass(frozen=True)
class Trained:
    """A trained network with its held-out test data.

    Attributes:
        model: The trained Keras model.
        test: Held-out data that was not used in training.
        accuracy: Share of ``test`` that the model labels correctly, from 0 to 1.
        resumed: Number of epochs that were restored from a checkpoint.
    """

    model: keras.Model
    test: Split
    accuracy: float
    resumed: int = 0

    def save(self, path: Path) -> Path:
        """Write the model to ``path`` and the test data next to it.

        Args:
            path: A path that ends in ``.keras``.

        Returns:
            The path of the test data, ``STEM.samples.npz``: one array for each model input by its
            Keras name, and ``label``; to be used for calibration and checks.
        """
        samples = path.with_suffix(".samples.npz")
        arrays: dict[str, np.ndarray] = {
            self.model.inputs[0].name: self.test.x,
            "label": self.test.y,
        }
        with atomic_path(samples) as partial:
            np.savez_compressed(partial, allow_pickle=False, **arrays)
        with atomic_path(path) as partial:
            self.model.save(partial)
        return samples


def updates_per_epoch(data: Dataset, batch_size: int) -> int:
    """Return the number of training steps in one pass over ``data``."""
    return len(ShuffledBatches(data.train, batch_size, seed=0))


def train_classifier(
    model: keras.Model,
    data: Dataset,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float = 2e-3,
    seed: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    checkpoint: Path | None = None,
) -> Trained:
    """Train ``model`` on ``data`` with Adam and a cosine decay, and evaluate it on the test part.

    Args:
        model: A classifier whose output is one probability for each class.
        data: The data to train and test on.
        epochs: Passes over the training part.
        batch_size: Samples per step.
        learning_rate: Initial rate of the cosine decay, which ends at 0.
        seed: Seed of the order of samples, which differs in each epoch.
        callbacks: Keras callbacks, such as a progress bar.
        checkpoint: A ``.npz`` file for the state after each epoch. If it contains the state of a
            run of the same model, data and arguments, training continues from it, and the result is
            identical to that of an uninterrupted run.

    Returns:
        The model, trained in place, with its test accuracy.
    """
    steps = epochs * updates_per_epoch(data, batch_size)
    model.compile(
        optimizer=keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(learning_rate, steps)
        ),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    callbacks, first = list(callbacks), 0
    if checkpoint is not None:
        run = {
            # Keras numbers layers by the count of earlier ones in the process.
            "model": _NUMBER.sub("", model.to_json()),
            "data": data.train.digest,
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "seed": seed,
        }
        saved = Checkpoint(checkpoint, run)
        first = saved.restore(model)
        callbacks.append(saved)
    if first < epochs:
        batches = ShuffledBatches(data.train, batch_size, seed, first)
        # Keras would shuffle the batches once more, by a generator that nothing restores.
        model.fit(
            batches,
            initial_epoch=first,
            epochs=epochs,
            shuffle=False,
            verbose=0,
            callbacks=callbacks,
        )
    probabilities = model.predict(data.test.x, batch_size=256, verbose=0)
    accuracy = float(np.mean(np.argmax(probabilities, axis=-1) == data.test.y))
    return Trained(model, data.test, accuracy, first)
