"""Real data from an installed package, so that training needs no download."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import keras
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Split:
    """One part of a labelled data set.

    Attributes:
        x: Inputs, float32, shape (N, ...).
        y: Class labels, int64, shape (N,).
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]

    @property
    def digest(self) -> str:
        """SHA-256 of the inputs and labels."""
        return hashlib.sha256(self.x.tobytes() + self.y.tobytes()).hexdigest()


@dataclass(frozen=True)
class Dataset:
    """A labelled data set with a fixed split: ``train`` to fit, ``test`` to evaluate."""

    name: str
    train: Split
    test: Split


class ShuffledBatches(keras.utils.PyDataset):
    """Batches of a split, shuffled again in each epoch; reproducible by seed.

    Keras' own shuffling of arrays repeats one order in every epoch once
    `keras.utils.set_random_seed` has been called.

    Args:
        split: The data.
        batch_size: Samples in a batch; the last of an epoch may be smaller.
        seed: Seed of the orders.
        epoch: Number of the first epoch, from 0; larger than 0 in a resumed run.
    """

    def __init__(self, split: Split, batch_size: int, seed: int, epoch: int = 0) -> None:
        super().__init__()
        self._split, self._batch_size = split, batch_size
        self._generator = np.random.default_rng(seed)
        for _ in range(epoch + 1):
            self.on_epoch_end()

    def __len__(self) -> int:
        return -(-len(self._split.x) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        chosen = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        return self._split.x[chosen], self._split.y[chosen]

    def on_epoch_end(self) -> None:
        """Choose the order of the next epoch."""
        self._order = self._generator.permutation(len(self._split.x))


def handwritten_digits() -> Dataset:
    """Return scikit-learn's handwritten digits: 1,797 real scans of 8 x 8 pixels, 10 classes.

    A fifth of them, balanced over the classes and always the same, is the ``test`` split.

    Returns:
        Images in [0, 1], shape (N, 8, 8, 1), with labels 0 to 9.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository
    (1998), the test part, as in ``sklearn.datasets.load_digits``.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)[..., None]
    labels = digits.target.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    return Dataset("handwritten digits", Split(x_train, y_train), Split(x_test, y_test))
