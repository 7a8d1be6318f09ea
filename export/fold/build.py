"""Build a Keras model from a `Graph`, in float32 or float64: each layer once, each weight once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import tree
from numpy.typing import NDArray

from ...errors import UserError
from ...toolkit.channel_affine import ChannelAffine
from .graph import ActivationOp, AffineOp, Call, Graph, Kept, MapOp, Shape, Slot, Source, Value
from .layers import POOLING_3D, BiasMap, Pooling3DTwin, Resampling
from .linear import Linear

_FLOATS = {"float16", "bfloat16", "float32", "float64"}


def build(graph: Graph, dtype: str, watch: Sequence[Value] | None = None) -> keras.Model:
    """Build the network that a graph describes.

    Args:
        graph: The graph; it stays as it is.
        dtype: ``"float32"`` or ``"float64"``: what every floating-point layer computes in.
        watch: Values to return, as a flat list, instead of the network's outputs.

    Returns:
        A functional model whose layers, inputs and outputs have the names of the original's.
    """
    return _Builder(graph, dtype, watch).model()


def response(op: Linear, shape: Shape) -> NDArray[np.float64]:
    """Return what a linear layer without its bias gives for an input of ones, in float64.

    Args:
        op: The layer with what it absorbed.
        shape: The shape of one sample, static.
    """
    config = _in_dtype(op.kind.config(op, activation=False), "float64")
    layer = _from_config(op.layer, config)
    ones = keras.ops.ones((1, *shape), dtype="float64")
    layer.build(ones.shape)
    for variable, array in zip(op.kind.variables(layer), op.kind.arrays(op), strict=True):
        variable.assign(array)
    bias = keras.ops.convert_to_numpy(layer(keras.ops.zeros_like(ones)))
    result: NDArray[np.float64] = keras.ops.convert_to_numpy(layer(ones))[0] - bias[0]
    return result


class _Builder:
    """Builds one model; holds the layers and tensors made so far."""

    def __init__(self, graph: Graph, dtype: str, watch: Sequence[Value] | None) -> None:
        self.graph = graph
        self.dtype = dtype
        self.watch = watch
        self.calls = graph.calls()
        self.fused, self.with_activation = _fused_activations(self.calls, set(watch or ()))
        self.layers: dict[int, Any] = {}
        self.tensors: dict[int, Any] = {}

    def model(self) -> keras.Model:
        for call in self.calls:
            self.call(call)
        inputs = self.packed(
            self.graph.input_structure, [self.tensors[id(v)] for v in self.graph.inputs]
        )
        if self.watch is None:
            outputs = self.packed(self.graph.output_structure, self.named_outputs())
        else:
            outputs = [self.tensors[id(value)] for value in self.watch]
        model = keras.Model(inputs, outputs, name=self.graph.name)
        for call in self.calls:
            self.fill(call)
        return model

    def call(self, call: Call) -> None:
        op = call.op
        inputs = [self.tensors[id(value)] for value in call.inputs]
        if isinstance(op, Source):
            result: Any = self.source(op)
        elif isinstance(op, ActivationOp) and id(call) in self.fused:
            result = inputs[0]
        else:
            layer = self.layer(op)
            if call.args is None:
                result = layer(inputs[0])
            else:
                args, kwargs = tree.map_structure(
                    lambda x: inputs[x.index] if isinstance(x, Slot) else x,
                    (call.args, call.kwargs),
                )
                result = layer(*args, **kwargs)
        for value, tensor in zip(call.outputs, tree.flatten(result), strict=True):
            self.tensors[id(value)] = tensor

    def source(self, op: Source) -> keras.KerasTensor:
        tensor = op.tensor
        return keras.Input(
            batch_shape=tensor.shape,
            dtype=self.dtype if tensor.dtype in _FLOATS else tensor.dtype,
            sparse=tensor.sparse,
            name=op.name,
        )

    def layer(self, op: Any) -> Any:
        """Return the Keras layer of an op, made at its first call."""
        layer = self.layers.get(id(op))
        if layer is None:
            layer = self.layers[id(op)] = _make(op, self)
        return layer

    @staticmethod
    def packed(structure: Any, tensors: list[Any]) -> Any:
        return tree.map_structure(lambda slot: tensors[slot.index], structure)

    def named_outputs(self) -> list[Any]:
        """Return the outputs, each made by a layer of the name its user knows.

        Where the layer that gave an output its name is gone, an Identity keeps the name; it leaves
        nothing in an exported file.
        """
        tensors = []
        made: dict[tuple[int, str], Any] = {}
        taken = {call.name for call in self.calls if id(call) not in self.fused}
        for value, name in zip(self.graph.outputs, self.graph.output_names, strict=True):
            tensor = self.tensors[id(value)]
            call = value.producer
            if id(call) in self.fused:
                call = call.inputs[0].producer
            if call.name != name and name not in taken:
                key = (id(value), name)
                if key not in made:
                    made[key] = keras.layers.Identity(name=name, dtype=self.dtype)(tensor)
                tensor = made[key]
            tensors.append(tensor)
        return tensors

    def calls_of(self, op: Any) -> list[Call]:
        """Return the calls of one op; only for ops that are rare."""
        return [call for call in self.calls if call.op is op]

    def fill(self, call: Call) -> None:
        """Give the layer of a call its weights, once however often it is called."""
        layer = self.layers.pop(id(call.op), None)
        if layer is not None:
            _fill(call.op, layer)


def _fused_activations(calls: list[Call], watched: set[Value]) -> tuple[set[int], set[int]]:
    """Find the activations that go back into their layer, because nothing came between.

    A layer has its activation in all its calls or in none.

    Returns:
        The ids of those activations' calls, and of the ops of their layers.
    """
    by_op: dict[int, list[Call]] = {}
    for call in calls:
        if isinstance(call.op, Linear) and call.op.kind.activation(call.op.layer) is not None:
            by_op.setdefault(id(call.op), []).append(call)
    fused: set[int] = set()
    owners: set[int] = set()
    for op, group in by_op.items():
        after = [None if call.output in watched else _own_activation(call) for call in group]
        if all(after):
            fused.update(id(activation) for activation in after)
            owners.add(op)
    return fused, owners


def _own_activation(call: Call) -> Call | None:
    value = call.output
    if len(value.uses) != 1 or value.is_output:
        return None
    user = value.uses[0][0]
    own = isinstance(user.op, ActivationOp) and user.op.owner == call.op.layer.name
    return user if own else None


@functools.singledispatch
def _make(op: Any, builder: _Builder) -> Any:
    raise TypeError(f"no layer is made of {type(op).__name__}")


@_make.register
def _(op: Kept, builder: _Builder) -> Any:
    layer = op.operation
    if builder.dtype == "float64" and isinstance(layer, keras.layers.UpSampling2D):
        (call, *_) = builder.calls_of(op)
        if layer.interpolation != "nearest" and None not in call.inputs[0].shape[1:]:
            return Resampling(layer, name=op.name, dtype="float64")
    if builder.dtype == "float64" and isinstance(layer, POOLING_3D):
        (call, *_) = builder.calls_of(op)
        if None not in call.inputs[0].shape[1:]:
            return Pooling3DTwin(layer, name=op.name, dtype="float64")
    if type(layer) is keras.layers.Activation:
        # Its function need not be one that a config can carry: a lambda, say.
        return keras.layers.Activation(layer.activation, name=op.name, dtype=builder.dtype)
    if type(layer) is keras.layers.Lambda:
        # The function is in this process already: Keras need not be asked to read code.
        return keras.layers.Lambda(
            layer.function,
            output_shape=layer._output_shape,
            arguments=layer.arguments,
            name=op.name,
            dtype=builder.dtype,
        )
    config = _in_dtype(layer.get_config(), builder.dtype)
    config["name"] = op.name
    return _from_config(op.operation, config)


@_make.register
def _(op: Linear, builder: _Builder) -> Any:
    config = op.kind.config(op, activation=id(op) in builder.with_activation)
    return _from_config(op.layer, _in_dtype(config, builder.dtype))


@_make.register
def _(op: ActivationOp, builder: _Builder) -> Any:
    return keras.layers.Activation(op.function, name=op.name, dtype=builder.dtype)


@_make.register
def _(op: AffineOp, builder: _Builder) -> Any:
    affine = op.affine
    return ChannelAffine(
        axis=affine.axis,
        use_scale=affine.scales,
        use_shift=affine.shifts,
        name=op.name,
        dtype=builder.dtype,
    )


@_make.register
def _(op: MapOp, builder: _Builder) -> Any:
    return BiasMap(name=op.name, dtype=builder.dtype)


def _from_config(operation: Any, config: dict[str, Any]) -> Any:
    try:
        return type(operation).from_config(config)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"The layer {operation.name!r} ({type(operation).__name__}) cannot be rebuilt from its "
            f"config: {error}. Give it a `get_config` that returns every argument of `__init__`."
        ) from error


def _in_dtype(config: Any, dtype: str) -> Any:
    """Return a config in which every floating-point dtype, at any depth, is ``dtype``."""
    if isinstance(config, dict):
        return {
            key: dtype if key == "dtype" and _is_float_policy(item) else _in_dtype(item, dtype)
            for key, item in config.items()
        }
    if isinstance(config, list):
        return [_in_dtype(item, dtype) for item in config]
    return config


def _is_float_policy(policy: Any) -> bool:
    if isinstance(policy, dict):
        policy = policy.get("config", {}).get("name")
    return isinstance(policy, str) and policy.removeprefix("mixed_") in _FLOATS


def _fill(op: Any, layer: Any) -> None:
    if isinstance(op, Linear) and op.touched:
        for variable, array in zip(op.kind.variables(layer), op.kind.arrays(op), strict=True):
            variable.assign(array)
    elif isinstance(op, Linear):
        _copy(op.kind.variables(op.layer), op.kind.variables(layer))
    elif isinstance(op, Kept) and isinstance(op.operation, keras.Layer):
        _copy(op.operation.weights, layer.weights)
        if isinstance(layer, keras.layers.Normalization) and layer.input_mean is None:
            layer.finalize_state()  # it computes with what it derives from its weights
    elif isinstance(op, AffineOp):
        if layer.use_scale:
            layer.scale.assign(op.affine.scale)
        if layer.use_shift:
            layer.shift.assign(op.affine.shift)
    elif isinstance(op, MapOp):
        layer.bias.assign(op.constant)


def _copy(source: list[keras.Variable], target: list[keras.Variable]) -> None:
    for old, new in zip(source, target, strict=True):
        new.assign(np.asarray(keras.ops.convert_to_numpy(old)))
