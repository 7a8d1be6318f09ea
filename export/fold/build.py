"""Builds a Keras model from a `Graph`, in float32 or float64."""

from __future__ import annotations

import functools
from collections.abc import Container, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree
from numpy.typing import NDArray

from ...toolkit.bias_map import BiasMap
from ...toolkit.channel_affine import ChannelAffine
from .float64_layers import ChannelsLast, OwnPrecision, channels_last, replacement
from .graph import (
    ActivationOp,
    AffineOp,
    Call,
    Function,
    Graph,
    Kept,
    MapOp,
    Source,
    Value,
)
from .keras_graph import kind_of
from .linear import Linear
from .rebuild import (
    copy_state,
    copy_weights,
    from_config,
    in_dtype,
    is_float,
    remake,
    uninitialized,
)
from .weight_files import assign


def build(graph: Graph, dtype: str, watch: Sequence[Value] = ()) -> keras.Model:
    """Build the network that a graph describes.

    Args:
        graph: The graph; not changed.
        dtype: ``"float32"`` or ``"float64"``: the dtype of every floating-point layer.
        watch: Values to return, as a flat list, instead of the network's outputs.

    Returns:
        A functional model whose layers, inputs and outputs have the original names.

    Raises:
        UserError: A layer cannot be rebuilt from its config.
    """
    calls = graph.calls()
    builder = _Builder(graph, dtype, calls, *_fused_activations(calls, set(watch)))
    builder.build()
    return builder.model(watch)


def build_layers(graph: Graph, given: Container[int] = ()) -> Iterator[tuple[Call, Any]]:
    """Build the layers of a network in float64, with every activation as a separate layer.

    A layer is built at its first call and freed after its last one.

    Args:
        graph: The graph; not changed.
        given: Numbers of the calls that need no layer, because their outputs are known.

    Yields:
        Every call with its layer, producers first; the layer is None if the call needs none, such
        as an input.
    """
    calls = graph.calls()
    last = {id(call.op): call for call in calls}
    builder = _Builder(graph, "float64", calls, set(), {})
    for call in calls:
        yield call, builder.layer(call, given)
        if last[id(call.op)] is call:
            builder.free(call.op)


