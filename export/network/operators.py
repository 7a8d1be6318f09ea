"""Converts Keras layers and operations to the operators of `artifacts.network`.

The table `_WRITERS` has one function per layer type. For a layer without an entry, `ops_of` returns
None.
"""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from ..fold.backend import view_of
from ..fold.graph import Call, Slot
from ..fold.keras_graph import kind_of
from ..fold.norms import NotAffineError, is_norm, read_norm
from .linear import ACTIVATIONS, LINEAR, Attributes, Op, Writer, as_added, function_of, ints


def ops_of(operation: Any, call: Call) -> list[Op] | None:
    """Return the operators of a call in order, or None if the layer is unknown.

    Args:
        operation: The Keras layer or operation.
        call: Its call.
    """
    if len({value.dtype for value in call.inputs} - {"float32", "float64"}) > 0:
        return None
    kinds: tuple[Any, ...] = type(operation).__mro__
    for cls in kinds:
        if cls in _WRITERS:
            if type(operation).call is not cls.call:
                return None
            return _WRITERS[cls](operation, call)
    if isinstance(operation, keras.Layer):
        return _affine(operation, call)
    return _operation(operation, call)


def _relu(layer: kl.ReLU, call: Call) -> list[Op]:
    attributes: Attributes = {
        "negative_slope": float(layer.negative_slope),
        "threshold": float(layer.threshold),
    }
    if layer.max_value is not None:
        attributes["max_value"] = float(layer.max_value)
    return [Op("relu", attributes)]


def _activation(layer: kl.Activation, call: Call) -> list[Op] | None:
    function = function_of(layer.activation)
    return None if function is None else [function]


def _pool(op: str, layer: Any, call: Call) -> list[Op]:
    attributes = {
        "pool_size": ints(layer.pool_size),
        "strides": ints(layer.strides),
        "padding": layer.padding,
        "dilation": [1] * len(layer.pool_size),
        "data_format": layer.data_format,
    }
    return [Op(op, attributes)]


def _global_pool(op: str, layer: Any, call: Call) -> list[Op]:
    return [Op(op, {"data_format": layer.data_format, "keepdims": bool(layer.keepdims)})]


def _plain(op: str, layer: Any, call: Call) -> list[Op] | None:
    # Keras inserts the missing axes of a tensor of lower rank after the batch axis.
    return [Op(op)] if len({value.rank for value in call.inputs}) == 1 else None


def _reshape(layer: kl.Reshape, call: Call) -> list[Op] | None:
    shape = call.output.shape[1:]
    return None if None in shape else [Op("reshape", {"target_shape": ints(shape)})]


def _padding(layer: Any, call: Call) -> list[Op]:
    amounts = layer.padding
    pairs = [amounts] if isinstance(amounts[0], int) else amounts
    data_format = getattr(layer, "data_format", "channels_last")
    return [Op("pad", {"padding": [ints(p) for p in pairs], "data_format": data_format})]


def _cropping(layer: Any, call: Call) -> list[Op]:
    amounts = layer.cropping
    pairs = [amounts] if isinstance(amounts[0], int) else amounts
    data_format = getattr(layer, "data_format", "channels_last")
    return [Op("crop", {"cropping": [ints(p) for p in pairs], "data_format": data_format})]


def _upsampling(layer: Any, call: Call) -> list[Op] | None:
    kind = getattr(layer, "interpolation", "nearest")
    if kind not in ("nearest", "bilinear"):
        return None
    size = [layer.size] if isinstance(layer.size, int) else layer.size
    data_format = getattr(layer, "data_format", "channels_last")
    attributes = {"size": ints(size), "data_format": data_format}
    return [Op(f"upsample_{kind}", attributes)]


def _affine(layer: Any, call: Call) -> list[Op] | None:
    """Return the affine of a norm, or of a layer that the user registered as one."""
    if not is_norm(layer):
        return None
    try:
        affine = read_norm(call)
    except NotAffineError:
        return None
    weights = {"scale": np.array(affine.scale), "shift": np.array(affine.shift)}
    return [Op("affine", {"axis": int(affine.axis)}, weights)]


