"""Algorithm 1 on PyTorch's fused batch-norm kernel: the fast path of a training step.

    statistics   torch.var_mean, outside the gradient: mu_B and variance_B
    outputs      torch.batch_norm, training, with weight gamma * r and bias gamma * d + beta

The kernel computes the statistics once more, and its own backward pass goes through them; since r
and d are constants, autograd gives dgamma = r * sum(dy x^) + d * sum(dy) from the weight and bias.
Its input is x - mu_B, which changes no result but keeps precision: the kernel's x * scale + shift
loses digits where the mean is larger than the spread.
PyTorch is imported where it is used, so that other backends never load it.
"""

from __future__ import annotations

from .renorm import Correction, Statistics, Tensor


def available(x: Tensor) -> bool:
    """Return whether the kernels support ``x``: a real tensor of 32 or 64 bits, and not empty."""
    import torch

    return (
        isinstance(x, torch.Tensor)
        and x.dtype in (torch.float32, torch.float64)
        and x.device.type != "meta"  # Keras infers shapes
        and x.numel() > 0
    )


def batch_statistics(x: Tensor, moving: Statistics, *, axis: int) -> Statistics:
    """Return mean and biased variance per channel, constant to the gradient.

    Args:
        x: Inputs for which `available` holds.
        moving: Not used: the batch is not empty.
        axis: Axis of the channels.
    """
    import torch

    axes = [i for i in range(x.ndim) if i != axis % x.ndim]
    with torch.no_grad():
        variance, mean = torch.var_mean(x, axes, correction=0)
    return Statistics(mean, variance)


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
    """Return ``gamma * ((x - mu_B) / sigma_B * r + d) + beta``.

    Differentiable in ``x``, ``gamma`` and ``beta``, through the statistics as well, and twice.

    Args:
        x: Inputs for which `available` holds.
        batch: Result of `batch_statistics` for ``x``.
        corrected: r and d as vectors.
        gamma: Vector, or None for ones.
        beta: Vector, or None for zeros.
        axis: Axis of the channels.
        epsilon: Added to the variance.
    """
    import torch

    weight, bias = corrected
    if gamma is not None:
        weight, bias = gamma * weight, gamma * bias
    if beta is not None:
        bias = bias + beta
    x = x.movedim(axis, 1)
    centred = x - batch.mean.reshape(-1, *(1,) * (x.ndim - 2))
    y = torch.batch_norm(centred, weight, bias, None, None, True, 0.0, epsilon, True)
    return y.movedim(1, axis)
