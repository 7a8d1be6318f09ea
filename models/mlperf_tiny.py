"""The four reference networks of MLPerf Tiny, with any norm, before or after the activation.

Architectures as in https://github.com/mlcommons/tiny (benchmark/training, v1.x): every conv and
dense layer has a bias, every block is linear -> norm -> relu. Regularizers are left out, since they
do not affect inference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import keras
from keras import layers

Norm = Callable[[], keras.layers.Layer]
Tensor: TypeAlias = keras.KerasTensor


class Builder(Protocol):
    """Builds one of the networks."""

    def __call__(self, norm: Norm | None, *, norm_after_activation: bool = False) -> keras.Model:
        """Build the network, untrained.

        Args:
            norm: Called for each normalization layer; None builds the network without norms.
            norm_after_activation: Whether blocks are linear -> relu -> norm, as in many tutorials,
                instead of the reference's linear -> norm -> relu.

        Returns:
            The model.
        """


class _Blocks:
    """Adds norms and activations to linear layers, in the requested order."""

    def __init__(self, norm: Norm | None, after: bool) -> None:
        self._norm = norm
        self._after = after

    def norm(self, x: Tensor) -> Tensor:
        """Apply the norm alone."""
        return x if self._norm is None else self._norm()(x)

    def norm_relu(self, x: Tensor) -> Tensor:
        """Apply norm and relu, in either order."""
        if self._after:
            return self.norm(layers.Activation("relu")(x))
        return layers.Activation("relu")(self.norm(x))

    def conv(self, x: Tensor, filters: int, size: int | tuple[int, int], stride: int = 1) -> Tensor:
        """Apply a zero-padded convolution."""
        return layers.Conv2D(filters, size, strides=stride, padding="same")(x)

    def separable(self, x: Tensor, filters: int, stride: int = 1) -> Tensor:
        """Apply a depthwise and a pointwise convolution, each with a norm and a relu."""
        x = self.norm_relu(layers.DepthwiseConv2D(3, strides=stride, padding="same")(x))
        return self.norm_relu(self.conv(x, filters, 1))


def anomaly_detection(norm: Norm | None, *, norm_after_activation: bool = False) -> keras.Model:
    """Autoencoder for machine sounds: ``spectrum`` (N, 640) to ``reconstruction`` (N, 640)."""
    blocks = _Blocks(norm, norm_after_activation)
    spectrum = keras.Input((640,), name="spectrum")
    x = spectrum
    for units in (128, 128, 128, 128, 8, 128, 128, 128, 128):
        x = blocks.norm_relu(layers.Dense(units)(x))
    reconstruction = layers.Dense(640, name="reconstruction")(x)
    return keras.Model(spectrum, reconstruction, name="anomaly_detection")


def keyword_spotting(norm: Norm | None, *, norm_after_activation: bool = False) -> keras.Model:
    """DS-CNN for 12 keywords: ``mfcc`` (N, 49, 10, 1) to ``keyword`` (N, 12)."""
    blocks = _Blocks(norm, norm_after_activation)
    mfcc = keras.Input((49, 10, 1), name="mfcc")
    x = blocks.norm_relu(blocks.conv(mfcc, 64, (10, 4), stride=2))
    x = layers.Dropout(0.2)(x)
    for _ in range(4):
        x = blocks.separable(x, 64)
    x = layers.Dropout(0.4)(x)
    x = layers.AveragePooling2D((25, 5))(x)
    keyword = layers.Dense(12, activation="softmax", name="keyword")(layers.Flatten()(x))
    return keras.Model(mfcc, keyword, name="keyword_spotting")


def visual_wake_words(norm: Norm | None, *, norm_after_activation: bool = False) -> keras.Model:
    """MobileNetV1 x 0.25, person or none: ``image`` (N, 96, 96, 3) to ``person`` (N, 2)."""
    blocks = _Blocks(norm, norm_after_activation)
    image = keras.Input((96, 96, 3), name="image")
    x = blocks.norm_relu(blocks.conv(image, 8, 3, stride=2))
    for filters, stride in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2)):
        x = blocks.separable(x, filters, stride)
    for _ in range(5):
        x = blocks.separable(x, 128)
    x = blocks.separable(x, 256, 2)
    x = blocks.separable(x, 256)
    x = layers.AveragePooling2D((3, 3))(x)
    person = layers.Dense(2, activation="softmax", name="person")(layers.Flatten()(x))
    return keras.Model(image, person, name="visual_wake_words")


def image_classification(norm: Norm | None, *, norm_after_activation: bool = False) -> keras.Model:
    """ResNet-8 for CIFAR-10: ``image`` (N, 32, 32, 3) to ``label`` (N, 10).

    The second norm of a block has no activation; the addition follows it.
    """
    blocks = _Blocks(norm, norm_after_activation)
    image = keras.Input((32, 32, 3), name="image")
    x = blocks.norm_relu(blocks.conv(image, 16, 3))
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        y = blocks.norm_relu(blocks.conv(x, filters, 3, stride))
        y = blocks.norm(blocks.conv(y, filters, 3))
        shortcut = x if stride == 1 else blocks.conv(x, filters, 1, stride)
        x = layers.Activation("relu")(layers.Add()([shortcut, y]))
    x = layers.AveragePooling2D(8)(x)
    label = layers.Dense(10, activation="softmax", name="label")(layers.Flatten()(x))
    return keras.Model(image, label, name="image_classification")


# Each network, by the name of its MLPerf Tiny benchmark.
NETWORKS: dict[str, Builder] = {
    "anomaly_detection": anomaly_detection,
    "image_classification": image_classification,
    "keyword_spotting": keyword_spotting,
    "visual_wake_words": visual_wake_words,
}
