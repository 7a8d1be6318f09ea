"""Recognizes which integer operator, if any, computes a layer."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers as kl

from ...errors import UserError
from ...toolkit.quantize_aware.quantized import FUSED
from ..fold.affine import Affine
from ..fold.graph import ActivationOp, Call, Kept
from ..fold.keras_graph import kind_of
from ..fold.linear import Linear
from ..fold.norms import NotAffineError, read_constant

CHANNELS_FIRST = "channels_first"
ADVICE = "Replace it, or leave it in floating point: float_layers=({name!r},)."

# Layers that only move or select integers, so that their output has the grid of their input.
_MOVES = (
    kl.MaxPooling1D,
    kl.MaxPooling2D,
    kl.GlobalMaxPooling1D,
    kl.GlobalMaxPooling2D,
    kl.Flatten,
    kl.Reshape,
    kl.Permute,
    kl.ZeroPadding1D,
    kl.ZeroPadding2D,
    kl.Cropping1D,
    kl.Cropping2D,
    kl.Identity,
    kl.Dropout,
    kl.SpatialDropout1D,
    kl.SpatialDropout2D,
    kl.SpatialDropout3D,
    kl.GaussianNoise,
    kl.GaussianDropout,
    kl.AlphaDropout,
    kl.ActivityRegularization,
)
# The same of keras.ops.
_MOVING_OPERATIONS = (
    "Reshape", "Transpose", "Squeeze", "ExpandDims", "GetItem", "Split", "Max", "Min",
)  # fmt: skip
_NAMED = {
    keras.activations.sigmoid: "sigmoid",
    keras.activations.tanh: "tanh",
    keras.activations.softmax: "softmax",
    keras.activations.gelu: "gelu",
    keras.activations.elu: "elu",
    keras.activations.exponential: "exponential",
    keras.activations.hard_sigmoid: "hard_sigmoid",
    keras.activations.hard_silu: "hard_silu",
    keras.activations.silu: "silu",
    keras.activations.leaky_relu: "leaky_relu",
}
# Operations of keras.ops, without options or with those that Keras' activations have by default.
_OPERATIONS = {
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Silu": "silu",
    "Exp": "exponential",
    "HardSigmoid": "hard_sigmoid",
    "HardSilu": "hard_silu",
}
_CLIPS = {
    keras.activations.relu: "relu",
    keras.activations.relu6: "relu6",
    keras.activations.hard_tanh: "hard_tanh",
}
# The same of keras.ops.
_CLIPPING_OPERATIONS = {"Relu": "relu", "Relu6": "relu6", "HardTanh": "hard_tanh"}


def function_named(op: Any) -> tuple[str, float]:
    """Return the name of an activation (empty for an unknown one) and its slope."""
    layer: Any = getattr(op, "operation", None)
    if kind_of(layer) == "Softmax":
        return ("softmax" if layer.axis == -1 else ""), 0.0
    if kind_of(layer) in ("LeakyReLU", "LeakyRelu"):
        return "leaky_relu", float(layer.negative_slope)
    if kind_of(layer) in ("ELU", "Elu"):
        return ("elu" if layer.alpha == 1.0 else ""), 0.0
    if type(layer) is kl.ReLU:
        plain = layer.max_value is None and not layer.threshold
        return ("leaky_relu" if plain else ""), float(layer.negative_slope)
    if kind_of(layer) == "Gelu":
        return ("" if layer.approximate else "gelu"), 0.0
    if kind_of(layer) in _OPERATIONS:
        return _OPERATIONS[kind_of(layer)], 0.0
    return _NAMED.get(_function_of(op), ""), 0.2  # Keras' default slope


def _function_of(op: Any) -> Any:
    """Return the function of an activation; None for other operations."""
    layer: Any = getattr(op, "operation", None)
    if type(layer) is kl.Activation:
        return layer.activation
    return op.function if isinstance(op, ActivationOp) else None


def why_none(layer: Any) -> str:
    """Return why a layer has no integer operator, as a clause; empty if it is just not known."""
    kinds = [type(layer), *(type(part) for part in getattr(layer, "_layers", ()))]
    return next((why for kind in kinds for types, why in _NONE if issubclass(kind, types)), "")


_NONE: tuple[tuple[Any, str], ...] = (
    (
        (kl.Conv3D, kl.Conv3DTranspose, kl.MaxPooling3D, kl.AveragePooling3D),
        "TFLite computes convolutions and pools of volumes in floating point only",
    ),
    (
        (kl.RNN, kl.Bidirectional, kl.ConvLSTM1D, kl.ConvLSTM2D, kl.ConvLSTM3D),
        "TFLite's integer LSTM keeps its state in 16 bits and its gates in a form of its own, and "
        "the other recurrent layers have no integer kernel",
    ),
    (
        (kl.LayerNormalization, kl.GroupNormalization, kl.UnitNormalization),
        "its statistics are of each sample, and TFLite has no integer operator for that",
    ),
    (
        (kl.MultiHeadAttention, kl.GroupQueryAttention, kl.Attention, kl.AdditiveAttention),
        "LiteRT has no integer kernel of XNNPACK for products of two activations",
    ),
    ((kl.Embedding,), "its inputs are indices, which are not quantized"),
)


def fusable(op: Any) -> str | None:
    """Return the name of an activation that an operator can end with; None for others.

    See `quantized.ends_of` for the names.
    """
    layer: Any = getattr(op, "operation", None)
    if type(layer) is kl.ReLU:
        if layer.negative_slope or layer.threshold:
            return None
        most = layer.max_value
        return "relu" if most is None else f"relu{most:g}"
    if kind_of(layer) in _CLIPPING_OPERATIONS:
        return _CLIPPING_OPERATIONS[kind_of(layer)]
    return _CLIPS.get(_function_of(op))


def keeps_grid(layer: Any) -> bool:
    """Return whether the output of a layer has the grid of its input."""
    nearest = type(layer) is kl.Resizing and layer.interpolation == "nearest"
    moves = nearest or type(layer) in _MOVES or kind_of(layer) in _MOVING_OPERATIONS
    activation = fusable(Kept(layer, ""))
    return moves or (activation is not None and activation in FUSED)


def resized_to(call: Call, interpolation: str) -> tuple[int, int] | None:
    """Return height and width of the result of a resizing of maps; None for another layer."""
    layer = call.op.operation
    if interpolation == "nearest" and type(layer) in (kl.UpSampling1D, kl.RepeatVector):
        length = call.output.shape[1]
        return None if length is None else (1, length)
    plain = type(layer) is kl.Resizing and not (
        layer.crop_to_aspect_ratio or layer.pad_to_aspect_ratio or layer.antialias
    )
    if not plain and type(layer) is not kl.UpSampling2D:
        return None
    if layer.interpolation != interpolation or layer.data_format == CHANNELS_FIRST:
        return None
    height, width = call.output.shape[1:3]
    return None if height is None or width is None else (height, width)


def constant_of(call: Call) -> Affine | None:
    """Return the affine of an operation with a number; None for any other layer."""
    if kind_of(call.op.operation) == "Negative":
        return Affine(np.array([-1.0]), np.zeros(1), -1)
    try:
        return read_constant(call, scalars=True) if kind_of(call.op.operation) else None
    except NotAffineError:
        return None


def axes_of(axis: Any, rank: int) -> tuple[int, ...]:
    """Return the axes of a reduction, all of them for None, in order and counted from 0."""
    chosen = range(rank) if axis is None else np.atleast_1d(axis)
    return tuple(sorted(int(one) % rank for one in chosen))


def only_8_bits(op: Any) -> bool:
    """Return whether TFLite's converter cannot write a layer with 16-bit activations."""
    layers = kind_of(getattr(op, "operation", None)) in ("Concatenate", "PReLU")
    return layers or function_named(op)[0] in ("softmax", "gelu", "elu")


def refused(op: Any, why: str = "") -> UserError:
    """Return the error of a layer that has no integer operator, with the reason and a remedy."""
    why = why or why_none(op.layer if isinstance(op, Linear) else getattr(op, "operation", None))
    return UserError(
        f"{_what(op)} has no integer operator here{why and f', since {why}'}. "
        f"{ADVICE.format(name=op.name)}"
    )


def _what(op: Any) -> str:
    if isinstance(op, ActivationOp):
        return f"{op.owner} ends in {getattr(op.function, '__name__', op.function)}, which"
    layer = op.layer if isinstance(op, Linear) else getattr(op, "operation", op)
    return f"{op.name} ({type(layer).__name__})"
