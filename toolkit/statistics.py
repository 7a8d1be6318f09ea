"""Statistics of a batch: mean and biased variance per channel, over all axes but the channel's.

The variance is the mean of the squared distance to the mean, in two passes. The one-pass form
``mean(x²) - mean(x)²`` loses every digit where the mean is much larger than the spread, and can
turn negative.
"""

from __future__ import annotations

import math

from keras import ops

from ..errors import UserError
from .renorm import Statistics, Tensor
from .replicas import all_reduce_sum


def channel_shape(rank: int, axis: int) -> tuple[int, ...]:
    """Return the shape that lays a vector of channels along ``axis``: ``(1, .., -1, .., 1)``."""
    return tuple(-1 if i == axis % rank else 1 for i in range(rank))


def reduction_axes(rank: int, axis: int) -> tuple[int, ...]:
    """Return every axis but the channels' own."""
    return tuple(i for i in range(rank) if i != axis % rank)


def broadcast_mask(mask: Tensor, x: Tensor) -> Tensor:
    """Return ``mask`` as booleans that broadcast to ``x``.

    Args:
        mask: Which elements count. Its axes are the leading axes of ``x``, as everywhere in Keras:
            (batch, time) goes with (batch, time, ...). Axes of size 1 broadcast.
        x: The layer's input.

    Raises:
        UserError: The size of an axis of the mask is neither 1 nor that of ``x``.
    """
    if len(mask.shape) > len(x.shape) or any(
        m not in (1, None) and n is not None and m != n
        for m, n in zip(mask.shape, x.shape, strict=False)
    ):
        raise UserError(
            "Expected a mask over the leading axes of the inputs, each of size 1 or that of the "
            f"inputs. Received: mask of shape {tuple(mask.shape)} for inputs of shape "
            f"{tuple(x.shape)}. With channels first, give a mask of shape (batch, 1, ...)."
        )
    missing = (1,) * (len(x.shape) - len(mask.shape))
    return ops.reshape(ops.cast(mask, "bool"), (*ops.shape(mask), *missing))


def batch_statistics(
    x: Tensor,
    moving: Statistics,
    *,
    axes: tuple[int, ...],
    mask: Tensor | None = None,
    synchronized: bool = False,
) -> Statistics:
    """Return the statistics of ``x`` over ``axes``, which stay as axes of size 1.

    Channels without any element to average (an empty or fully masked batch) get the moving
    statistics, so that nothing is corrected and nothing moves.

    Args:
        x: Inputs, float32 or float64.
        moving: Moving statistics, broadcastable to the result.
        axes: Axes to average over.
        mask: Booleans that broadcast to ``x``; ``False`` elements do not count.
        synchronized: Whether to average over all replicas as well, weighted by their number of
            elements.
    """
    if mask is None and not synchronized:
        mean = ops.mean(x, axes, keepdims=True)
        # By definition of the mean, d variance / d mean = 0: the gradient need not go there.
        distance = x - ops.stop_gradient(mean)
        variance = ops.mean(ops.square(distance), axes, keepdims=True)
        if all(x.shape[a] for a in axes):  # known, none is 0
            return Statistics(mean, variance)
        seen = math.prod(ops.shape(x)[a] for a in axes) > 0
        return Statistics(
            ops.where(seen, mean, moving.mean), ops.where(seen, variance, moving.variance)
        )
    total = all_reduce_sum if synchronized else _unchanged
    counted = ops.ones_like(x)
    if mask is not None:
        counted = ops.cast(ops.broadcast_to(mask, ops.shape(x)), x.dtype)
    count, mass = total(
        ops.sum(counted, axes, keepdims=True), ops.sum(x * counted, axes, keepdims=True)
    )
    share = 1.0 / ops.maximum(count, 1.0)
    mean = share * mass
    distance = (x - ops.stop_gradient(mean)) * counted
    (spread,) = total(ops.sum(ops.square(distance), axes, keepdims=True))
    seen = count > 0
    return Statistics(
        ops.where(seen, mean, moving.mean), ops.where(seen, share * spread, moving.variance)
    )


def _unchanged(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tensors
