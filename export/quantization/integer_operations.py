"""Recognizes activations, and layers that keep the grid of their input, in integer networks."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from ..fold.graph import ActivationOp, Kept
from ..fold.keras_graph import kind_of

# Layers that only move or select integers, so that their output has the grid of their input.
_MOVES = (
    kl.MaxPooling1D,
    kl.MaxPooling2D,
    kl.GlobalMaxPooling1D,
    kl.GlobalMaxPooling2D,
    kl.Flatten,
    kl.Reshape,
    kl.Permute,
    kl.RepeatVector,
    kl.ZeroPadding1D,
    kl.ZeroPadding2D,
    kl.Cropping1D,
    kl.Cropping2D,
    kl.UpSampling1D,
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
_NAMED = {
    keras.activations.sigmoid: "sigmoid",
    keras.activations.tanh: "tanh",
    keras.activations.softmax: "softmax",
    keras.activations.gelu: "gelu",
    keras.activations.silu: "silu",
    keras.activations.leaky_relu: "leaky_relu",
}


def function_named(op: Any) -> tuple[str, float]:
    """Return the name of an activation (empty for an unknown one) and its slope."""
    layer: Any = getattr(op, "operation", None)
    if isinstance(layer, kl.Softmax):
        return ("softmax" if layer.axis == -1 else ""), 0.0
    if isinstance(layer, kl.LeakyReLU):
        return "leaky_relu", float(layer.negative_slope)
    if type(layer) is kl.ReLU:
        plain = layer.max_value is None and not layer.threshold
        return ("leaky_relu" if plain else ""), float(layer.negative_slope)
    function = op.function if isinstance(op, ActivationOp) else None
    if type(layer) is kl.Activation:
        function = layer.activation
    elif kind_of(layer) in ("Sigmoid", "Tanh", "Silu"):
        return kind_of(layer).lower(), 0.0
    return _NAMED.get(function, ""), 0.2  # Keras' default slope


def fusable(op: Any) -> str | None:
    """Return the name of an activation that can be fused into an operator; None for others."""
    function = None
    if isinstance(op, ActivationOp):
        function = op.function
    elif isinstance(op, Kept):
        layer = op.operation
        if type(layer) is kl.ReLU:
            plain = not layer.negative_slope and not layer.threshold
            names = {None: "relu", 6.0: "relu6"}
            return names.get(layer.max_value) if plain else None
        if type(layer) is kl.Activation:
            function = layer.activation
        elif kind_of(layer) in ("Relu", "Relu6"):
            return kind_of(layer).lower()
    return {keras.activations.relu: "relu", keras.activations.relu6: "relu6"}.get(function)


def keeps_grid(layer: Any) -> bool:
    """Return whether the output of a layer has the grid of its input."""
    nearest = type(layer) is kl.UpSampling2D and layer.interpolation == "nearest"
    return nearest or type(layer) in _MOVES or fusable(Kept(layer, "")) is not None
