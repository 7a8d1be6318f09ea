"""Writes the folded network as operations and weights, for checks that have no Keras.

Each Keras call becomes one node, or two where the layer has an activation of its own. The format is
`runtime_checks.network`'s; this file only fills it. A layer without an entry in `_WRITERS` becomes
an "opaque" node: the export goes through, and the checks report that op as not checkable by itself.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from ..files import write_bytes
from ..runtime_checks.network import Network, Node, network_arrays
from .fold.graph import Call, Slot, Source, Value
from .fold.keras_graph import kind_of, read_graph
from .fold.norms import NotAffineError, is_norm, read_norm

Attributes = dict[str, Any]
Weights = dict[str, np.ndarray]


def write_network(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> Network:
    """Write `network.npz`.

    Args:
        model: The folded model.
        path: Where to write; the file appears whole or not at all.
        inputs: Names of the trained model's inputs; by default those of ``model``.
        outputs: Names of the trained model's outputs; folding may have replaced the layers that
            gave them.

    Returns:
        What was written.
    """
    network = build_network(model)
    network = network.named(inputs or list(network.inputs), outputs or list(network.outputs))
    buffer = io.BytesIO()
    arrays: dict[str, Any] = network_arrays(network)
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())
    return network


def build_network(model: keras.Model) -> Network:
    """Return a Keras model as a `Network`.

    Args:
        model: Any model that `fold` reads.

    Returns:
        The network; its weights have the model's own types.
    """
    graph = read_graph(model)
    writer = _Writer()
    calls = graph.calls()
    inputs = {}
    for value in graph.inputs:
        name = value.producer.name
        writer.names[id(value)] = name
        inputs[name] = tuple(value.shape)
    for call in calls:
        if not isinstance(call.op, Source):
            writer.write(call)
    outputs = {
        name: writer.names[id(value)]
        for name, value in zip(graph.output_names, graph.outputs, strict=True)
    }
    return Network(inputs, outputs, tuple(writer.nodes))


@dataclasses.dataclass(frozen=True)
class _Op:
    """What one call computes, before its activation."""

    op: str
    attributes: Attributes = dataclasses.field(default_factory=dict)
    weights: Weights = dataclasses.field(default_factory=dict)


Writer = Callable[[Any, Call], "list[_Op] | None"]


class _Writer:
    """Collects nodes and gives each value its name."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.names: dict[int, str] = {}
        self._taken: set[str] = set()

    def write(self, call: Call) -> None:
        """Append the nodes of one call."""
        operation = call.op.operation
        ops = _ops_of(operation, call) if len(call.outputs) == 1 else None
        inputs = tuple(self.names[id(value)] for value in call.inputs)
        if ops is None:
            for position, value in enumerate(call.outputs):
                suffix = f"/{position}" if len(call.outputs) > 1 else ""
                self._append(call, value, _Op("opaque"), inputs, suffix)
            return
        for position, op in enumerate(ops):
            last = position == len(ops) - 1
            suffix = "" if last else f"/{op.op}"
            inputs = (self._append(call, call.output, op, inputs, suffix),)

    def _append(
        self, call: Call, value: Value, op: _Op, inputs: tuple[str, ...], suffix: str
    ) -> str:
        """Append one node; its value is the call's own only where no suffix says otherwise."""
        name = base = f"{call.name}{suffix}"
        number = 1
        while name in self._taken:
            number += 1
            name = f"{base}#{number}"
        self._taken.add(name)
        # The parts of a separable convolution differ in channels, so only the last has the shape.
        shape = tuple(value.shape) if not suffix or suffix[1:].isdigit() else ()
        self.nodes.append(Node(name, op.op, call.name, inputs, shape, op.attributes, op.weights))
        self.names[id(value)] = name
        return name


def _ops_of(operation: Any, call: Call) -> list[_Op] | None:
    """Return what a call computes, or None when only Keras can say."""
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


def _array(variable: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable))


def _kernel(layer: Any) -> Weights:
    weights = {"kernel": _array(layer.kernel)}
    if layer.use_bias:
        weights["bias"] = _array(layer.bias)
    return weights


def _framing(layer: Any) -> Attributes:
    return {
        "strides": _ints(layer.strides),
        "padding": layer.padding,
        "dilation": _ints(layer.dilation_rate),
        "data_format": layer.data_format,
    }


def _ints(values: Any) -> list[int]:
    return [int(value) for value in values]


def _activated(op: _Op, activation: Callable[..., Any]) -> list[_Op] | None:
    """Return an op with the activation function of its layer after it."""
    function = _function(activation)
    if function is None:
        return None
    return [op] if function.op == "linear" else [op, function]


