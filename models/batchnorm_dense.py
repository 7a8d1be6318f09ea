"""Batch normalization before dense layers, which some tutorials call renormalization.

These tutorials use ``Dense(units)(BatchNormalization()(x))``, in which the dense layer learns the
scale and shift that they call r and d. The network is valid, and an example of norms that have a
linear layer only after them. They fold forward into its weights, including the norm of the raw
pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import keras
from keras import layers

from .data import handwritten_digits
from .recipe import Trained, train_classifier

Norm = Callable[[], keras.layers.Layer]

BATCH_SIZE = 32
EPOCHS = 25


def build(norm: Norm | None) -> keras.Model:
    """Build the network, untrained.

    Args:
        norm: Called for each normalization layer; None builds the network without norms.

    Returns:
        A model from ``image`` (N, 8, 8, 1) in [0, 1] to ``digit`` (N, 10), probabilities.
    """

    def norm_dense(x: keras.KerasTensor, dense: layers.Dense) -> keras.KerasTensor:
        return dense(x if norm is None else norm()(x))

    image = keras.Input((8, 8, 1), name="image")
    x = layers.Flatten()(image)
    x = norm_dense(x, layers.Dense(96, activation="relu"))
    x = layers.Dropout(0.3)(x)
    x = norm_dense(x, layers.Dense(96, activation="relu"))
    x = layers.Dropout(0.3)(x)
    digit = norm_dense(x, layers.Dense(10, activation="softmax", name="digit"))
    return keras.Model(image, digit, name="batchnorm_dense")


def train(
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    checkpoint: Path | None = None,
) -> Trained:
    """Train the network, with Keras' own batch normalization, on real handwritten digits.

    Args:
        epochs: Passes over the 1,437 training images.
        seed: Seeds initial weights, dropout and the order of samples.
        callbacks: Keras callbacks, such as a progress bar.
        checkpoint: File for the state of the run; see `train_classifier`.

    Returns:
        The trained model with its test accuracy.
    """
    keras.utils.set_random_seed(seed)
    # An epoch has 45 steps; averages over a hundred steps would lag behind the weights.
    model = build(lambda: layers.BatchNormalization(momentum=0.95))
    return train_classifier(
        model,
        handwritten_digits(),
        epochs=epochs,
        batch_size=BATCH_SIZE,
        seed=seed,
        callbacks=callbacks,
        checkpoint=checkpoint,
    )
