"""Swap the norms of a Keras model: batch normalization for batch renormalization, and back.

Inference does not change: both compute ``x * scale + shift`` from the same four vectors, in the
same order of operations. Training continues smoothly, since every statistic starts from the
trained one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.layers import BatchNormalization, Layer

from ..errors import UserError
from .layers import BatchRenormalization
from .learned import LearnedRenormalization
from .moving_norm import are_initial
from .rebuild import Swap, rebuild
from .schedules import ScheduleLike

Bounds = tuple[ScheduleLike, ScheduleLike]
Where = Callable[[Layer], bool]

# Constructor arguments that Keras' layer and ours have in common, besides those of every layer.
_SHARED = (
    *("axis", "momentum", "epsilon", "center", "scale", "synchronized"),
    *("gamma_initializer", "gamma_regularizer", "gamma_constraint"),
    *("beta_initializer", "beta_regularizer", "beta_constraint"),
    *("moving_mean_initializer", "moving_variance_initializer"),
)


@dataclass(frozen=True)
class _Norm:
    """The arguments and weights of a norm of any kind.

    Attributes:
        arguments: Constructor arguments that every kind understands.
        weights: gamma and beta (where present), moving mean, moving variance.
        bounds: Its own r_max and d_max; None for a kind that has none.
        renorm_momentum: Momentum of a separate set of statistics for training; None without one.
        renorm_weights: Mean and variance of that set; empty without one.
        virtual_batch_size: Samples in a ghost batch; None for whole batches.
        step: Training steps counted so far.
        warm_up: Its own warm_up; None if the statistics decide.
    """

    arguments: dict[str, Any]
    weights: tuple[np.ndarray, ...]
    bounds: Bounds | None = None
    renorm_momentum: float | None = None
    renorm_weights: tuple[np.ndarray, ...] = ()
    virtual_batch_size: int | None = None
    step: int = 0
    warm_up: bool | None = None


def to_renorm(
    model: keras.Model,
    *,
    bounds: Bounds | None = None,
    momentum: float | None = None,
    step: int | None = None,
    where: Where | None = None,
) -> keras.Model:
    """Return a copy of ``model`` with `BatchRenormalization` for every batch norm.

    This replaces Keras' BatchNormalization, with and without ``renorm=True``, and
    `LearnedRenormalization`, wherever they are: in Functional, Sequential, nested and subclassed
    models, in wrappers and in custom layers. A `BatchRenormalization` is copied; arguments given
    below override its own.

    Inference gives the same bits. Names, gamma, beta, epsilon, axis, momentum, regularizers,
    constraints and ``trainable`` are kept, and shared layers stay shared. r and d start from the
    moving statistics, so the training loss does not jump either.

    Args:
        model: Any built model. It is not changed.
        bounds: ``(r_max, d_max)`` for every norm, for instance ``paper_schedule(total_steps)``.
            None keeps existing bounds, such as ``renorm_clipping``. Of the other norms, those with
            trained statistics get no bounds, so that training continues from the inference outputs
            on batches of any size, and those with initial statistics get ``"settling"``, the
            default of `BatchRenormalization`. Likewise ``warm_up`` is off for trained statistics.
        momentum: Momentum of every norm. None keeps each norm's own. It now affects training:
            0.99 suits most runs; 0.999 follows the batches too slowly.
        step: Step at which the schedules of all norms start. None starts at 0, or at the step
            count of a `BatchRenormalization`.
        where: Which norms to swap; the others are copied as they are. None swaps all.

    Returns:
        The copy, not compiled; choose a new optimizer and learning rate.

    Raises:
        UserError: For a model that is not built; for a layer that cannot be recreated from
            its config; for a norm that cannot be converted: one that overrides ``call``, has
            epsilon 0, or has a ``renorm_clipping`` other than ``[1 / rmax, rmax]`` when no
            ``bounds`` are given.

    Examples:
        >>> model = to_renorm(keras.applications.MobileNetV2(), momentum=0.99)
    """
    if step is not None and step < 0:
        raise UserError(f"Expected step to be at least 0. Received: {step}.")

    def wanted(norm: _Norm) -> _Norm:
        changes: dict[str, Any] = {}
        if bounds is not None:
            changes["bounds"] = bounds
        if step is not None:
            changes["step"] = step
            if norm.warm_up:  # decided anew, since this step counts no batches of the statistics
                changes["warm_up"] = None
        if momentum is not None:
            changes["arguments"] = norm.arguments | {"momentum": momentum}
        return replace(norm, **changes)

    return _converted(model, _ToRenorm(wanted, where, own_bounds=bounds is None))


def to_batch_norm(model: keras.Model, *, where: Where | None = None) -> keras.Model:
    """Return a copy of ``model`` with Keras' plain BatchNormalization for each renormalization.

    Use it for tools that only support Keras' own layers. Keras' ``renorm=True`` layers become plain
    ones too. Inference gives the same bits; bounds, step counters, training-only statistics and
    ghost batches are dropped.

    Args:
        model: Any built model. It is not changed.
        where: Which norms to swap; the others are copied as they are. None swaps all.

    Returns:
        The copy, not compiled.

    Raises:
        UserError: For a model that is not built, or a layer that cannot be recreated from
            its config.
    """
    return _converted(model, _ToBatchNorm(where))


def _converted(model: keras.Model, swap: Swap) -> keras.Model:
    if not isinstance(model, keras.Model):
        raise UserError(f"Expected a Keras 3 model. Received: {type(model)}.")
    if not model.built:
        raise UserError(
            f"Expected a built model. {model.name} has no weights yet: call it on some data, or "
            "give it an Input."
        )
    return rebuild(model, swap)


class _SwapNorms(Swap):
    """The part common to both directions."""

    def __init__(self, where: Where | None) -> None:
        self._where = where

    def wants(self, layer: Layer) -> bool:
        """Return whether this is a norm to swap."""
        if not self.is_source(layer) or not (self._where is None or self._where(layer)):
            return False
        kind: Any = next(k for k in _READERS if isinstance(layer, k))
        if type(layer).call is not kind.call:
            raise UserError(
                f"{layer.name} ({type(layer).__name__}) is a {kind.__name__} with a call() of its "
                "own, which cannot be converted. Exclude it: "
                f"where=lambda layer: layer.name != {layer.name!r}."
            )
        return True

    def is_source(self, layer: Layer) -> bool:
        """Return whether this is a norm of a kind that the direction swaps."""
        raise NotImplementedError

    def read(self, layer: Layer) -> _Norm:
        """Return the arguments and weights of the norm."""
        return next(read for kind, read in _READERS.items() if isinstance(layer, kind))(layer)


class _ToRenorm(_SwapNorms):
    def __init__(
        self, wanted: Callable[[_Norm], _Norm], where: Where | None, *, own_bounds: bool
    ) -> None:
        super().__init__(where)
        self._wanted = wanted
        self._own_bounds = own_bounds

    def is_source(self, layer: Layer) -> bool:
        return isinstance(layer, tuple(_READERS))

    def make(self, layer: Layer) -> Layer:
        if self._own_bounds and isinstance(layer, BatchNormalization):
            _refuse_lopsided_clipping(layer)
        norm = self._wanted(self.read(layer))
        if not norm.arguments["epsilon"] > 0.0:
            raise UserError(
                f"{layer.name} has epsilon 0, but BatchRenormalization divides by sigma and "
                "needs epsilon > 0. Train the model with an epsilon such as 1e-3 first."
            )
        initial = _has_initial_statistics(norm)
        default: Bounds = ("settling", "settling") if initial else (None, None)
        r_max, d_max = norm.bounds or default
        return BatchRenormalization(
            **norm.arguments,
            r_max=r_max,
            d_max=d_max,
            renorm_momentum=norm.renorm_momentum,
            warm_up=initial if norm.warm_up is None else norm.warm_up,
            virtual_batch_size=norm.virtual_batch_size,
        )

    def fill(self, layer: Layer, twin: Layer) -> None:
        norm = self._wanted(self.read(layer))
        _fill(layer, twin, [*norm.weights, np.array(norm.step), *norm.renorm_weights])


class _ToBatchNorm(_SwapNorms):
    def is_source(self, layer: Layer) -> bool:
        if isinstance(layer, BatchNormalization):
            return bool(layer.renorm)
        return isinstance(layer, tuple(_READERS))

    def make(self, layer: Layer) -> Layer:
        return BatchNormalization(**self.read(layer).arguments)

    def fill(self, layer: Layer, twin: Layer) -> None:
        _fill(layer, twin, list(self.read(layer).weights))


def _fill(layer: Layer, twin: Layer, weights: list[np.ndarray]) -> None:
    if not layer.built:
        return
    twin.set_weights(weights)
    # Weights can be frozen one by one. The trainable ones come first, in the same order on both.
    for old, new in zip(layer.weights, twin.weights, strict=False):
        new.trainable = old.trainable


def _has_initial_statistics(norm: _Norm) -> bool:
    """Return whether the moving statistics still have their initial values."""
    names = "mean_initializer", "variance_initializer"
    own = {
        name: norm.arguments[f"moving_{name}"]
        for name in names
        if f"moving_{name}" in norm.arguments
    }
    return are_initial([*norm.weights[-2:], *norm.renorm_weights[:1]], **own)


def _refuse_lopsided_clipping(layer: BatchNormalization) -> None:
    clipping = (layer.renorm_clipping or {}) if layer.renorm else {}
    r_min, r_max = clipping.get("rmin") or 0.0, clipping.get("rmax") or math.inf
    if math.isclose(r_min, 1.0 / r_max, rel_tol=1e-6):
        return
    example = (3.0 if r_max == math.inf else r_max, clipping.get("dmax") or 5.0)
    raise UserError(
        f"{layer.name} clips r to [{r_min:g}, {r_max:g}], but BatchRenormalization to "
        f"[1 / r_max, r_max]. Say what to train with, such as to_renorm(model, bounds={example})."
    )


def _arguments(layer: Layer) -> dict[str, Any]:
    # The objects themselves: a regularizer of the user's own need not be serializable.
    arguments = {"name": layer.name, "trainable": layer.trainable, "dtype": layer.dtype_policy}
    own = vars(layer)
    return arguments | {key: own[key] for key in _SHARED if key in own}


def _values(*weights: keras.Variable | None) -> tuple[np.ndarray, ...]:
    return tuple(ops.convert_to_numpy(w) for w in weights if w is not None)


def _weights(layer: Any) -> tuple[np.ndarray, ...]:
    if not layer.built:
        return ()
    return _values(layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)


def _read_batch_norm(layer: BatchNormalization) -> _Norm:
    norm = _Norm(_arguments(layer), _weights(layer))
    if not layer.renorm:
        return norm
    clipping = layer.renorm_clipping or {}
    norm = replace(norm, bounds=(clipping.get("rmax"), clipping.get("dmax")))
    if not layer.built:
        return replace(norm, renorm_momentum=layer.renorm_momentum)
    moving_sigma, mean, sigma = _values(layer.moving_stddev, layer.renorm_mean, layer.renorm_stddev)
    one_set = np.array_equal(mean, norm.weights[-2]) and np.array_equal(sigma, moving_sigma)
    if one_set and layer.renorm_momentum == layer.momentum:
        return norm  # they would go on being the same
    variance = np.maximum(sigma.astype(np.float64) ** 2 - layer.epsilon, 0.0)
    return replace(norm, renorm_momentum=layer.renorm_momentum, renorm_weights=(mean, variance))


def _read_batch_renormalization(layer: BatchRenormalization) -> _Norm:
    own = layer.built and layer.renorm_momentum is not None
    return _Norm(
        _arguments(layer),
        _weights(layer),
        (layer.r_max, layer.d_max),
        layer.renorm_momentum,
        _values(layer.renorm_mean, layer.renorm_variance) if own else (),
        layer.virtual_batch_size,
        int(layer.step) if layer.built else 0,
        layer.warm_up,
    )


def _read_learned_renormalization(layer: LearnedRenormalization) -> _Norm:
    """Use r and d as gamma and beta: this layer keeps them at inference."""
    arguments = _arguments(layer) | {
        "gamma_initializer": layer.r_initializer,
        "beta_initializer": layer.d_initializer,
        "gamma_regularizer": layer.r_regularizer,
        "beta_regularizer": layer.d_regularizer,
    }
    if not layer.built:
        return _Norm(arguments, ())
    arguments |= {"gamma_constraint": layer.r.constraint, "beta_constraint": layer.d.constraint}
    r, d = (ops.convert_to_numpy(v) for v in layer.bounded_r_and_d())
    return _Norm(arguments, (r, d, *_values(layer.moving_mean, layer.moving_variance)))


_READERS: dict[type, Callable[[Any], _Norm]] = {
    BatchNormalization: _read_batch_norm,
    BatchRenormalization: _read_batch_renormalization,
    LearnedRenormalization: _read_learned_renormalization,
}