# Keras' activation functions to operators; the attributes are the functions' defaults.
_ACTIVATIONS: dict[str, _Op] = {
    "linear": _Op("linear"),
    "relu": _Op("relu"),
    "relu6": _Op("relu", {"max_value": 6.0}),
    "leaky_relu": _Op("leaky_relu", {"negative_slope": 0.2}),
    "elu": _Op("elu", {"alpha": 1.0}),
    "selu": _Op("selu"),
    "gelu": _Op("gelu", {"approximate": False}),
    "silu": _Op("silu"),
    "swish": _Op("silu"),
    "sigmoid": _Op("sigmoid"),
    "tanh": _Op("tanh"),
    "hard_sigmoid": _Op("hard_sigmoid"),
    "hard_silu": _Op("hard_silu"),
    "hard_swish": _Op("hard_silu"),
    "softplus": _Op("softplus"),
    "softsign": _Op("softsign"),
    "mish": _Op("mish"),
    "softmax": _Op("softmax", {"axis": -1}),
    "log_softmax": _Op("log_softmax", {"axis": -1}),
}


def _function(activation: Callable[..., Any]) -> _Op | None:
    """Return the operator of an activation function, None for one of the user's own."""
    name = getattr(activation, "__name__", "")
    known = getattr(keras.activations, name, None) is activation
    return _ACTIVATIONS.get(name) if known else None


def _conv(layer: Any, call: Call) -> list[_Op] | None:
    attributes = {**_framing(layer), "groups": int(layer.groups)}
    return _activated(_Op("conv", attributes, _kernel(layer)), layer.activation)


def _depthwise(layer: Any, call: Call) -> list[_Op] | None:
    return _activated(_Op("depthwise_conv", _framing(layer), _kernel(layer)), layer.activation)


def _separable(layer: Any, call: Call) -> list[_Op] | None:
    depth = _Op("depthwise_conv", _framing(layer), {"kernel": _array(layer.depthwise_kernel)})
    ones = [1] * layer.rank
    attributes = {
        "strides": ones,
        "padding": "valid",
        "dilation": ones,
        "groups": 1,
        "data_format": layer.data_format,
    }
    weights = {"kernel": _array(layer.pointwise_kernel)}
    if layer.use_bias:
        weights["bias"] = _array(layer.bias)
    rest = _activated(_Op("conv", attributes, weights), layer.activation)
    return None if rest is None else [depth, *rest]


def _transposed(layer: Any, call: Call) -> list[_Op] | None:
    shape = call.output.shape
    first = layer.data_format == "channels_first"
    sizes = shape[2:] if first else shape[1:-1]
    if None in sizes:
        return None
    attributes = {**_framing(layer), "output_sizes": _ints(sizes)}
    return _activated(_Op("conv_transpose", attributes, _kernel(layer)), layer.activation)


def _dense(layer: Any, call: Call) -> list[_Op] | None:
    return _activated(_Op("dense", {}, _kernel(layer)), layer.activation)


def _einsum(layer: Any, call: Call) -> list[_Op] | None:
    weights = {"kernel": _array(layer.kernel)}
    if layer.bias is not None:
        weights["bias"] = _array(layer.bias)
    return _activated(_Op("einsum", {"equation": layer.equation}, weights), layer.activation)


def _time_distributed(layer: Any, call: Call) -> list[_Op] | None:
    inner = layer.layer
    writer = next((_WRITERS[c] for c in type(inner).__mro__ if c in _WRITERS), None)
    ops = writer(inner, call) if writer in (_conv, _depthwise, _dense) else None
    if ops is None:
        return None
    first, *rest = ops
    merged = dataclasses.replace(first, attributes={**first.attributes, "time_distributed": True})
    return [merged, *rest]


def _relu(layer: kl.ReLU, call: Call) -> list[_Op]:
    attributes: Attributes = {
        "negative_slope": float(layer.negative_slope),
        "threshold": float(layer.threshold),
    }
    if layer.max_value is not None:
        attributes["max_value"] = float(layer.max_value)
    return [_Op("relu", attributes)]


def _activation(layer: kl.Activation, call: Call) -> list[_Op] | None:
    function = _function(layer.activation)
    return None if function is None else [function]


def _pool(op: str, layer: Any, call: Call) -> list[_Op]:
    attributes = {
        "pool_size": _ints(layer.pool_size),
        "strides": _ints(layer.strides),
        "padding": layer.padding,
        "dilation": [1] * len(layer.pool_size),
        "data_format": layer.data_format,
    }
    return [_Op(op, attributes)]


