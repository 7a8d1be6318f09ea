"""Computes Fourier transforms as products with sines.

A transform over several axes is one transform after another. Products whose results are not used,
such as those of an imaginary part, are dropped by the converters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..quantization.quantizer_choices import IN_FLOATS

if TYPE_CHECKING:
    import tensorflow as tf

    #: Real and imaginary part of complex numbers; None for an imaginary part of zero.
    Parts = tuple[tf.Tensor, tf.Tensor | None]

#: Longest transform; one of n numbers becomes matrices of n²/2 numbers each.
LONGEST = 2048

#: Number of axes, from the last, of the transforms of complex numbers and of their inverses.
OF_COMPLEX = {"FFT": 1, "FFT2D": 2, "FFT3D": 3, "IFFT": 1, "IFFT2D": 2, "IFFT3D": 3}
#: Transforms of real numbers, and transforms with real results.
OF_REAL = ("RFFT", "RFFT2D", "RFFT3D")
TO_REAL = ("IRFFT", "IRFFT2D", "IRFFT3D")


def transform(op: tf.Operation, parts: Parts) -> Parts | None:
    """Return the parts of a transform of complex numbers.

    Args:
        op: One of `OF_COMPLEX`.
        parts: The parts of its operand.

    Returns:
        The parts; None if the sizes are unknown or too large.
    """
    count = OF_COMPLEX[op.type]
    lengths = zip(range(-count, 0), parts[0].shape[-count:], strict=True)
    return _transformed(parts, lengths, inverse=op.type.startswith("I"))


def transform_of_real(op: tf.Operation) -> Parts | None:
    """Return the parts of a transform of real numbers; see `transform`."""
    import tensorflow as tf

    signal, lengths = op.inputs[0], tf.get_static_value(op.inputs[1])
    if lengths is None or lengths[-1] > LONGEST or signal.shape[-1] is None:
        return None
    length = int(lengths[-1])
    # Shorter signals are padded with zeros, longer ones truncated.
    used = min(signal.shape[-1], length)
    cosines, sines = _waves(used, length, length // 2 + 1)
    signal = signal[..., :used]
    parts = (_product(signal, cosines), _product(signal, -sines))
    return _transformed(parts, zip(range(-len(lengths), -1), lengths[:-1], strict=True))


def inverse_of_real(op: tf.Operation, parts: Parts) -> tf.Tensor | None:
    """Return the real numbers whose transform is given by its first n/2 + 1 numbers.

    Args:
        op: One of `TO_REAL`.
        parts: The parts of its operand.

    Returns:
        The numbers; None if the sizes are unknown or too large.
    """
    import tensorflow as tf

    lengths = tf.get_static_value(op.inputs[1])
    if lengths is None or lengths[-1] > LONGEST or parts[0].shape[-1] is None:
        return None
    others = zip(range(-len(lengths), -1), lengths[:-1], strict=True)
    found = _transformed(parts, others, inverse=True)
    if found is None:
        return None
    real, imaginary = found
    length = int(lengths[-1])
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


def _transformed(
    parts: Parts, lengths: Iterable[tuple[int, int | None]], *, inverse: bool = False
) -> Parts | None:
    """Return (a + ib)(C - iS) = (aC + bS) + i(bC - aS) along some axes.

    Args:
        parts: a and b; b is None if it is zero.
        lengths: Each axis, counted from the end, with the length of the transform.
        inverse: Whether to compute (a + ib)(C + iS) / length.

    Returns:
        The parts; None if the sizes are unknown or too large.
    """
    for axis, length in lengths:
        size = parts[0].shape[axis]
        if size is None or length is None or length > LONGEST:
            return None
        used, length = min(size, int(length)), int(length)
        cosines, sines = _waves(used, length, length)
        if inverse:
            cosines, sines = cosines / length, -sines / length
        a, b = (None if p is None else _with_last(p, axis)[..., :used] for p in parts)
        first, second = _product(a, cosines), _product(a, -sines)
        if b is not None:
            first, second = first + _product(b, sines), second + _product(b, cosines)
        parts = _with_last(first, axis), _with_last(second, axis)
    return parts


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
