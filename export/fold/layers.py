"""Layers that Keras has not: a bias that differs by position, resampling and pooling in float64."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

POOLING_3D = (keras.layers.MaxPooling3D, keras.layers.AveragePooling3D)


@keras.saving.register_keras_serializable(package="renormlite")
class BiasMap(keras.layers.Layer):
    """Add a constant to every position: ``y = x + bias``, ``bias`` of the shape of one sample.

    It is what is left of a shift in front of a zero-padded convolution when the shift is moved
    behind it: the same number everywhere but at the borders.
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


class Resampling(keras.layers.Layer):
    """What ``UpSampling2D`` with interpolation computes, in the layer's own precision.

    TensorFlow interpolates images in float32 whatever it is given, which no proof in float64
    survives. Interpolation is linear and separable, so one matrix an axis does the same. Only
    networks rebuilt in float64 hold this layer; it is not meant to be saved.
    """

    def __init__(self, layer: keras.layers.UpSampling2D, **options: Any) -> None:
        super().__init__(**options)
        self._factors = layer.size
        self._interpolation = layer.interpolation
        self._first = 2 if layer.data_format == "channels_first" else 1

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the matrices; height and width must be static."""
        self._matrices: list[NDArray[np.float64]] = []
        for axis, factor in enumerate(self._factors, self._first):
            size = input_shape[axis]
            assert size is not None, "who makes this layer has looked"
            self._matrices.append(_interpolation_matrix(size, factor, self._interpolation))

    def call(self, inputs: Any) -> Any:
        """Return the resampled images."""
        outputs = inputs
        for axis, matrix in enumerate(self._matrices, self._first):
            moved = keras.ops.moveaxis(outputs, axis, -1)
            moved = keras.ops.matmul(moved, keras.ops.cast(matrix, self.compute_dtype))
            outputs = keras.ops.moveaxis(moved, -1, axis)
        return outputs


class Pooling3DTwin(keras.layers.Layer):
    """What ``MaxPooling3D`` or ``AveragePooling3D`` computes, in the layer's own precision.

    TensorFlow has no float64 kernels for them on the CPU. The maximum over a box is the maximum
    over depth of the maxima over planes, and so with means, since what padding leaves of a box is a
    box. Planes have kernels. Only networks rebuilt in float64 hold this layer; it is not meant to
    be saved.
    """

    def __init__(self, layer: Any, **options: Any) -> None:
        super().__init__(**options)
        self._layer = layer
        largest = isinstance(layer, keras.layers.MaxPooling3D)
        self._pool_planes = keras.ops.max_pool if largest else keras.ops.average_pool

    def call(self, inputs: Any) -> Any:
        """Return the pooled volumes."""
        ops, layer = keras.ops, self._layer
        first = layer.data_format == "channels_first"
        x = ops.moveaxis(inputs, 1, -1) if first else inputs
        _, depth, height, width, channels = x.shape
        x = self._pool(ops.reshape(x, (-1, height, width, channels)), slice(1, 3))
        _, height, width, _ = x.shape
        x = ops.reshape(x, (-1, depth, height * width, channels))
        x = self._pool(x, slice(0, 1))
        x = ops.reshape(x, (-1, x.shape[1], height, width, channels))
        return ops.moveaxis(x, -1, 1) if first else x

    def _pool(self, x: Any, axes: slice) -> Any:
        """Pool planes over the given axes of the window; a single axis is the rows."""
        size, strides = tuple(self._layer.pool_size[axes]), tuple(self._layer.strides[axes])
        if len(size) == 1:
            size, strides = (*size, 1), (*strides, 1)
        return self._pool_planes(x, size, strides, self._layer.padding, "channels_last")


def _interpolation_matrix(size: int, factor: int, method: str) -> NDArray[np.float64]:
    """Return the (size, size * factor) matrix by which a row of pixels is resampled."""
    images = np.eye(size, dtype=np.float32)[:, None, :, None]
    resized = keras.ops.image.resize(images, (1, size * factor), interpolation=method)
    matrix = np.asarray(keras.ops.convert_to_numpy(resized), np.float64)[:, 0, :, 0]
    # The weights of a pixel sum to 1 in exact arithmetic, and to 1 plus a float32 rounding here.
    return matrix / matrix.sum(axis=0)