def _global_pool(op: str, layer: Any, call: Call) -> list[_Op]:
    return [_Op(op, {"data_format": layer.data_format, "keepdims": bool(layer.keepdims)})]


def _plain(op: str, layer: Any, call: Call) -> list[_Op]:
    return [_Op(op)]


def _reshape(layer: kl.Reshape, call: Call) -> list[_Op] | None:
    shape = call.output.shape[1:]
    return None if None in shape else [_Op("reshape", {"target_shape": _ints(shape)})]


def _padding(layer: Any, call: Call) -> list[_Op]:
    amounts = layer.padding
    pairs = [amounts] if isinstance(amounts[0], int) else amounts
    data_format = getattr(layer, "data_format", "channels_last")
    return [_Op("pad", {"padding": [_ints(p) for p in pairs], "data_format": data_format})]


def _cropping(layer: Any, call: Call) -> list[_Op]:
    amounts = layer.cropping
    pairs = [amounts] if isinstance(amounts[0], int) else amounts
    data_format = getattr(layer, "data_format", "channels_last")
    return [_Op("crop", {"cropping": [_ints(p) for p in pairs], "data_format": data_format})]


def _upsampling(layer: Any, call: Call) -> list[_Op] | None:
    kind = getattr(layer, "interpolation", "nearest")
    if kind not in ("nearest", "bilinear"):
        return None
    size = [layer.size] if isinstance(layer.size, int) else layer.size
    data_format = getattr(layer, "data_format", "channels_last")
    attributes = {"size": _ints(size), "data_format": data_format}
    return [_Op(f"upsample_{kind}", attributes)]


def _affine(layer: Any, call: Call) -> list[_Op] | None:
    """Return a norm, or any layer the user registered as one, as its affine."""
    if not is_norm(layer):
        return None
    try:
        affine = read_norm(call)
    except NotAffineError:
        return None
    weights = {"scale": np.array(affine.scale), "shift": np.array(affine.shift)}
    return [_Op("affine", {"axis": int(affine.axis)}, weights)]


_WRITERS: dict[type, Writer] = {
    **dict.fromkeys((kl.Conv1D, kl.Conv2D, kl.Conv3D), _conv),
    **dict.fromkeys((kl.DepthwiseConv1D, kl.DepthwiseConv2D), _depthwise),
    **dict.fromkeys((kl.SeparableConv1D, kl.SeparableConv2D), _separable),
    **dict.fromkeys((kl.Conv1DTranspose, kl.Conv2DTranspose, kl.Conv3DTranspose), _transposed),
    kl.Dense: _dense,
    kl.EinsumDense: _einsum,
    kl.TimeDistributed: _time_distributed,
    kl.Activation: _activation,
    kl.ReLU: _relu,
    kl.LeakyReLU: lambda layer, call: [
        _Op("leaky_relu", {"negative_slope": float(layer.negative_slope)})
    ],
    kl.ELU: lambda layer, call: [_Op("elu", {"alpha": float(layer.alpha)})],
    kl.PReLU: lambda layer, call: [_Op("prelu", {}, {"alpha": _array(layer.alpha)})],
    kl.Softmax: lambda layer, call: (
        [_Op("softmax", {"axis": int(layer.axis)})] if isinstance(layer.axis, int) else None
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
    kl.Concatenate: lambda layer, call: [_Op("concatenate", {"axis": int(layer.axis)})],
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
    kl.Flatten: lambda layer, call: [_Op("flatten", {"data_format": layer.data_format})],
    kl.Reshape: _reshape,
    kl.Permute: lambda layer, call: [_Op("permute", {"axes": [0, *_ints(layer.dims)]})],
    kl.RepeatVector: lambda layer, call: [_Op("repeat", {"times": int(layer.n)})],
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


def _operation(operation: Any, call: Call) -> list[_Op] | None:
    """Return one of keras.ops' operations: two operands, or one and a constant."""
    kind = kind_of(operation)
    if kind in _UNARY and call.args is None:
        return [_ACTIVATIONS[_UNARY[kind]]]
    if kind not in _BINARY or call.args is None or call.kwargs:
        return None
    if len(call.args) != 2:
        return None
    constants = [arg for arg in call.args if not isinstance(arg, Slot)]
    if not constants:
        return [_Op(_BINARY[kind])]
    constant = np.asarray(keras.ops.convert_to_numpy(constants[0]), np.float64)
    first = not isinstance(call.args[0], Slot)
    return [_Op(_BINARY[kind], {"constant_first": first}, {"constant": constant})]
