"""Replaces parts of Fourier transforms, of real or complex numbers, by products with sines.

A transform over several axes is one transform after another. Products whose results are not used,
such as those of an imaginary part, are dropped by the converters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..quantization.quantizer_choices import IN_FLOATS

if TYPE_CHECKING:
    import tensorflow as tf

# A transform of n numbers becomes matrices of n²/2 numbers each.
_LONGEST_TRANSFORM = 2048

# Number of axes, from the last, of the transforms of complex numbers.
_TRANSFORMED_AXES = {"FFT": 1, "FFT2D": 2, "FFT3D": 3}


def part_of_transform(op: tf.Operation, function: Any) -> tf.Tensor | None:
    """Return the real or imaginary part, or the absolute value, of a Fourier transform.

    Args:
        op: A Real, Imag or ComplexAbs of a traced function.
        function: The concrete function.

    Returns:
        The replacement; None if its operand is no transform of static size.
    """
    import tensorflow as tf

    parts = _transform(op.inputs[0])
    if parts is None:
        return None
    real, imaginary = parts
    if op.type == "ComplexAbs":
        return tf.sqrt(tf.square(real) + tf.square(imaginary))
    return real if op.type == "Real" else imaginary


def inverse_of_real(op: tf.Operation, function: Any) -> tf.Tensor | None:
    """Return the real numbers whose transform is given by its first n/2 + 1 numbers.

    Args:
        op: An IRFFT of a traced function.
        function: The concrete function.

    Returns:
        The replacement; None if the sizes are not static.
    """
    import tensorflow as tf

    parts = _transform(op.inputs[0]) or _complex(op.inputs[0])
    given = tf.get_static_value(op.inputs[1])
    if parts is None or given is None or given[0] > _LONGEST_TRANSFORM:
        return None
    real, imaginary = parts
    length = int(given[0])
    if real.shape[-1] is None:
        return None
    used = min(real.shape[-1], length // 2 + 1)
    # All but the first number, and the last one of an even length, stand for two conjugates.
    share = np.full((used, 1), 2 / length)
    share[0] = 1 / length
    if length % 2 == 0 and used == length // 2 + 1:
        share[-1] = 1 / length
    cosines, sines = _waves(used, length, length)
    result = _product(real[..., :used], share * cosines)
    if imaginary is None:
        return result
    return result - _product(imaginary[..., :used], share * sines)


def _transform(tensor: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor] | None:
    """Return the real and imaginary part of a Fourier transform; None if it is not one."""
    import tensorflow as tf

    op = tensor.op
    while op.type == "Identity":
        op = op.inputs[0].op
    if op.type == "RFFT":
        signal, length = op.inputs[0], tf.get_static_value(op.inputs[1])
        if signal.shape[-1] is None or length is None or length[0] > _LONGEST_TRANSFORM:
            return None
        # Shorter signals are padded with zeros, longer ones truncated.
        used = min(signal.shape[-1], int(length[0]))
        cosines, sines = _waves(used, int(length[0]), int(length[0]) // 2 + 1)
        signal = signal[..., :used]
        return _product(signal, cosines), _product(signal, -sines)
    if op.type not in _TRANSFORMED_AXES:
        return None
    given = _transform(op.inputs[0]) or _complex(op.inputs[0])
    if given is None:
        return None
    real, imaginary = given
    for axis in range(-1, -1 - _TRANSFORMED_AXES[op.type], -1):
        size = real.shape[axis]
        if size is None or size > _LONGEST_TRANSFORM:
            return None
        real, imaginary = _transformed(real, imaginary, axis, *_waves(size, size, size))
    assert imaginary is not None
    return real, imaginary


def _complex(tensor: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None] | None:
    """Return the parts that complex numbers are made of; None for an imaginary part of zero."""
    import tensorflow as tf

    op = tensor.op
    if op.type == "Pad":  # with zeros
        parts = _transform(op.inputs[0]) or _complex(op.inputs[0])
        if parts is None:
            return None
        real, imaginary = parts
        sizes = op.inputs[1]
        return tf.pad(real, sizes), None if imaginary is None else tf.pad(imaginary, sizes)
    if op.type == "Cast" and op.inputs[0].dtype == tf.float32:
        return op.inputs[0], None
    if op.type != "Complex":
        return None
    real, imaginary = op.inputs
    constant = tf.get_static_value(imaginary)
    zero = imaginary.op.type == "ZerosLike" or (constant is not None and not np.any(constant))
    return real, None if zero else imaginary


def _transformed(
    real: tf.Tensor,
    imaginary: tf.Tensor | None,
    axis: int,
    cosines: NDArray[np.float64],
    sines: NDArray[np.float64],
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return (a + ib)(C - iS) = (aC + bS) + i(bC - aS) along one axis; b is None if it is zero."""
    a, b = _with_last(real, axis), None if imaginary is None else _with_last(imaginary, axis)
    first, second = _product(a, cosines), _product(a, -sines)
    if b is not None:
        first, second = first + _product(b, sines), second + _product(b, cosines)
    return _with_last(first, axis), _with_last(second, axis)


def _with_last(tensor: tf.Tensor, axis: int) -> tf.Tensor:
    """Exchange an axis, counted from the end, with the last one."""
    import tensorflow as tf

    if axis == -1:
        return tensor
    order = list(range(len(tensor.shape)))
    order[axis], order[-1] = order[-1], order[axis]
    return tf.transpose(tensor, order)


def _waves(times: int, length: int, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the cosines and sines of shape (times, count) of a transform of some length."""
    # Exact multiples of the angle 2π/length, so that angles of whole turns are 0.
    angles = 2 * np.pi / length * (np.outer(np.arange(times), np.arange(count)) % length)
    # Where a sine is 0, NumPy returns about 1e-13, since π is not exact in float64.
    cosines, sines = (np.where(np.abs(f) < 1e-9, 0, f) for f in (np.cos(angles), np.sin(angles)))
    return cosines, sines


def _product(signal: tf.Tensor, matrix: NDArray[np.float64]) -> tf.Tensor:
    """Return the product of the last axis of a tensor and a matrix."""
    import tensorflow as tf

    flat = tf.reshape(signal, (-1, matrix.shape[0]))
    result = tf.matmul(flat, tf.constant(matrix.astype(np.float32)), name=IN_FLOATS)
    sizes = [-1 if size is None else size for size in signal.shape[:-1]]
    return tf.reshape(result, (*sizes, matrix.shape[1]), name=IN_FLOATS)
