"""One training step of batch renormalization: which statistics, which kernel, in which order."""

from __future__ import annotations

from typing import NamedTuple

from keras import ops

from . import kernels
from .ghosts import Ghosts, average
from .renorm import Statistics, Tensor, at_least_float32, correction, normalize
from .statistics import batch_statistics, broadcast_mask, channel_shape, reduction_axes


class Settings(NamedTuple):
    """Settings of a step that are not tensors."""

    axis: int
    epsilon: float
    synchronized: bool = False
    virtual_batch_size: int | None = None


class TrainingStep(NamedTuple):
    """Result of a step.

    Attributes:
        outputs: Of the shape of the inputs and of the dtype it was computed in.
        batch: Statistics to update the moving ones with: vectors of the channels.
        ghosts: Statistics that the outputs were normalized with: (ghosts, channels), one row if
            the batch was not split.
    """

    outputs: Tensor
    batch: Statistics
    ghosts: Statistics


def training_step(
    inputs: Tensor,
    moving: Statistics,
    gamma: Tensor | None,
    beta: Tensor | None,
    settings: Settings,
    *,
    r_max: Tensor | float,
    d_max: Tensor | float,
    mask: Tensor | None = None,
) -> TrainingStep:
    """Run algorithm 1 once, except for the update of the moving statistics, which the caller does.

    Args:
        inputs: Tensor of rank 2 or more.
        moving: Moving statistics before the step, vectors of the channels.
        gamma: Vector of the channels, or None for ones.
        beta: Vector of the channels, or None for zeros.
        settings: Axis, epsilon and the like.
        r_max: Scalar bound on r, at least 1.
        d_max: Scalar bound on d, at least 0.
        mask: Which elements count, over the leading axes of the inputs.
    """
    plain = mask is None and not settings.synchronized and settings.virtual_batch_size is None
    fused = kernels.fused_kernels(inputs) if plain else None
    if fused is not None:
        return _fused_step(fused, inputs, moving, gamma, beta, settings, r_max, d_max)
    return _reference_step(inputs, moving, gamma, beta, settings, r_max, d_max, mask)


def _fused_step(
    fused: kernels.Kernels,
    x: Tensor,
    moving: Statistics,
    gamma: Tensor | None,
    beta: Tensor | None,
    settings: Settings,
    r_max: Tensor | float,
    d_max: Tensor | float,
) -> TrainingStep:
    axis, epsilon = settings.axis, settings.epsilon
    batch = fused.batch_statistics(x, moving, axis=axis)
    corrected = correction(batch, moving, r_max=r_max, d_max=d_max, epsilon=epsilon)
    outputs = fused.normalize(x, batch, corrected, gamma, beta, axis=axis, epsilon=epsilon)
    return TrainingStep(outputs, batch, Statistics(batch.mean[None], batch.variance[None]))


def _reference_step(
    x: Tensor,
    moving: Statistics,
    gamma: Tensor | None,
    beta: Tensor | None,
    settings: Settings,
    r_max: Tensor | float,
    d_max: Tensor | float,
    mask: Tensor | None,
) -> TrainingStep:
    x = ops.cast(x, at_least_float32(x.dtype))
    counted = None if mask is None else broadcast_mask(mask, x)
    rank, axis, epsilon = len(x.shape), settings.axis % len(x.shape), settings.epsilon
    axes = reduction_axes(rank, axis)
    ghosts = None
    if settings.virtual_batch_size is not None:
        ghosts = Ghosts(x, settings.virtual_batch_size)
        x, counted = ghosts.split(x), ghosts.split_mask(counted, rank)
        rank, axis, axes = rank + 1, axis + 1, tuple(a + 1 for a in axes)
    layout = channel_shape(rank, axis)

    def channelwise(vector: Tensor | None) -> Tensor | None:
        return None if vector is None else ops.reshape(ops.cast(vector, x.dtype), layout)

    laid_out = Statistics(channelwise(moving.mean), channelwise(moving.variance))
    batch = batch_statistics(
        x, laid_out, axes=axes, mask=counted, synchronized=settings.synchronized
    )
    corrected = correction(batch, laid_out, r_max=r_max, d_max=d_max, epsilon=epsilon)
    outputs = normalize(x, batch, corrected, channelwise(gamma), channelwise(beta), epsilon=epsilon)

    rows = (-1, *moving.mean.shape)
    batch = Statistics(ops.reshape(batch.mean, rows), ops.reshape(batch.variance, rows))
    if ghosts is None:
        return TrainingStep(outputs, Statistics(batch.mean[0], batch.variance[0]), batch)
    weights = None
    if counted is not None:
        counts = ops.cast(ops.broadcast_to(counted, ops.shape(x)), x.dtype)
        weights = ops.reshape(ops.sum(counts, axes, keepdims=True), rows)
    return TrainingStep(ghosts.join(outputs), average(batch, weights, epsilon=epsilon), batch)
