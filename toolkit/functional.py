"""Batch renormalization as a function of inputs and state: for training loops without layers."""

from __future__ import annotations

from typing import NamedTuple

import keras
from keras import ops

from .renorm import (
    Statistics,
    Tensor,
    at_least_float32,
    inference_affine,
    updated,
    warm_up_alpha,
)
from .schedules import ScheduleLike, as_schedule
from .statistics import channel_shape
from .training_step import Settings, training_step


class RenormState(NamedTuple):
    """State passed from one step to the next: a tree of tensors for any backend.

    Attributes:
        mean: Moving mean, (channels,).
        variance: Moving variance, (channels,).
        step: Training steps taken, an integer scalar; schedules of r_max and d_max read it.
    """

    mean: Tensor
    variance: Tensor
    step: Tensor

    @classmethod
    def initial(cls, channels: int, dtype: str = "float32") -> RenormState:
        """Return the state before the first step: mean 0, variance 1."""
        return cls(
            ops.zeros((channels,), dtype),
            ops.ones((channels,), dtype),
            ops.zeros((), keras.backend.standardize_dtype("int")),
        )


class RenormOutput(NamedTuple):
    """Result of `batch_renorm`: the normalized tensor and the state for the next call."""

    outputs: Tensor
    state: RenormState


def batch_renorm(
    x: Tensor,
    state: RenormState | None = None,
    *,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    training: bool = True,
    axis: int = -1,
    momentum: float = 0.99,
    epsilon: float = 1e-3,
    r_max: ScheduleLike = "settling",
    d_max: ScheduleLike = "settling",
    mask: Tensor | None = None,
    warm_up: bool = True,
    synchronized: bool = False,
    virtual_batch_size: int | None = None,
) -> RenormOutput:
    """Apply batch renormalization and return the outputs with the updated statistics.

    The function is pure, so it can be compiled, differentiated and mapped with each backend's own
    tools. `BatchRenormalization` does the same and stores the state.

    Args:
        x: Tensor of rank 2 or more.
        state: From the previous call; None before the first.
        gamma: Scale per channel, (channels,), or None for ones.
        beta: Shift per channel, (channels,), or None for zeros.
        training: Whether to normalize with the batch statistics and update the moving ones.
            Inference returns the state unchanged.
        axis: Axis of the channels.
        momentum: Of the moving statistics; the paper's alpha is ``1 - momentum``.
        epsilon: Added to the variances.
        r_max: Bound on r: ``"settling"``, ``"paper"``, a number, None, or a schedule of the step.
        d_max: Bound on d, likewise.
        mask: Which elements count, over the leading axes of ``x``.
        warm_up: Whether the moving statistics start as the mean over all batches so far, as in
            `BatchRenormalization`. The first batch then replaces the statistics of a ``state`` with
            step 0: set it to False if they are trained.
        synchronized: Whether replicas share their statistics.
        virtual_batch_size: Samples in a ghost batch, or None.

    Returns:
        ``(outputs, state)``; the outputs have the dtype of ``x``.

    Examples:
        >>> import numpy as np
        >>> import renormlite as rl
        >>> state = None
        >>> for step in range(3):
        ...     x = np.random.normal(size=(8, 4)).astype("float32")
        ...     y, state = rl.batch_renorm(x, state, r_max=3.0, d_max=5.0)
        >>> int(state.step)
        3
        >>> y, _ = rl.batch_renorm(x, state, training=False)
    """
    dtype = at_least_float32(x.dtype)
    if state is None:
        state = RenormState.initial(x.shape[axis], dtype)
    moving = Statistics(state.mean, state.variance)
    if not training:
        layout = channel_shape(len(x.shape), axis)
        affine = inference_affine(moving, gamma, beta, epsilon=epsilon)
        scale, shift = (ops.cast(ops.reshape(v, layout), dtype) for v in affine)
        return RenormOutput(ops.cast(ops.cast(x, dtype) * scale + shift, x.dtype), state)
    bounds = {
        "r_max": as_schedule(r_max, "r_max")(state.step),
        "d_max": as_schedule(d_max, "d_max")(state.step),
    }
    result = training_step(
        x,
        moving,
        gamma,
        beta,
        Settings(axis, epsilon, synchronized, virtual_batch_size),
        mask=mask,
        r_max=ops.cast(bounds["r_max"], moving.mean.dtype),
        d_max=ops.cast(bounds["d_max"], moving.mean.dtype),
    )
    alpha: Tensor | float = 1.0 - momentum
    if warm_up:
        alpha = warm_up_alpha(momentum, state.step, moving.mean.dtype)
    after = updated(moving, result.batch, alpha=alpha, epsilon=epsilon)
    return RenormOutput(
        ops.cast(result.outputs, x.dtype), RenormState(after.mean, after.variance, state.step + 1)
    )
