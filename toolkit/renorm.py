"""Algorithm 1 of Batch Renormalization (Ioffe 2017, arXiv:1702.03275), as pure functions.

    r = stop_gradient(clip(sigma_B / sigma, 1 / r_max, r_max))
    d = stop_gradient(clip((mu_B - mu) / sigma, -d_max, d_max))
    y = gamma * ((x - mu_B) / sigma_B * r + d) + beta
    mu += alpha * (mu_B - mu)    sigma += alpha * (sigma_B - sigma)    alpha = 1 - momentum

mu_B and sigma_B = sqrt(variance_B + epsilon) belong to the batch, mu and sigma to the moving
statistics before this step's update. What is stored is the moving variance, sigma² - epsilon:
training and inference read the same numbers.

Everything here is elementwise and broadcasts: the caller chooses the layout of the channels. Only
`keras.ops` is used, so TensorFlow, JAX and PyTorch run the same code; it is the reference that the
faster kernels are tested against.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

# A tensor of whichever backend Keras runs on; the backends share no base class.
Tensor = Any


def at_least_float32(dtype: Any) -> str:
    """Return the dtype to compute statistics of ``dtype`` in: float64 for float64, else float32.

    Averages with momentum stop moving in half precision, and squares overflow. Keras' own
    promotion makes float64 float32 on JAX and PyTorch.
    """
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"


class Statistics(NamedTuple):
    """Mean and biased variance per channel, of a batch or of its moving average."""

    mean: Tensor
    variance: Tensor


class Correction(NamedTuple):
    """The constants r and d that correct batch-normalized values to the moving statistics."""

    r: Tensor
    d: Tensor


def sigma(variance: Tensor, epsilon: float) -> Tensor:
    """Return the standard deviation sqrt(variance + epsilon); it is never below sqrt(epsilon)."""
    return ops.sqrt(variance + epsilon)


def correction(
    batch: Statistics,
    moving: Statistics,
    *,
    r_max: Tensor | float,
    d_max: Tensor | float,
    epsilon: float,
) -> Correction:
    """Return r and d, clipped, and constant to the gradient.

    Args:
        batch: Statistics of this batch.
        moving: Moving statistics before this step's update, broadcastable to ``batch``.
        r_max: Scalar >= 1 bounding r to ``[1 / r_max, r_max]``; infinity for no bound.
        d_max: Scalar >= 0 bounding d to ``[-d_max, d_max]``; infinity for no bound.
        epsilon: Added to both variances.

    Returns:
        r and d, of the shape of ``batch``.
    """
    moving_sigma = sigma(moving.variance, epsilon)
    r = sigma(batch.variance, epsilon) / moving_sigma
    d = (batch.mean - moving.mean) / moving_sigma
    return Correction(
        ops.stop_gradient(ops.clip(r, 1.0 / r_max, r_max)),
        ops.stop_gradient(ops.clip(d, -d_max, d_max)),
    )


def normalize(
    x: Tensor,
    batch: Statistics,
    corrected: Correction,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    epsilon: float,
) -> Tensor:
    """Return ``gamma * ((x - mu_B) / sigma_B * r + d) + beta``, differentiable in x, gamma, beta.

    ``x`` is centred before it is scaled, which keeps the digits of channels whose mean is much
    larger than their spread.
    """
    scale = corrected.r / sigma(batch.variance, epsilon)
    shift = corrected.d
    if gamma is not None:
        scale, shift = gamma * scale, gamma * shift
    if beta is not None:
        shift = shift + beta
    return (x - batch.mean) * scale + shift


def warm_up_alpha(momentum: float, step: Tensor, dtype: str) -> Tensor | float:
    """Return alpha with the moving statistics starting as the mean over all batches so far.

        alpha = max(1 - momentum, 1 / (1 + step))

    The first batch replaces the initial values, and a later one counts ``1 / (1 + step)`` until
    that is less than ``1 - momentum``. A momentum of 1 keeps the statistics: alpha is 0.

    Args:
        momentum: Of the moving statistics.
        step: Updates of the statistics so far, an integer scalar.
        dtype: Of the statistics.
    """
    if momentum == 1.0:
        return 0.0
    # Written as the default bound and its inverse are, so that compilers compute it once.
    return ops.maximum(1.0 / (1.0 + ops.cast(step, dtype)), 1.0 - momentum)


def updated(
    moving: Statistics, batch: Statistics, *, alpha: Tensor | float, epsilon: float
) -> Statistics:
    """Return the moving statistics after one step, which moves them by ``alpha`` to the batch's.

    sigma, not the variance, is averaged, as the paper does. The stored variance then grows by
    ``delta * (2 sigma + delta)`` with ``delta = alpha * (sigma_B - sigma)``. Written with
    ``sigma_B - sigma = (variance_B - variance) / (sigma_B + sigma)`` nothing cancels, so that a
    variance far below epsilon keeps its digits.

    A channel whose new value would not be finite keeps the old one, so one overflowing batch cannot
    ruin a model.
    """
    old_sigma = sigma(moving.variance, epsilon)
    delta = (
        alpha * (batch.variance - moving.variance) / (sigma(batch.variance, epsilon) + old_sigma)
    )
    mean = moving.mean + alpha * (batch.mean - moving.mean)
    variance = ops.maximum(moving.variance + delta * (2.0 * old_sigma + delta), 0.0)
    usable = ops.isfinite(mean + variance)
    return Statistics(
        ops.where(usable, mean, moving.mean), ops.where(usable, variance, moving.variance)
    )


def inference_affine(
    moving: Statistics, gamma: Tensor | None, beta: Tensor | None, *, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Return scale and shift per channel; inference is ``x * scale + shift``.

    The order of operations is that of Keras' own batch normalization, so that a model converted
    between the two layers gives the same bits.
    """
    scale = ops.rsqrt(moving.variance + epsilon)
    if gamma is not None:
        scale = scale * gamma
    shift = -moving.mean * scale if beta is None else beta - moving.mean * scale
    return scale, shift
