"""A layer that Keras does not have: a bias that differs by position."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="renormlite")
class BiasMap(keras.layers.Layer):
    """Add a constant to every position: ``y = x + bias``, ``bias`` of the shape of one sample.

    The fold adds it after a zero-padded convolution when it moves the shift before that
    convolution into it: the sum differs by position only near the borders.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the bias; every axis but the batch must be static."""
        self.bias = self.add_weight(shape=input_shape[1:], name="bias", initializer="zeros")

    def call(self, inputs: Any) -> Any:
        """Return ``inputs + bias``."""
        return keras.ops.add(inputs, self.bias)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the shape of the input."""
        return input_shape
