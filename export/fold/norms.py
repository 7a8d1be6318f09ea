"""Norms: layers that compute a per-channel affine map at inference, and the map of each.

At inference a norm computes ``y = gamma * (x - mean) / sqrt(variance + epsilon) + beta``, that is,

    scale = gamma / sqrt(variance + epsilon)        shift = beta - mean * scale
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import keras
import numpy as np
from keras import layers as kl
from numpy.typing import ArrayLike

from ...errors import UserError
from ...toolkit.channel_affine import ChannelAffine
from ...toolkit.layers import BatchRenormalization
from ...toolkit.learned import LearnedRenormalization
from .affine import Affine, Vector
from .backend import bias_axis
from .graph import Call, Kept, Slot
from .keras_graph import kind_of

Reading = Callable[[Any], Affine]
_AnyReading = TypeVar("_AnyReading", bound=Reading)


class NotAffineError(ValueError):
    """A norm is not a per-channel affine map; the message gives the reason."""


def _read(variable: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)


def _deviation(layer: Any, variance: np.ndarray) -> np.ndarray:
    """Return the square root of a norm's variances.

    Raises:
        UserError: One is negative.
    """
    if np.any(variance < 0):
        raise UserError(
            f"Expected a variance of at least 0. Received: {variance.min():.3g} in the norm "
            f"{layer.name!r}, whose outputs are NaN. Use a model from before its training diverged."
        )
    deviation: np.ndarray = np.sqrt(variance)
    return deviation


def _batch_norm(layer: Any) -> Affine:
    """Read a Keras BatchNormalization (with or without renorm) or a BatchRenormalization."""
    scale = 1 / _deviation(layer, _read(layer.moving_variance) + layer.epsilon)
    if layer.scale:
        scale = scale * _read(layer.gamma)
    shift = -_read(layer.moving_mean) * scale
    if layer.center:
        shift = shift + _read(layer.beta)
    return Affine(scale, shift, layer.axis, _magnitude(layer))


def _learned_renormalization(layer: LearnedRenormalization) -> Affine:
    """``y = r * (x - mean) / sqrt(variance + epsilon) + d`` with r and d within their bounds."""
    r = np.clip(_read(layer.r), 0.0, layer.r_max)
    d = np.clip(_read(layer.d), -layer.d_max, layer.d_max)
    scale = r / _deviation(layer, _read(layer.moving_variance) + layer.epsilon)
    shift = d - _read(layer.moving_mean) * scale
    return Affine(scale, shift, layer.axis, _magnitude(layer))


def _magnitude(layer: Any) -> Vector:
    """Return the root mean square of each input channel, from the moving statistics."""
    square = _read(layer.moving_mean) ** 2 + _read(layer.moving_variance) + layer.epsilon
    magnitude: Vector = np.sqrt(square)
    return magnitude


def _rescaling(layer: kl.Rescaling) -> Affine:
    # The layer stores Python numbers, which TensorFlow converts to float32 in any dtype.
    scale, offset = np.asarray(layer.scale, np.float32), np.asarray(layer.offset, np.float32)
    if max(scale.ndim, offset.ndim) > 1:
        raise NotAffineError("its scale differs along more than one axis")
    return Affine.of(scale, offset)


def _normalization(layer: Any) -> Affine:
    mean, deviation = _read(layer.mean), _deviation(layer, _read(layer.variance))
    deviation = np.maximum(deviation, keras.config.epsilon())
    long = [axis for axis, size in enumerate(mean.shape) if size > 1]
    if len(long) > 1:
        raise NotAffineError(f"it normalizes along {len(long)} axes, so it has no channel axis")
    mean, deviation = mean.reshape(-1), deviation.reshape(-1)
    axis = long[0] if long else -1
    if layer.invert:
        return Affine.of(deviation, mean, axis)
    magnitude = np.sqrt(mean**2 + deviation**2)
    return Affine.of(1 / deviation, -mean / deviation, axis, magnitude=magnitude)


def _channel_affine(layer: ChannelAffine) -> Affine:
    scale = _read(layer.scale) if layer.use_scale else 1.0
    shift = _read(layer.shift) if layer.use_shift else 0.0
    return Affine.of(scale, shift, layer.axis)


_READINGS: dict[type, Reading] = {
    kl.BatchNormalization: _batch_norm,
    BatchRenormalization: _batch_norm,
    LearnedRenormalization: _learned_renormalization,
    kl.Rescaling: _rescaling,
    kl.Normalization: _normalization,
    ChannelAffine: _channel_affine,
}

_PER_SAMPLE = (
    kl.LayerNormalization,
    kl.GroupNormalization,
    kl.RMSNormalization,
    kl.UnitNormalization,
)


def register_affine(layer_type: type[keras.Layer]) -> Callable[[_AnyReading], _AnyReading]:
    """Register a custom norm with the fold.

    Args:
        layer_type: The layer class. Subclasses that do not override its ``call`` are included.

    Returns:
        A decorator for a function that takes the built layer and returns the `Affine` that the
        layer computes at inference. It must compute in float64, since the proof detects a rounding
        to float32.

    Examples:
    ```python
    @register_affine(LayerScale)
    def _(layer):
        return Affine.of(scale=layer.gamma.numpy(), shift=0.0, axis=-1)
    ```
    """
    if not (isinstance(layer_type, type) and issubclass(layer_type, keras.Layer)):
        raise UserError(f"Expected a Keras layer class to register. Received: {layer_type!r}")

    def register(reading: _AnyReading) -> _AnyReading:
        _READINGS[layer_type] = reading
        return reading

    return register


def is_norm(layer: Any) -> bool:
    """Return whether a layer is a norm, foldable or not, possibly inside `TimeDistributed`."""
    return isinstance(_unwrapped(layer)[0], (*_READINGS, *_PER_SAMPLE))


def _unwrapped(layer: Any) -> tuple[Any, int]:
    """Return the innermost layer of nested `TimeDistributed`, and the number of wrappers."""
    wrappers = 0
    while type(layer) is kl.TimeDistributed:
        layer, wrappers = layer.layer, wrappers + 1
    return layer, wrappers


def read_norm(call: Call) -> Affine:
    """Return the affine that a call of a norm computes, with its axis counted from 0.

    Raises:
        NotAffineError: The call does not compute a per-channel affine map.
    """
    layer, wrappers = _unwrapped(call.op.operation)
    if isinstance(layer, _PER_SAMPLE):
        raise NotAffineError("it normalizes each sample by the statistics of that sample")
    known = next(cls for cls in type(layer).__mro__ if cls in _READINGS)
    if type(layer).call is not known.call:  # type: ignore[attr-defined]
        raise NotAffineError(
            f"{type(layer).__name__} overrides the `call` of {known.__name__}; "
            "register what it computes with register_affine"
        )
    if call.kwargs and call.kwargs.get("training"):
        raise NotAffineError("it is called with training=True, so it uses the batch's statistics")
    affine = _READINGS[known](layer)
    if not isinstance(affine, Affine):
        raise UserError(
            f"The function registered for {known.__name__} must return an Affine. "
            f"Received: {type(affine).__name__}"
        )
    if wrappers and affine.axis >= 0:
        affine = affine.moved(affine.axis + wrappers)
    return _fitted(affine, call)


def read_constant(call: Call, *, scalars: bool = False) -> Affine | None:
    """Return the affine of an addition of, or multiplication by, a constant vector; else None.

    Scalars are read on request only: they occur in activations written as expressions (``x + 3``
    in a hard swish), which converters recognise only if they are not modified.
    """
    kind = kind_of(call.op.operation)
    if kind not in {"Add", "Subtract", "Multiply", "Divide", "TrueDivide"} or not call.args:
        return None
    if len(call.args) != 2 or len(call.inputs) != 1:
        return None
    position = 0 if _is_slot(call.args[1]) else 1
    if not _is_slot(call.args[1 - position]):
        return None
    constant = np.asarray(call.args[position], np.float64)
    if constant.size != max(constant.shape, default=1) or (constant.size < 2 and not scalars):
        return None
    if position == 0 and kind in {"Divide", "TrueDivide"}:
        return None
    flat = constant.reshape(-1)
    axis = int(np.argmax(constant.shape)) - constant.ndim if constant.ndim else -1
    if kind == "Add" and bias_axis(call.inputs[0].shape, flat.size) not in (None, axis):
        return None
    with np.errstate(divide="ignore"):
        inverse = 1 / flat
    forms: dict[str, tuple[ArrayLike, ArrayLike]] = {
        "Add": (1.0, flat),
        "Subtract": (1.0, -flat) if position == 1 else (-1.0, flat),
        "Multiply": (flat, 0.0),
        "Divide": (inverse, 0.0),
        "TrueDivide": (inverse, 0.0),
    }
    return _fitted(Affine.of(*forms[kind], axis), call)


def _is_slot(argument: object) -> bool:
    return isinstance(argument, Slot)


def _fitted(affine: Affine, call: Call) -> Affine:
    """Count the axis from 0, and broadcast a scalar to the number of channels."""
    shape = call.inputs[0].shape
    axis = affine.axis % len(shape)
    size = shape[axis]
    if size is None:
        raise NotAffineError(f"the size of axis {axis}, its channel axis, is unknown")
    if affine.size not in (1, size):
        raise NotAffineError(f"it has {affine.size} channels, its input has {size} on axis {axis}")
    return Affine.of(affine.scale, affine.shift, axis, size, affine.magnitude)


def kept_norm(call: Call) -> bool:
    """Return whether a call is a norm that is not yet converted to an affine."""
    return isinstance(call.op, Kept) and is_norm(call.op.operation)
