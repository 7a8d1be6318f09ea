"""Algorithm 1 on TensorFlow's fused batch-norm kernels: the fast path of a training step.

Three calls replace fifteen elementwise ones:

    statistics   FusedBatchNormV3, training: mu_B and variance_B; its own output is not used
    forward      FusedBatchNormV3, inference, with scale gamma * r and offset gamma * d + beta
    backward     FusedBatchNormGradV3 with scale gamma * r, since r and d are constants:
                 dx = r * gamma / sigma_B * (dy - mean(dy) - x^ mean(dy x^))
                 dgamma = r * sum(dy x^) + d * sum(dy)        dbeta = sum(dy)

`tf.raw_ops` is public; TensorFlow is imported where it is used, so that other backends never load
it. The kernels serve CPUs: cuDNN's hand 1 / sigma to the backward call where the others hand the
variance, and on a GPU Keras compiles the reference with XLA.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import keras

from .renorm import Correction, Statistics, Tensor

# XLA lowers the kernel to mean(x²) - mean(x)², which loses log2(mean² / variance) bits. Up to 6
# bits the variance is as good as a float32 sum makes it (measured 1e-5 relative); beyond, it is
# computed anew in two passes. TensorFlow's own CPU kernel takes two passes already.
TRUSTED_MEAN_TO_VARIANCE = 64.0

# Below this many elements the kernels take longer than the reference: each call is divided among
# threads. Measured on two cores, graph mode: equal at 2**17 elements, twice as long at 2**12.
SMALLEST_TENSOR = 2**17

# Where the batch size is not static, as in `fit`, the tensor is taken to have this many samples.
TYPICAL_BATCH = 16

_DTYPES = ("float16", "bfloat16", "float32")


class _Layout(NamedTuple):
    """How a tensor is shown to the kernel: as a rank-4 shape of one of its two formats."""

    shape: Tensor | None  # None: unchanged
    data_format: str


def available(x: Tensor) -> bool:
    """Return whether the kernels serve ``x`` well.

    They do for TensorFlow on a CPU, float32 or half precision, and `SMALLEST_TENSOR` elements.
    """
    import tensorflow as tf

    return (
        isinstance(x, tf.Tensor)
        and keras.backend.standardize_dtype(x.dtype) in _DTYPES
        and not tf.config.get_visible_devices("GPU")
        and _elements(x) >= SMALLEST_TENSOR
    )


def _elements(x: Tensor) -> int:
    """Return the number of elements of ``x``, with an estimate for each size that is unknown."""
    return math.prod(TYPICAL_BATCH if size is None else size for size in x.shape)


def _layout(x: Tensor, axis: int) -> _Layout:
    import tensorflow as tf

    rank, axis = len(x.shape), axis % len(x.shape)
    last = axis == rank - 1
    if rank == 4 and last:
        return _Layout(None, "NHWC")
    if rank == 4 and axis == 1:
        return _Layout(None, "NCHW")
    sizes = tf.shape(x)
    inner = tf.reduce_prod(sizes[1:axis] if last else sizes[axis + 1 :])
    outer = sizes[0] if last else tf.reduce_prod(sizes[:axis])
    channels = x.shape[axis]
    if last:
        return _Layout(tf.stack([outer, inner, 1, channels]), "NHWC")
    return _Layout(tf.stack([outer, channels, inner, 1]), "NCHW")


def _elements_per_channel(x: Tensor, channels: int) -> Tensor | int:
    """Return the number of elements in each statistic: a scalar if it is not static."""
    import tensorflow as tf

    if None not in x.shape.as_list():
        return math.prod(x.shape) // channels
    return tf.cast(tf.size(x, tf.int64) // channels, tf.float32)


def batch_statistics(x: Tensor, moving: Statistics, *, axis: int) -> Statistics:
    """Return mean and biased variance per channel, as float32 vectors, constant to the gradient.

    An empty batch gets the moving statistics, as in the reference.

    Args:
        x: Inputs for which `available` holds.
        moving: Moving statistics as float32 vectors.
        axis: Axis of the channels.
    """
    import tensorflow as tf

    x = tf.stop_gradient(x)
    layout = _layout(x, axis)
    if layout.shape is not None:
        x = tf.reshape(x, layout.shape)
    channels = moving.mean.shape[0]
    count = _elements_per_channel(x, channels)
    empty = tf.zeros((0,), tf.float32)
    result = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=tf.ones((channels,)),
        offset=tf.zeros((channels,)),
        mean=empty,
        variance=empty,
        is_training=True,
        data_format=layout.data_format,
    )
    mean = result.batch_mean
    # The kernel applies Bessel's correction to its result.
    static = isinstance(count, int)
    at_least_one = functools.partial(max, 1) if static else functools.partial(tf.maximum, 1.0)
    variance = result.batch_variance * (at_least_one(count - 1) / at_least_one(count))

    def two_passes() -> Tensor:
        first = layout.data_format == "NCHW"
        centred = tf.cast(x, tf.float32) - tf.reshape(mean, (-1, 1, 1) if first else (-1,))
        return tf.reduce_mean(tf.square(centred), (0, 2, 3) if first else (0, 1, 2))

    doubtful = tf.reduce_any(tf.square(mean) > TRUSTED_MEAN_TO_VARIANCE * variance)
    variance = tf.cond(doubtful, two_passes, lambda: variance)
    if static and count > 0:
        return Statistics(mean, variance)
    seen = count > 0
    return Statistics(tf.where(seen, mean, moving.mean), tf.where(seen, variance, moving.variance))


def normalize(
    x: Tensor,
    batch: Statistics,
    corrected: Correction,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    axis: int,
    epsilon: float,
) -> Tensor:
    """Return ``gamma * ((x - mu_B) / sigma_B * r + d) + beta`` in the dtype of ``x``.

    Differentiable in ``x``, ``gamma`` and ``beta``, through the statistics as well, and twice.

    Args:
        x: Inputs for which `available` holds.
        batch: Result of `batch_statistics` for ``x``.
        corrected: r and d as float32 vectors.
        gamma: Float32 vector, or None for ones.
        beta: Float32 vector, or None for zeros.
        axis: Axis of the channels.
        epsilon: Added to the variance.
    """
    import tensorflow as tf

    layout = _layout(x, axis)
    flat = x if layout.shape is None else tf.reshape(x, layout.shape)
    kernel = functools.partial(
        _kernel, batch=batch, corrected=corrected, data_format=layout.data_format, epsilon=epsilon
    )
    y = kernel(
        flat,
        tf.ones_like(batch.mean) if gamma is None else tf.convert_to_tensor(gamma),
        tf.zeros_like(batch.mean) if beta is None else tf.convert_to_tensor(beta),
    )
    if layout.shape is None:
        return y
    y = tf.reshape(y, tf.shape(x))
    y.set_shape(x.shape)
    return y


def _kernel(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    batch: Statistics,
    corrected: Correction,
    data_format: str,
    epsilon: float,
) -> Tensor:
    import tensorflow as tf

    r, d = corrected

    @tf.custom_gradient
    def forward(x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, object]:
        scale = gamma * r
        y = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=scale,
            offset=gamma * d + beta,
            mean=batch.mean,
            variance=batch.variance,
            epsilon=epsilon,
            is_training=False,
            data_format=data_format,
        ).y

        def backward(dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            gradient = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=dy,
                x=x,
                scale=scale,
                reserve_space_1=batch.mean,
                reserve_space_2=batch.variance,
                reserve_space_3=tf.zeros((0,), tf.float32),
                epsilon=epsilon,
                is_training=True,
                data_format=data_format,
            )
            dgamma = gradient.scale_backprop * r + gradient.offset_backprop * d
            return gradient.x_backprop, dgamma, gradient.offset_backprop

        return y, backward

    return forward(x, gamma, beta)