_WRITERS: dict[type, Writer] = {
    **LINEAR,
    kl.Activation: _activation,
    kl.ReLU: _relu,
    kl.LeakyReLU: lambda layer, call: [
        Op("leaky_relu", {"negative_slope": float(layer.negative_slope)})
    ],
    kl.ELU: lambda layer, call: [Op("elu", {"alpha": float(layer.alpha)})],
    kl.PReLU: lambda layer, call: [Op("prelu", {}, {"alpha": view_of(layer.alpha)})],
    kl.Softmax: lambda layer, call: (
        [Op("softmax", {"axis": int(layer.axis)})] if isinstance(layer.axis, int) else None
    ),
    **{
        layer: functools.partial(_plain, op)
        for layer, op in (
            (kl.Add, "add"),
            (kl.Subtract, "subtract"),
            (kl.Multiply, "multiply"),
            (kl.Average, "average"),
            (kl.Maximum, "maximum"),
            (kl.Minimum, "minimum"),
            (kl.Dropout, "identity"),
            (kl.SpatialDropout1D, "identity"),
            (kl.SpatialDropout2D, "identity"),
            (kl.SpatialDropout3D, "identity"),
            (kl.AlphaDropout, "identity"),
            (kl.GaussianDropout, "identity"),
            (kl.GaussianNoise, "identity"),
            (kl.ActivityRegularization, "identity"),
            (kl.Identity, "identity"),
        )
    },
    kl.Concatenate: lambda layer, call: [Op("concatenate", {"axis": int(layer.axis)})],
    **dict.fromkeys(
        (kl.AveragePooling1D, kl.AveragePooling2D, kl.AveragePooling3D),
        functools.partial(_pool, "average_pool"),
    ),
    **dict.fromkeys(
        (kl.MaxPooling1D, kl.MaxPooling2D, kl.MaxPooling3D), functools.partial(_pool, "max_pool")
    ),
    **dict.fromkeys(
        (kl.GlobalAveragePooling1D, kl.GlobalAveragePooling2D, kl.GlobalAveragePooling3D),
        functools.partial(_global_pool, "global_average_pool"),
    ),
    **dict.fromkeys(
        (kl.GlobalMaxPooling1D, kl.GlobalMaxPooling2D, kl.GlobalMaxPooling3D),
        functools.partial(_global_pool, "global_max_pool"),
    ),
    kl.Flatten: lambda layer, call: [Op("flatten", {"data_format": layer.data_format})],
    kl.Reshape: _reshape,
    kl.Permute: lambda layer, call: [Op("permute", {"axes": [0, *ints(layer.dims)]})],
    kl.RepeatVector: lambda layer, call: [Op("repeat", {"times": int(layer.n)})],
    **dict.fromkeys((kl.ZeroPadding1D, kl.ZeroPadding2D, kl.ZeroPadding3D), _padding),
    **dict.fromkeys((kl.Cropping1D, kl.Cropping2D, kl.Cropping3D), _cropping),
    **dict.fromkeys((kl.UpSampling1D, kl.UpSampling2D, kl.UpSampling3D), _upsampling),
}

# Operations of keras.ops by class name: they have no public classes.
_BINARY = {
    "Add": "add",
    "Subtract": "subtract",
    "Multiply": "multiply",
    "Maximum": "maximum",
    "Minimum": "minimum",
}
_UNARY = {"Relu": "relu", "Relu6": "relu6", "Sigmoid": "sigmoid", "Tanh": "tanh", "Silu": "silu"}


def _operation(operation: Any, call: Call) -> list[Op] | None:
    """Return the operator of a keras.ops operation on two operands, or one and a constant."""
    kind = kind_of(operation)
    if kind in _UNARY and call.args is None:
        return [ACTIVATIONS[_UNARY[kind]]]
    if kind not in _BINARY or call.args is None or call.kwargs:
        return None
    if len(call.args) != 2:
        return None
    constants = [arg for arg in call.args if not isinstance(arg, Slot)]
    if not constants:
        return [Op(_BINARY[kind])]
    constant = np.asarray(keras.ops.convert_to_numpy(constants[0]), np.float64)
    first = not isinstance(call.args[0], Slot)
    if kind == "Add" and not first:
        constant = as_added(constant, call.inputs[0].shape)
    finite = constant[np.isfinite(constant)]
    error = float(np.abs(finite.astype(np.float32) - finite).max(initial=0.0))
    attributes = {"constant_first": first, **({"constant_error": error} if error else {})}
    return [Op(_BINARY[kind], attributes, {"constant": constant})]
