"""Swap the norms of a Keras model: batch normalization for batch renormalization, and back.

Inference does not change: both compute ``x * scale + shift`` from the same four vectors, in the
same order of operations. Training goes on smoothly, since every statistic it starts from is seeded
from the trained ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ..errors import UserError
from .layers import BatchRenormalization
from .learned import LearnedRenormalization
from .schedules import PAPER_D_MAX, PAPER_R_MAX, ScheduleLike

Bounds = tuple[ScheduleLike, ScheduleLike]

# Constructor arguments that Keras' layer and ours have in common.
_SHARED = (
    *("name", "trainable", "dtype", "axis", "momentum", "epsilon", "center", "scale"),
    *("gamma_initializer", "gamma_regularizer", "gamma_constraint"),
    *("beta_initializer", "beta_regularizer", "beta_constraint"),
    *("moving_mean_initializer", "moving_variance_initializer", "synchronized"),
)


@dataclass(frozen=True)
class _Norm:
    """What a trained norm of any kind is made of.

    Attributes:
        config: Constructor arguments that every kind understands.
        weights: gamma and beta (those there are), moving mean, moving variance.
        bounds: Its own r_max and d_max; None for a kind that has none.
        renorm_momentum: Momentum of statistics of training's own; None for one set of statistics.
        renorm_weights: Mean and variance of that set, or nothing.
        step: Training steps counted so far.
    """

    config: dict[str, Any]
    weights: list[np.ndarray]
    bounds: Bounds | None = None
    renorm_momentum: float | None = None
    renorm_weights: tuple[np.ndarray, ...] = ()
    step: int = 0


def to_renorm(model: keras.Model, *, bounds: Bounds | None = None) -> keras.Model:
    """Return a copy of ``model`` with `BatchRenormalization` for every batch-norm layer.

    Taken are Keras' BatchNormalization (with and without ``renorm=True``) and our own layers, also
    inside nested models and TimeDistributed. Weights, names, regularizers and constraints carry
    over, and the moving statistics seed what r and d are measured against. The copy is compiled if
    the model was, with a fresh optimizer.

    Args:
        model: A built Sequential or Functional model. It is not touched.
        bounds: ``(r_max, d_max)`` of every layer, such as ``paper_schedule(total_steps)`` gives.
            None leaves layers with bounds of their own as they are, and gives the others the
            paper's.

    Raises:
        UserError: For a model that is not built, or with norms inside a layer of the user's own
            that cannot be taken apart.

    Example:
        >>> model = to_renorm(keras.applications.MobileNetV2(), bounds=paper_schedule(10_000))
    """

    def renewed(layer: keras.layers.Layer, norm: _Norm) -> keras.layers.Layer:
        r_max, d_max = bounds or norm.bounds or (PAPER_R_MAX, PAPER_D_MAX)
        return BatchRenormalization.from_config(
            norm.config | {"r_max": r_max, "d_max": d_max, "renorm_momentum": norm.renorm_momentum}
        )

    def weights(norm: _Norm) -> list[np.ndarray]:
        return [*norm.weights, np.array(norm.step), *norm.renorm_weights]

    return _swapped(model, renewed, weights)


def to_batch_norm(model: keras.Model) -> keras.Model:
    """Return a copy of ``model`` with Keras' plain BatchNormalization for each of our norms.

    For tools that know Keras' own layers only. Keras' ``renorm=True`` layers become plain ones too.
    Schedules, step counters and bounds are dropped; inference stays as it is.

    Args:
        model: A built Sequential or Functional model. It is not touched.

    Raises:
        UserError: As `to_renorm`.
    """

    def renewed(layer: keras.layers.Layer, norm: _Norm) -> keras.layers.Layer:
        return keras.layers.BatchNormalization.from_config(norm.config)

    return _swapped(model, renewed, lambda norm: norm.weights)


def _read_batch_norm(layer: keras.layers.BatchNormalization) -> _Norm:
    config = layer.get_config()
    weights = _values(layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
    shared = {key: config[key] for key in _SHARED}
    if not layer.renorm:
        return _Norm(shared, weights)
    clipping = layer.renorm_clipping or {}
    bounds = (clipping.get("rmax"), clipping.get("dmax"))
    if layer.renorm_momentum == layer.momentum:
        return _Norm(shared, weights, bounds)
    mean, sigma = _values(layer.renorm_mean, layer.renorm_stddev)
    variance = np.maximum(sigma**2 - layer.epsilon, 0).astype(sigma.dtype)
    return _Norm(shared, weights, bounds, layer.renorm_momentum, (mean, variance))


def _read_batch_renormalization(layer: BatchRenormalization) -> _Norm:
    config = layer.get_config()
    own = () if layer.renorm_momentum is None else (layer.renorm_mean, layer.renorm_variance)
    return _Norm(
        {key: config[key] for key in _SHARED},
        _values(layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance),
        (layer.r_max, layer.d_max),
        layer.renorm_momentum,
        tuple(_values(*own)),
        int(layer.step),
    )


def _read_learned_renormalization(layer: LearnedRenormalization) -> _Norm:
    config = layer.get_config()
    shared = {key: config[key] for key in _SHARED if key in config}
    for weight, ours in (("gamma", "r"), ("beta", "d")):
        for kind in ("initializer", "regularizer"):
            shared[f"{weight}_{kind}"] = config[f"{ours}_{kind}"]
    serialize = keras.constraints.serialize
    shared["gamma_constraint"] = serialize(layer.r.constraint)
    shared["beta_constraint"] = serialize(layer.d.constraint)
    r, d = (keras.ops.convert_to_numpy(v) for v in layer.bounded_r_and_d())
    return _Norm(shared, [r, d, *_values(layer.moving_mean, layer.moving_variance)])


_READERS: dict[type, Callable[[Any], _Norm]] = {
    keras.layers.BatchNormalization: _read_batch_norm,
    BatchRenormalization: _read_batch_renormalization,
    LearnedRenormalization: _read_learned_renormalization,
}


def _values(*weights: keras.Variable | None) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(w) for w in weights if w is not None]


def _swapped(
    model: keras.Model,
    renewed: Callable[[keras.layers.Layer, _Norm], keras.layers.Layer],
    weights: Callable[[_Norm], list[np.ndarray]],
) -> keras.Model:
    """Return a clone of ``model`` with each norm replaced, and all weights carried over."""
    if not model.built:
        raise UserError(
            f"Expected a built model. {model.name} has no weights yet: give it an Input or call it."
        )
    if not isinstance(model, keras.Sequential | keras.Function):
        raise UserError(
            f"Expected a Sequential or Functional model. {model.name} is a subclass of "
            "keras.Model: use renormlite.BatchRenormalization where it makes its norms."
        )
    pairs: list[tuple[keras.layers.Layer, keras.layers.Layer, _Norm | None]] = []

    def swap(layer: keras.Operation) -> keras.Operation:
        if not isinstance(layer, keras.layers.Layer):  # a bare operation, as `x + y` makes
            return type(layer).from_config(layer.get_config())
        read = _READERS.get(type(layer))
        norm = None if read is None else read(layer)
        if norm is not None:
            twin = renewed(layer, norm)
        elif isinstance(layer, keras.layers.Wrapper) and type(layer.layer) in _READERS:
            inner = swap(layer.layer)
            config = layer.get_config() | {"layer": keras.saving.serialize_keras_object(inner)}
            twin = type(layer).from_config(config)
            # The wrapper has made a layer of its own from the config: pair that one.
            pairs[-1] = (layer.layer, twin.layer, pairs[-1][2])
            return twin
        else:
            _refuse_norms_within(layer)
            twin = type(layer).from_config(layer.get_config())
        pairs.append((layer, twin, norm))
        return twin

    clone = keras.models.clone_model(
        model, clone_function=swap, recursive=True, input_tensors=_named_inputs(model)
    )
    for layer, twin, norm in pairs:
        twin.set_weights(layer.get_weights() if norm is None else weights(norm))
    return clone


def _named_inputs(model: keras.Model) -> Any:
    """Return fresh inputs for a clone, under the names that the model's input layers have."""
    if isinstance(model, keras.Sequential):
        return None  # Keras names these itself, as they were
    names = {
        id(layer.output): layer.name
        for layer in model.layers
        if isinstance(layer, keras.layers.InputLayer)
    }
    return keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=names[id(x)]), model.input
    )


def _refuse_norms_within(layer: keras.layers.Layer) -> None:
    hidden = [f"{inner.name} ({type(inner).__name__})" for inner in _norms_within(layer)]
    if hidden:
        raise UserError(
            f"Expected every norm to be a layer of the model itself. {layer.name} "
            f"({type(layer).__name__}) holds {', '.join(hidden)} within its own call: make the "
            "norm of that class an argument, and rebuild the model."
        )


def _norms_within(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    # Keras has no public way to list the layers inside a layer; its own summary uses this one.
    for inner in layer._flatten_layers(include_self=False):
        if type(inner) in _READERS:
            yield inner
