"""Converts layers with a kernel, with their own activation function, to operators."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from ..equations import is_dense
from ..fold.backend import bias_axis, view_of
from ..fold.graph import Call

Attributes = dict[str, Any]
Weights = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Op:
    """One operator of a call, before its activation."""

    op: str
    attributes: Attributes = dataclasses.field(default_factory=dict)
    weights: Weights = dataclasses.field(default_factory=dict)


Writer = Callable[[Any, Call], "list[Op] | None"]


def _kernel(layer: Any) -> Weights:
    weights = {"kernel": view_of(layer.kernel)}
    if layer.use_bias:
        weights["bias"] = view_of(layer.bias)
    return weights


def _framing(layer: Any) -> Attributes:
    return {
        "strides": ints(layer.strides),
        "padding": layer.padding,
        "dilation": ints(layer.dilation_rate),
        "data_format": layer.data_format,
    }


def ints(values: Any) -> list[int]:
    """Return sizes as plain numbers."""
    return [int(value) for value in values]


def _activated(op: Op, activation: Callable[..., Any]) -> list[Op] | None:
    """Return an op followed by the activation function of its layer."""
    function = function_of(activation)
    if function is None:
        return None
    return [op] if function.op == "linear" else [op, function]


# Keras' activation functions to operators; the attributes are the functions' defaults.
ACTIVATIONS: dict[str, Op] = {
    "linear": Op("linear"),
    "relu": Op("relu"),
    "relu6": Op("relu", {"max_value": 6.0}),
    "leaky_relu": Op("leaky_relu", {"negative_slope": 0.2}),
    "elu": Op("elu", {"alpha": 1.0}),
    "selu": Op("selu"),
    "gelu": Op("gelu", {"approximate": False}),
    "silu": Op("silu"),
    "swish": Op("silu"),
    "sigmoid": Op("sigmoid"),
    "tanh": Op("tanh"),
    "hard_sigmoid": Op("hard_sigmoid"),
    "hard_silu": Op("hard_silu"),
    "hard_swish": Op("hard_silu"),
    "softplus": Op("softplus"),
    "softsign": Op("softsign"),
    "mish": Op("mish"),
    "softmax": Op("softmax", {"axis": -1}),
    "log_softmax": Op("log_softmax", {"axis": -1}),
}


def function_of(activation: Callable[..., Any]) -> Op | None:
    """Return the operator of an activation function; None for a custom function."""
    name = getattr(activation, "__name__", "")
    known = getattr(keras.activations, name, None) is activation
    return ACTIVATIONS.get(name) if known else None


def _conv(layer: Any, call: Call) -> list[Op] | None:
    attributes = {**_framing(layer), "groups": int(layer.groups)}
    return _activated(Op("conv", attributes, _kernel(layer)), layer.activation)


def _depthwise(layer: Any, call: Call) -> list[Op] | None:
    return _activated(Op("depthwise_conv", _framing(layer), _kernel(layer)), layer.activation)


def _separable(layer: Any, call: Call) -> list[Op] | None:
    depth = Op("depthwise_conv", _framing(layer), {"kernel": view_of(layer.depthwise_kernel)})
    ones = [1] * layer.rank
    attributes = {
        "strides": ones,
        "padding": "valid",
        "dilation": ones,
        "groups": 1,
        "data_format": layer.data_format,
    }
    weights = {"kernel": view_of(layer.pointwise_kernel)}
    if layer.use_bias:
        weights["bias"] = view_of(layer.bias)
    rest = _activated(Op("conv", attributes, weights), layer.activation)
    return None if rest is None else [depth, *rest]


def _transposed(layer: Any, call: Call) -> list[Op] | None:
    shape = call.output.shape
    first = layer.data_format == "channels_first"
    sizes = shape[2:] if first else shape[1:-1]
    if None in sizes:
        return None
    attributes = {**_framing(layer), "output_sizes": ints(sizes)}
    return _activated(Op("conv_transpose", attributes, _kernel(layer)), layer.activation)


def _dense(layer: Any, call: Call) -> list[Op] | None:
    return _activated(Op("dense", {}, _kernel(layer)), layer.activation)


def _einsum(layer: Any, call: Call) -> list[Op] | None:
    weights = {"kernel": view_of(layer.kernel)}
    if layer.bias is not None:
        weights["bias"] = as_added(view_of(layer.bias), call.output.shape)
    if is_dense(layer.equation) and weights.get("bias", np.zeros(1)).ndim == 1:
        return _activated(Op("dense", {}, weights), layer.activation)
    return _activated(Op("einsum", {"equation": layer.equation}, weights), layer.activation)


def as_added(bias: np.ndarray, shape: Sequence[int | None]) -> np.ndarray:
    """Return a bias in the shape in which Keras adds it to a value of a shape."""
    axis = bias_axis(shape, bias.size) if bias.size == max(bias.shape, default=1) else None
    return bias if axis is None else bias.reshape(bias.size, *[1] * (-1 - axis))


def _time_distributed(layer: Any, call: Call) -> list[Op] | None:
    inner = layer.layer
    writer = next((LINEAR[c] for c in type(inner).__mro__ if c in LINEAR), None)
    ops = writer(inner, call) if writer in (_conv, _depthwise, _dense) else None
    if ops is None:
        return None
    first, *rest = ops
    merged = dataclasses.replace(first, attributes={**first.attributes, "time_distributed": True})
    return [merged, *rest]


# Layers with a kernel, and the functions that convert them.
LINEAR: dict[type, Writer] = {
    **dict.fromkeys((kl.Conv1D, kl.Conv2D, kl.Conv3D), _conv),
    **dict.fromkeys((kl.DepthwiseConv1D, kl.DepthwiseConv2D), _depthwise),
    **dict.fromkeys((kl.SeparableConv1D, kl.SeparableConv2D), _separable),
    **dict.fromkeys((kl.Conv1DTranspose, kl.Conv2DTranspose, kl.Conv3DTranspose), _transposed),
    kl.Dense: _dense,
    kl.EinsumDense: _einsum,
    kl.TimeDistributed: _time_distributed,
}
