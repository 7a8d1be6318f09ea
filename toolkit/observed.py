"""What a training step did in a norm, computed from the change of its statistics.

A step moves the statistics by ``alpha`` of the way to those of its batch, so two readings give the
batch statistics:

    mu_B = mu + (mu' - mu) / alpha        sigma_B = sigma + (sigma' - sigma) / alpha

and from them r and d. The layer, the compiled step and the saved model are not modified, and
Keras' norms are observed too. Readings are float32: dividing by alpha = 0.01
gives mu_B and sigma_B to a relative accuracy of about 1e-5.

The gap is the difference between training and inference on this batch, in standard deviations of
the moving statistics. Before gamma and beta, with x^ the batch-normalized input,

    training   x^ r + d                 inference   x^ sigma_B / sigma + (mu_B - mu) / sigma

so the gap of a channel, as root mean square over its elements, needs no activations.
"""

from __future__ import annotations

import math
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
from .schedules import Constant, Schedule

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
        loss: Training loss as Keras reports it after this step, the mean over the epoch so far; NaN
            where a training loop reports none.
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
    loss: float = math.nan


@dataclass(frozen=True)
class Bounds:
    """Bounds that clip r to ``[r_min, r_max]`` and d to ``[-d_max, d_max]``."""

    r_min: float
    r_max: float
    d_max: float


@dataclass(frozen=True)
class Moments:
    """Mean and sigma = sqrt(variance + epsilon) of the channels."""

    mean: Vector
    sigma: Vector


@dataclass(frozen=True)
class State:
    """One reading of a norm.

    Attributes:
        moves: Updates of the statistics so far; always 0 for a norm that does not count them.
        reference: What r and d are measured against.
        inference: What inference uses.
    """

    moves: int
    reference: Moments
    inference: Moments


@dataclass(frozen=True)
class Observable:
    """How to observe a norm.

    Attributes:
        bounds: Returns the bounds in force after a number of updates.
        reference: Returns the statistics that define r and d.
        kept: Returns the weight that the reference before some updates has after them, from the
            number of updates before and the number of these updates.
        epsilon: Added to the variances.
        averages_variance: Whether the variance is averaged, as in Keras, or sigma.
        inference: Returns the statistics of inference; None if they are the reference.
        moves: Returns the number of updates so far; None for a norm that does not count them.
    """

    bounds: Callable[[int], Bounds]
    reference: Callable[[], Moments]
    kept: Callable[[int, int], float]
    epsilon: float
    averages_variance: bool = False
    inference: Callable[[], Moments] | None = None
    moves: Callable[[], int] | None = None

    def read(self) -> State:
        """Read the norm; each variable once, since reading variables takes most of the time."""
        reference = self.reference()
        inference = reference if self.inference is None else self.inference()
        return State(0 if self.moves is None else self.moves(), reference, inference)


