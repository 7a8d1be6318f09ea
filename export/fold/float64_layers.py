"""Layers that compute in float64 what TensorFlow supports in float32 only, or not on CPUs.

They are used only in networks rebuilt in float64 and cannot be saved.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers as kl
from keras import tree
from numpy.typing import NDArray

_POOLING_3D = (kl.MaxPooling3D, kl.AveragePooling3D)

# TensorFlow has no CPU kernels of these for channels-first images.
_CHANNELS_LAST_ONLY = (
    *(kl.Conv1D, kl.Conv2D, kl.Conv3D, kl.DepthwiseConv1D, kl.DepthwiseConv2D),
    *(kl.SeparableConv1D, kl.SeparableConv2D),
    *(kl.Conv1DTranspose, kl.Conv2DTranspose, kl.Conv3DTranspose),
    *(kl.MaxPooling1D, kl.MaxPooling2D, kl.AveragePooling1D, kl.AveragePooling2D),
)


def replacement(layer: Any, name: str) -> keras.Layer | None:
    """Return a float64 replacement of a layer; None if the Keras layer supports float64.

    Args:
        layer: The layer of the original network.
        name: Name of the replacement.
    """
    if type(layer) is kl.UpSampling2D and layer.interpolation != "nearest":
        return Resampling(layer, name=name, dtype="float64")
    if type(layer) in _POOLING_3D:
        return Pooling3D(layer, name=name, dtype="float64")
    return None


def channels_last(layer: keras.Layer, name: str) -> keras.Layer:
    """Wrap a channels-first layer so that it computes channels-last, which CPUs support."""
    if type(layer) in _CHANNELS_LAST_ONLY and layer.data_format == "channels_first":
        config = {**layer.get_config(), "data_format": "channels_last"}
        return ChannelsLast(type(layer).from_config(config), name=name, dtype="float64")
    return layer


class _Replacement(kl.Layer):
    """Base class of replacements; the output has the shape of the replaced layer's."""

    def __init__(self, layer: Any, **options: Any) -> None:
        super().__init__(**options)
        self._layer = layer

    def compute_output_spec(self, inputs: Any, **options: Any) -> keras.KerasTensor:
        """Return the shape of the output, also if sizes of the input are unknown."""
        shape = self._layer.compute_output_shape(inputs.shape)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)


class Resampling(_Replacement):
    """``UpSampling2D`` with interpolation, in float64.

    TensorFlow interpolates images in float32 only. Interpolation is linear and separable, so it is
    computed by one matrix product per axis.
    """

    def call(self, inputs: Any) -> Any:
        """Return the resampled images."""
        ops, layer = keras.ops, self._layer
        outputs = inputs
        first = 2 if layer.data_format == "channels_first" else 1
        for axis, factor in enumerate(layer.size, first):
            matrix = _interpolation_matrix(inputs.shape[axis], factor, layer.interpolation)
            moved = ops.moveaxis(outputs, axis, -1)
            moved = ops.matmul(moved, ops.cast(matrix, self.compute_dtype))
            outputs = ops.moveaxis(moved, -1, axis)
        return outputs


class Pooling3D(_Replacement):
    """``MaxPooling3D`` or ``AveragePooling3D``, in float64.

    TensorFlow has no float64 CPU kernels for them. The maximum over a box is the maximum over the
    depth of the maxima over planes, which have kernels. The same holds for means, since the part of
    a box inside the padding is a box.
    """

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
        """Pool planes over the given axes of the window; a single axis means the rows."""
        size, strides = tuple(self._layer.pool_size[axes]), tuple(self._layer.strides[axes])
        if len(size) == 1:
            size, strides = (*size, 1), (*strides, 1)
        largest = isinstance(self._layer, kl.MaxPooling3D)
        pool = keras.ops.max_pool if largest else keras.ops.average_pool
        return pool(x, size, strides, self._layer.padding, "channels_last")


class ChannelsLast(kl.Layer):
    """A channels-last layer with channels-first input and output.

    Attributes:
        inner: The layer; its weights have the shapes of the original.
    """

    def __init__(self, inner: keras.Layer, **options: Any) -> None:
        super().__init__(**options)
        self.inner = inner
        self.built = True  # the inner layer builds itself when it is called

    def call(self, inputs: Any) -> Any:
        """Return the output of the layer, channels first."""
        outputs = self.inner(keras.ops.moveaxis(inputs, 1, -1))
        return keras.ops.moveaxis(outputs, -1, 1)


class OwnPrecision(kl.Layer):
    """A layer that cannot compute in float64, with float64 input and output.

    Args:
        inner: The layer, in a precision that it supports.
    """

    def __init__(self, inner: Any, **options: Any) -> None:
        super().__init__(**options)
        self.inner = inner
        self.built = True  # the inner layer builds itself when it is called

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the layer, cast to float64."""
        args, kwargs = tree.map_structure(self._lowered, (args, kwargs))
        return tree.map_structure(self._raised, self.inner(*args, **kwargs))

    def _lowered(self, x: Any) -> Any:
        return self._cast(x, self.inner.compute_dtype)

    def _raised(self, x: Any) -> Any:
        return self._cast(x, self.compute_dtype)

    @staticmethod
    def _cast(x: Any, dtype: str) -> Any:
        is_float = keras.ops.is_tensor(x) and "float" in keras.backend.standardize_dtype(x.dtype)
        return keras.ops.cast(x, dtype) if is_float else x


def _interpolation_matrix(size: int, factor: int, method: str) -> NDArray[np.float64]:
    """Return the (size, size * factor) matrix that resamples a row of pixels."""
    images = np.eye(size, dtype=np.float32)[:, None, :, None]
    resized = keras.ops.image.resize(images, (1, size * factor), interpolation=method)
    matrix = np.asarray(keras.ops.convert_to_numpy(resized), np.float64)[:, 0, :, 0]
    # The weights of a pixel sum to 1 in exact arithmetic; this removes the float32 rounding error.
    return matrix / matrix.sum(axis=0)
