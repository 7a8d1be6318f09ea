"""What a training step did in a norm, worked out from how far its statistics moved.

A step moves the statistics by ``alpha`` of the way to those of its batch, so two readings give the
batch's own:

    mu_B = mu + (mu' - mu) / alpha        sigma_B = sigma + (sigma' - sigma) / alpha

and with them r and d. Nothing is added to the layer, to the compiled step or to what is saved, and
the norms of Keras are observed as well as ours. Readings are float32: dividing by alpha = 0.01
leaves mu_B and sigma_B good to about 1e-5 of their size.

The gap is what training and inference differ by on this very batch, in standard deviations of the
moving statistics. Before gamma and beta, with x^ the batch-normalized input,

    training   x^ r + d                 inference   x^ sigma_B / sigma + (mu_B - mu) / sigma

so that a channel's gap, as root mean square over its elements, needs no activations either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.layers import BatchNormalization, Layer
from numpy.typing import NDArray

from .layers import BatchRenormalization
from .learned import LearnedRenormalization

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Reading:
    """What one training step did in one norm.

    Attributes:
        step: Training steps since the start of the run, 0 for the first.
        layer: Name of the norm, unique in its model.
        channels: Number of its channels.
        r_clipped: Share of channels, 0 to 1, whose r was clipped. All of them where r_max is 1.
        d_clipped: Likewise for d.
        gap: Size of the difference between training and inference, as root mean square over the
            elements, in standard deviations of the moving statistics, before gamma and beta.
        r_99: The r_max that 99 % of the channels would have stayed within.
        d_99: The d_max that 99 % of the channels would have stayed within.
        r_max: Bound on r in this step: 1 for batch normalization, infinity for none.
        d_max: Bound on d in this step: 0 for batch normalization, infinity for none.
    """

    step: int
    layer: str
    channels: int
    r_clipped: float
    d_clipped: float
    gap: float
    r_99: float
    d_99: float
    r_max: float
    d_max: float


@dataclass(frozen=True)
class Bounds:
    """What clips r, to ``[r_min, r_max]``, and d, to ``[-d_max, d_max]``."""

    r_min: float
    r_max: float
    d_max: float


@dataclass(frozen=True)
class Moments:
    """Mean and sigma = sqrt(variance + epsilon) of the channels."""

    mean: Vector
    sigma: Vector


@dataclass(frozen=True)
class Observable:
    """A norm as the observer sees it.

    Attributes:
        bounds: Gives the bounds of the next training step.
        averaged: Gives what inference uses.
        reference: Gives what r and d are measured against, and what moves with ``alpha``.
        alpha: Share of the way to the batch that a step moves the reference.
        epsilon: Added to the variances.
        averages_variance: Whether the variance moves by ``alpha``, as in Keras, or sigma.
        moves: Gives how often the statistics have moved; always 0 for a norm that does not count.
    """

    bounds: Callable[[], Bounds]
    averaged: Callable[[], Moments]
    reference: Callable[[], Moments]
    alpha: float
    epsilon: float
    averages_variance: bool = False
    moves: Callable[[], int] = lambda: 0


def observe_step(
    step: int,
    layer: str,
    norm: Observable,
    bounds: Bounds,
    inference: Moments,
    before: Moments,
    after: Moments,
    *,
    moves: int = 1,
) -> Reading:
    """Work out what a step did.

    Args:
        step: Number of the step.
        layer: Name of the norm.
        norm: The norm.
        bounds: Bounds in force in the step.
        inference: Moving statistics that inference would have used before the step.
        before: Statistics that r and d were measured against.
        after: The same after the step.
        moves: How often the statistics moved between the two. More than once gives the average of
            the batches.
    """
    alpha = 1.0 - (1.0 - norm.alpha) ** moves
    mean = before.mean + (after.mean - before.mean) / alpha
    if norm.averages_variance:
        squared = before.sigma**2 + (after.sigma**2 - before.sigma**2) / alpha
        sigma = np.sqrt(np.maximum(squared, norm.epsilon))
    else:
        sigma = before.sigma + (after.sigma - before.sigma) / alpha
        sigma = np.maximum(sigma, np.sqrt(norm.epsilon))
    r, d = sigma / before.sigma, (mean - before.mean) / before.sigma
    clipped_r = np.clip(r, bounds.r_min, bounds.r_max)
    clipped_d = np.clip(d, -bounds.d_max, bounds.d_max)

    # In units of the inference's sigma; where training has a set of its own, sigmas differ.
    spread = 1.0 - norm.epsilon / sigma**2  # mean square of x^
    slope = clipped_r - sigma / inference.sigma
    offset = clipped_d - (mean - inference.mean) / inference.sigma
    gap = np.sqrt(np.mean(slope**2 * spread + offset**2))
    return Reading(
        step=step,
        layer=layer,
        channels=len(r),
        r_clipped=float(np.mean(clipped_r != r)),
        d_clipped=float(np.mean(clipped_d != d)),
        gap=float(gap),
        r_99=float(np.quantile(np.maximum(r, 1.0 / r), 0.99)),
        d_99=float(np.quantile(np.abs(d), 0.99)),
        r_max=bounds.r_max,
        d_max=bounds.d_max,
    )


def observable(layer: Layer) -> Observable | str | None:
    """Return how to observe a layer; a sentence if it is a norm that cannot be; None if no norm."""
    if isinstance(layer, BatchRenormalization):
        return _renormalization(layer)
    if isinstance(layer, LearnedRenormalization):
        return _moving(layer, layer.momentum, averages_variance=False)
    if isinstance(layer, BatchNormalization):
        return _keras_renorm(layer) if layer.renorm else _moving(layer, layer.momentum)
    return None


_BATCH_NORM = Bounds(1.0, 1.0, 0.0)
_STANDS_STILL = "its momentum is 1, so its statistics do not move"


def _numbers(variable: keras.Variable) -> Vector:
    return np.asarray(ops.convert_to_numpy(variable), np.float64)


def _moments(mean: keras.Variable, variance: keras.Variable, epsilon: float) -> Moments:
    return Moments(_numbers(mean), np.sqrt(_numbers(variance) + epsilon))


def _moving(layer: Any, momentum: float, *, averages_variance: bool = True) -> Observable | str:
    def moving() -> Moments:
        return _moments(layer.moving_mean, layer.moving_variance, layer.epsilon)

    if momentum == 1.0:
        return _STANDS_STILL
    return Observable(
        lambda: _BATCH_NORM, moving, moving, 1.0 - momentum, layer.epsilon, averages_variance
    )


def _renormalization(layer: BatchRenormalization) -> Observable | str:
    own = layer.renorm_momentum
    if layer.virtual_batch_size is not None:
        return "each of its ghost batches has an r and d of its own"
    if (layer.momentum if own is None else own) == 1.0:
        return _STANDS_STILL

    def bounds() -> Bounds:
        r_max, d_max = float(layer.r_max(layer.step)), float(layer.d_max(layer.step))
        return Bounds(1.0 / r_max, r_max, d_max)

    def moving() -> Moments:
        return _moments(layer.moving_mean, layer.moving_variance, layer.epsilon)

    def reference() -> Moments:
        return _moments(layer.renorm_mean, layer.renorm_variance, layer.epsilon)

    return Observable(
        bounds,
        moving,
        moving if own is None else reference,
        1.0 - (layer.momentum if own is None else own),
        layer.epsilon,
        moves=lambda: int(layer.step),
    )


def _keras_renorm(layer: BatchNormalization) -> Observable | str:
    if layer.renorm_momentum == 1.0:
        return _STANDS_STILL
    clipping = layer.renorm_clipping or {}
    given = [clipping.get(key) for key in ("rmin", "rmax", "dmax")]
    limits = [n if g is None else g for g, n in zip(given, (0.0, np.inf, np.inf), strict=True)]

    def moving() -> Moments:
        return _moments(layer.moving_mean, layer.moving_variance, layer.epsilon)

    def reference() -> Moments:
        return Moments(_numbers(layer.renorm_mean), _numbers(layer.renorm_stddev))

    return Observable(
        lambda: Bounds(*limits), moving, reference, 1.0 - layer.renorm_momentum, layer.epsilon
    )
