"""A small CNN for handwritten digits, with norms after convolutions and a dense layer.

It has conv -> norm -> relu, a depthwise-separable block and dense -> norm -> relu. It is trained
with batches of 4, with which batch normalization is less accurate than batch renormalization.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import keras
from keras import layers

from ..toolkit.layers import BatchRenormalization
from ..toolkit.schedules import paper_schedule
from .data import handwritten_digits
from .recipe import Trained, train_classifier, updates_per_epoch

Norm = Callable[[], keras.layers.Layer]

BATCH_SIZE = 4
EPOCHS = 12


def build(norm: Norm | None) -> keras.Model:
    """Build the network, untrained.

    Args:
        norm: Called for each normalization layer; None builds the network without norms, whose
            conv and dense layers have a bias instead.

    Returns:
        A model from ``image`` (N, 8, 8, 1) in [0, 1] to ``digit`` (N, 10), probabilities.
    """
    bias = norm is None

    def norm_relu(x: keras.KerasTensor) -> keras.KerasTensor:
        return layers.ReLU()(x if norm is None else norm()(x))

    image = keras.Input((8, 8, 1), name="image")
    x = norm_relu(layers.Conv2D(16, 3, padding="same", use_bias=bias)(image))
    x = norm_relu(layers.Conv2D(32, 3, strides=2, padding="same", use_bias=bias)(x))
    x = norm_relu(layers.DepthwiseConv2D(3, padding="same", use_bias=bias)(x))
    x = norm_relu(layers.Conv2D(64, 1, use_bias=bias)(x))
    x = layers.Flatten()(x)
    x = norm_relu(layers.Dense(64, use_bias=bias)(x))
    digit = layers.Dense(10, activation="softmax", name="digit")(x)
    return keras.Model(image, digit, name="digits")


def train(
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    checkpoint: Path | None = None,
) -> Trained:
    """Train the network on real handwritten digits with batches of 4.

    The paper's schedules of r_max and d_max are scaled to the length of the run.

    Args:
        epochs: Passes over the 1,437 training images.
        seed: Seeds initial weights and the order of samples.
        callbacks: Keras callbacks, such as a progress bar.
        checkpoint: File for the state of the run; see `train_classifier`.

    Returns:
        The trained model with its test accuracy.
    """
    keras.utils.set_random_seed(seed)
    data = handwritten_digits()
    r_max, d_max = paper_schedule(epochs * updates_per_epoch(data, BATCH_SIZE))
    model = build(lambda: BatchRenormalization(r_max=r_max, d_max=d_max))
    return train_classifier(
        model,
        data,
        epochs=epochs,
        batch_size=BATCH_SIZE,
        seed=seed,
        callbacks=callbacks,
        checkpoint=checkpoint,
    )