def response(op: Linear, sample: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the output of a linear layer without its bias for one sample, in float64.

    Args:
        op: The layer with the affines that it absorbed.
        sample: The sample, without a batch axis.
    """
    layer = _linear(op, op.name, "float64", None)
    given = keras.ops.convert_to_tensor(sample[None], dtype="float64")
    layer.build(tuple(given.shape))
    _fill(op, layer)
    bias = keras.ops.convert_to_numpy(layer(keras.ops.zeros_like(given)))
    result: NDArray[np.float64] = keras.ops.convert_to_numpy(layer(given))[0] - bias[0]
    return result


class _Builder:
    """Builds the layers of one network; holds the layers and symbolic tensors built so far."""

    def __init__(
        self,
        graph: Graph,
        dtype: str,
        calls: list[Call],
        fused: set[int],
        functions: dict[int, Function],
    ) -> None:
        self.graph = graph
        self.dtype = dtype
        self.calls = calls
        self.fused = fused
        self.functions = functions
        self.names = _names(graph, calls, fused)
        self.layers: dict[int, Any] = {}
        self.tensors: dict[int, Any] = {}
        self.filled: set[int] = set()

    def build(self) -> None:
        """Create every layer, call it on symbolic tensors and set its weights."""
        for call in self.calls:
            self.layer(call)

    def layer(self, call: Call, given: Container[int] = ()) -> Any:
        """Return the layer of a call with its weights, None if it needs none.

        Args:
            call: A call whose producers have been built.
            given: Numbers of the calls that need no layer.
        """
        if call.number in given:
            result: Any = [keras.KerasTensor(v.shape, self.dtype_of(v)) for v in call.outputs]
        else:
            result = self.call(call)
        for value, tensor in zip(call.outputs, tree.flatten(result), strict=True):
            self.tensors[id(value)] = tensor
        layer = self.layers.get(id(call.op))
        if layer is not None and id(call.op) not in self.filled:
            self.filled.add(id(call.op))
            _fill(call.op, layer)
        return layer

    def free(self, op: Any) -> None:
        """Free the weights of a layer that is not used any more.

        Layers refer to themselves, so Python would free them at some later time. A layer of the
        user may share its variables with the original.
        """
        layer, original = self.layers.get(id(op)), getattr(op, "layer", None)
        original = getattr(op, "operation", original)
        if not isinstance(layer, keras.Layer) or not kind_of(original):
            return
        shared = {id(variable) for variable in getattr(original, "variables", ())}
        for variable in layer.variables:
            if id(variable) not in shared:
                variable._value = None

    def model(self, watch: Sequence[Value]) -> keras.Model:
        """Return the network as a model that returns its outputs, or the values to watch."""
        inputs = self.packed(
            self.graph.input_structure, [self.tensors[id(v)] for v in self.graph.inputs]
        )
        if watch:
            outputs = [self.tensors[id(value)] for value in watch]
        else:
            outputs = self.packed(self.graph.output_structure, self.named_outputs())
        return keras.Model(inputs, outputs, name=self.graph.name)

    def call(self, call: Call) -> Any:
        """Return the symbolic outputs of a call."""
        op = call.op
        inputs = [self.tensors[id(value)] for value in call.inputs]
        if isinstance(op, Source):
            return self.source(op)
        if isinstance(op, ActivationOp) and id(call) in self.fused:
            return inputs[0]
        args, kwargs = arguments_in(self.dtype, call, inputs)
        if id(op) in self.layers:
            return self.layers[id(op)](*args, **kwargs)
        layer = self.layers[id(op)] = _make(op, self)
        result = None
        try:
            result = layer(*args, **kwargs)
            if self.dtype == "float64" and _declares_its_shape(op):
                keras.Operation.compute_output_spec(layer, *args, **kwargs)  # runs its code
            return result
        except Exception:  # whatever the user's own code raises
            if self.dtype != "float64" or not isinstance(op, Kept):
                raise
        # The layer contains something in float32 that is not converted, such as a constant.
        own = own_precision(op)
        try:
            other = own(*args, **kwargs)
        except Exception:
            if result is None:
                raise
            return result  # it cannot be run at all, which its first use reports
        self.layers[id(op)] = own
        return other

    def source(self, op: Source) -> keras.KerasTensor:
        """Return a symbolic input."""
        tensor = op.tensor
        return keras.Input(
            batch_shape=tensor.shape,
            dtype=self.dtype_of(tensor),
            sparse=tensor.sparse,
            name=op.name,
        )

    def dtype_of(self, value: Any) -> str:
        """Return the dtype of a value of the original network in the model that is built."""
        return self.dtype if is_float(value.dtype) else value.dtype

    @staticmethod
    def packed(structure: Any, tensors: list[Any]) -> Any:
        return tree.map_structure(lambda slot: tensors[slot.index], structure)

    def named_outputs(self) -> list[Any]:
        """Return the outputs, each computed by a layer with the original name.

        If the layer that an output was named after no longer exists, an Identity has its name; it
        adds nothing to an exported file.
        """
        tensors = []
        identities: dict[str, Any] = {}
        made: dict[tuple[int, str], Any] = {}
        for value, name in zip(self.graph.outputs, self.graph.output_names, strict=True):
            tensor = self.tensors[id(value)]
            if self.names[id(_namesake(value.producer, self.fused).op)] != name:
                if name not in identities:
                    identities[name] = keras.layers.Identity(name=name, dtype=self.dtype)
                if (id(value), name) not in made:
                    made[id(value), name] = identities[name](tensor)
                tensor = made[id(value), name]
            tensors.append(tensor)
        return tensors


def arguments_in(
    dtype: str, call: Call, inputs: Sequence[Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call; constant tensors in float64 if it computes in float64.

    Not every function of `keras.ops` converts its arguments to one dtype.
    """
    given = call.arguments(inputs)
    if dtype != "float64" or isinstance(getattr(call.op, "operation", None), keras.Layer):
        return given

    def raised(x: Any) -> Any:
        constant = keras.ops.is_tensor(x) and not isinstance(x, keras.KerasTensor)
        if not constant or not is_float(keras.backend.standardize_dtype(x.dtype)):
            return x
        return keras.ops.cast(x, "float64")

    args, kwargs = tree.map_structure(raised, given)
    return args, kwargs


def own_precision(op: Kept) -> keras.Layer:
    """Return a float64 layer that wraps the original, which computes in its own precision."""
    inner = remake(op.operation, op.name, None)
    return OwnPrecision(inner, name=op.name, dtype="float64")


def _namesake(call: Call, fused: set[int]) -> Call:
    """Return the call whose layer an output is named after."""
    return call.inputs[0].producer if id(call) in fused else call


def _names(graph: Graph, calls: list[Call], fused: set[int]) -> dict[int, str]:
    """Return the layer name of every op; names of outputs have priority."""
    # Name of an output to the ids of the ops with this name that compute it; 0 for other ops.
    outputs: dict[str, set[int]] = {}
    for value, name in zip(graph.outputs, graph.output_names, strict=True):
        op = _namesake(value.producer, fused).op
        outputs.setdefault(name, set()).add(id(op) if op.name == name else 0)
    names: dict[int, str] = {}
    taken = set(outputs)
    for call in calls:
        op = call.op
        if id(op) not in names and id(call) not in fused:
            # A shared norm with one call that could not be read becomes two layers of one name.
            free = op.name not in taken or outputs.get(op.name) == {id(op)}
            names[id(op)] = op.name if free else graph.unique_name(op.name, "inner")
            taken.add(op.name)
    return names


def _fused_activations(
    calls: list[Call], watched: set[Value]
) -> tuple[set[int], dict[int, Function]]:
    """Find the activations that can be merged back into their layer.

    Nothing may lie between layer and activation, in any call of the layer, and all calls must have
    the same function.

    Returns:
        The ids of the calls of those activations; the functions, by id of the op of their layer.
    """
    by_op: dict[int, list[Call]] = {}
    for call in calls:
        if isinstance(call.op, Linear) and call.op.kind.activation(call.op.layer) is not None:
            by_op.setdefault(id(call.op), []).append(call)
    fused: set[int] = set()
    functions: dict[int, Function] = {}
    for op, group in by_op.items():
        after = [None if call.output in watched else _own_activation(call) for call in group]
        found = [activation.op.function for activation in after if activation is not None]
        if len(found) == len(group) and all(function is found[0] for function in found):
            fused.update(id(activation) for activation in after)
            functions[op] = found[0]
    return fused, functions


def _own_activation(call: Call) -> Call | None:
    value = call.output
    if len(value.uses) != 1 or value.is_output:
        return None
    user = value.uses[0][0]
    own = isinstance(user.op, ActivationOp) and user.op.owner == call.op.layer.name
    return user if own else None


def _declares_its_shape(op: Any) -> bool:
    """Return whether a symbolic call does not run the code of a layer that may need float32."""
    if not isinstance(op, Kept) or not isinstance(op.operation, keras.Layer):
        return False
    if kind_of(op.operation) and not isinstance(op.operation, _MAY_NEED_FLOAT32):
        return False
    given = (type(op.operation).compute_output_shape, type(op.operation).compute_output_spec)
    return given != (keras.Layer.compute_output_shape, keras.Layer.compute_output_spec)


# Layers of Keras that use float32 constants, or run the user's code.
_MAY_NEED_FLOAT32 = (
    keras.layers.MelSpectrogram,
    keras.layers.Lambda,
    keras.layers.TimeDistributed,
)


@functools.singledispatch
def _make(op: Any, builder: _Builder) -> Any:
    raise TypeError(f"cannot create a layer for {type(op).__name__}")


@_make.register
def _(op: Kept, builder: _Builder) -> Any:
    name = builder.names[id(op)]
    if builder.dtype == "float64":
        made = replacement(op.operation, name)
        if made is not None:
            return made
        return channels_last(remake(op.operation, name, "float64"), name)
    return remake(op.operation, name, builder.dtype)


@_make.register
def _(op: Linear, builder: _Builder) -> Any:
    return _linear(op, builder.names[id(op)], builder.dtype, builder.functions.get(id(op)))


@_make.register
def _(op: ActivationOp, builder: _Builder) -> Any:
    return keras.layers.Activation(op.function, name=builder.names[id(op)], dtype=builder.dtype)


@_make.register
def _(op: AffineOp, builder: _Builder) -> Any:
    affine = op.affine
    return ChannelAffine(
        axis=affine.axis,
        use_scale=affine.scales,
        use_shift=affine.shifts,
        name=builder.names[id(op)],
        dtype=builder.dtype,
    )


@_make.register
def _(op: MapOp, builder: _Builder) -> Any:
    return BiasMap(name=builder.names[id(op)], dtype=builder.dtype)


def _linear(op: Linear, name: str, dtype: str, activation: Function | None) -> Any:
    """Create the layer of a linear op, without its weights."""
    config = {**in_dtype(op.kind.config(op, activation), dtype), "name": name}
    if dtype != "float64":
        return from_config(op.layer, config)
    return channels_last(from_config(op.layer, uninitialized(config)), name)


def _fill(op: Any, layer: Any) -> None:
    """Set the weights of a layer."""
    if isinstance(layer, (ChannelsLast, OwnPrecision)):
        layer = layer.inner
    if isinstance(op, Linear) and op.touched:
        for variable, array in zip(op.kind.variables(layer), op.kind.arrays(op), strict=True):
            assign(variable, array)
    elif isinstance(op, Linear):
        copy_weights(op.kind.variables(op.layer), op.kind.variables(layer))
    elif isinstance(op, Kept) and isinstance(op.operation, keras.Layer):
        copy_state(op.operation, layer)
    elif isinstance(op, AffineOp):
        if layer.use_scale:
            layer.scale.assign(op.affine.scale)
        if layer.use_shift:
            layer.shift.assign(op.affine.shift)
    elif isinstance(op, MapOp):
        layer.bias.assign(op.constant)