class ScheduleReader:
    """Evaluates each schedule once per step, however many norms share it."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], float] = {}

    def __call__(self, schedule: Schedule, step: int) -> float:
        """Return the bound of a schedule at a step."""
        key = (id(schedule), step)
        if key not in self._known:
            if len(self._known) > 1000:
                self._known.clear()
            self._known[key] = float(schedule(ops.convert_to_tensor(step, "int32")))
        return self._known[key]


def observe_step(
    step: int, layer: str, norm: Observable, was: State, now: State, *, moves: int
) -> Reading:
    """Return the reading of one step.

    Args:
        step: Number of the step.
        layer: Name of the norm.
        norm: The norm.
        was: Its state before the step.
        now: Its state after it.
        moves: Updates between the two, if the norm does not count them itself. After more than
            one update the result describes the average batch.
    """
    before, after, inference = was.reference, now.reference, was.inference
    bounds = norm.bounds(was.moves)
    alpha = 1.0 - norm.kept(was.moves, (now.moves - was.moves) or moves)
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


def observable(layer: Layer, bound: ScheduleReader) -> Observable | str | None:
    """Return how to observe a layer, or why this norm cannot be observed; None for other layers."""
    if isinstance(layer, BatchRenormalization):
        return _renormalization(layer, bound)
    if isinstance(layer, LearnedRenormalization):
        return _batch_norm(layer, averages_variance=False)
    if isinstance(layer, BatchNormalization):
        return _keras_renorm(layer) if layer.renorm else _batch_norm(layer, averages_variance=True)
    return None


def closed_share(layer: Layer, steps: int, bound: ScheduleReader) -> float:
    """Return the share of the next ``steps`` steps, 0 to 1, in which r_max is 1 and d_max is 0.

    ``bound`` evaluates the schedules at 20 steps. Constant bounds are the user's choice and count
    as open, as does everything that is no `BatchRenormalization` in training.
    """
    if not isinstance(layer, BatchRenormalization) or not layer.trainable or not layer.built:
        return 0.0
    if layer.correcting_momentum == 1.0:  # its statistics stand still, as `observable` says
        return 0.0
    if isinstance(layer.r_max, Constant) and isinstance(layer.d_max, Constant):
        return 0.0
    first = int(ops.convert_to_numpy(layer.step))
    looked_at = [first + round(steps * (part + 0.5) / 20) for part in range(20)]
    closed = [bound(layer.r_max, at) <= 1.0 and bound(layer.d_max, at) <= 0.0 for at in looked_at]
    return sum(closed) / len(closed)


_BATCH_NORM = Bounds(1.0, 1.0, 0.0)
_STANDS_STILL = "its momentum is 1, so its statistics do not move"


def _numbers(variable: keras.Variable) -> Vector:
    return np.asarray(ops.convert_to_numpy(variable), np.float64)


def _moments(mean: keras.Variable, variance: keras.Variable, epsilon: float) -> Moments:
    return Moments(_numbers(mean), np.sqrt(_numbers(variance) + epsilon))


def _constant(momentum: float) -> Callable[[int, int], float]:
    return lambda _, moves: momentum**moves


def _warming_up(momentum: float) -> Callable[[int, int], float]:
    """Return ``kept`` of statistics that start as the mean over all batches so far."""
    return lambda first, moves: math.prod(
        min(momentum, step / (step + 1)) for step in range(first, first + moves)
    )


def _moving(layer: Any) -> Callable[[], Moments]:
    return lambda: _moments(layer.moving_mean, layer.moving_variance, layer.epsilon)


def _batch_norm(layer: Any, *, averages_variance: bool) -> Observable | str:
    if layer.momentum == 1.0:
        return _STANDS_STILL
    return Observable(
        lambda _: _BATCH_NORM,
        _moving(layer),
        _constant(layer.momentum),
        layer.epsilon,
        averages_variance,
    )


def _renormalization(layer: BatchRenormalization, bound: ScheduleReader) -> Observable | str:
    if layer.virtual_batch_size is not None:
        return "each of its ghost batches has an r and d of its own"
    if layer.correcting_momentum == 1.0:
        return _STANDS_STILL
    momentum, separate = layer.correcting_momentum, layer.renorm_momentum is not None

    def bounds(moves: int) -> Bounds:
        r_max = bound(layer.r_max, moves)
        return Bounds(1.0 / r_max, r_max, bound(layer.d_max, moves))

    def of_training() -> Moments:
        return _moments(layer.renorm_mean, layer.renorm_variance, layer.epsilon)

    return Observable(
        bounds,
        of_training if separate else _moving(layer),
        _warming_up(momentum) if layer.warm_up else _constant(momentum),
        layer.epsilon,
        inference=_moving(layer) if separate else None,
        moves=lambda: int(ops.convert_to_numpy(layer.step)),
    )


def _keras_renorm(layer: BatchNormalization) -> Observable | str:
    if layer.renorm_momentum == 1.0:
        return _STANDS_STILL
    clipping = layer.renorm_clipping or {}
    given = [clipping.get(key) for key in ("rmin", "rmax", "dmax")]
    limits = [n if g is None else g for g, n in zip(given, (0.0, np.inf, np.inf), strict=True)]
    return Observable(
        lambda _: Bounds(*limits),
        lambda: Moments(_numbers(layer.renorm_mean), _numbers(layer.renorm_stddev)),
        _constant(layer.renorm_momentum),
        layer.epsilon,
        inference=_moving(layer),
    )
