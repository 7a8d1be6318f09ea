"""Converts channels-first layers to channels-last.

TensorFlow computes channels-first convolutions on GPUs only, and TFLite does not support them. The
kernels are the same in both orders, so the layers are converted together with the layers between
them: norms and concatenations with their axis moved, and elementwise layers. A Permute is inserted
where the orders meet: at the inputs and outputs, whose order is kept, and before unknown layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from ....errors import UserError
from ..backend import bias_axis
from ..graph import Call, Graph, Kept, Slot, Source, Value
from ..keras_graph import kind_of
from ..norms import is_norm

_FIRST, _LAST = "channels_first", "channels_last"

# Layers that compute each element separately.
_ELEMENTWISE = (
    kl.ReLU, kl.LeakyReLU, kl.ELU, kl.Dropout, kl.GaussianDropout, kl.GaussianNoise,
    kl.AlphaDropout, kl.ActivityRegularization, kl.Identity,
    kl.Add, kl.Subtract, kl.Multiply, kl.Average, kl.Maximum, kl.Minimum,
)  # fmt: skip
_OPERATIONS = {
    "Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Maximum", "Minimum", "Relu", "Relu6",
    "Sigmoid", "Tanh", "Silu", "Elu", "Selu", "Gelu", "LeakyRelu", "HardSigmoid", "HardSilu",
    "Softplus", "Softsign", "Exp", "Log", "Sqrt", "Rsqrt", "Square", "Abs", "Absolute", "Negative",
}  # fmt: skip
# Functions of an Activation layer that act along the last axis.
_ALONG_AXIS = (
    keras.activations.softmax, keras.activations.log_softmax, keras.activations.sparsemax,
    keras.activations.glu,
)  # fmt: skip
_WITH_AXIS = (
    kl.LayerNormalization, kl.GroupNormalization, kl.UnitNormalization, kl.RMSNormalization,
    kl.Softmax, kl.Concatenate,
)  # fmt: skip


def channels_last(graph: Graph) -> list[str] | None:
    """Convert every channels-first layer, in place.

    Args:
        graph: The network.

    Returns:
        One sentence about the change; None if there are no channels-first layers.
    """
    calls = graph.calls()
    if not any(_is_first(call) for call in calls):
        return None
    exchange = _Exchange(graph)
    for call in calls:
        exchange.visit(call)
    return [
        "channels-first layers were converted to channels-last; inputs and outputs keep their order"
    ]


def _is_first(call: Call) -> bool:
    layer = getattr(call.op, "operation", None)
    return (
        isinstance(layer, keras.Layer)
        and getattr(layer, "data_format", None) == _FIRST
        and call.inputs[0].rank > 2
    )


class _Exchange:
    """Converts calls one by one; holds the channels-last version of each converted value."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.last: dict[int, Value] = {}
        self.made: dict[int, Kept] = {}

    def visit(self, call: Call) -> None:
        """Convert one call if its layer or one of its inputs requires it."""
        if not isinstance(call.op, Kept) or len(call.outputs) != 1:
            return
        change = self._change(call)
        if change is None:
            return
        inputs = [self._with_channels_last(value) for value in call.inputs]
        if id(call.op) not in self.made:
            layer = change(call, inputs)
            self.made[id(call.op)] = Kept(layer, call.op.name)
        value = call.output
        if value.rank < 3:
            call.op, call.inputs = self.made[id(call.op)], inputs
            return
        exchanged = Call(self.made[id(call.op)], inputs, call.args, call.kwargs)
        exchanged.outputs = [Value(_moved(value.shape), value.dtype, exchanged)]
        self.last[id(value)] = exchanged.output
        value.producer = self._permute(exchanged.output, value, _FIRST)

    def _change(self, call: Call) -> Callable[[Call, list[Value]], Any] | None:
        """Return the function that converts the layer of a call; None if it is not converted."""
        layer = call.op.operation
        if _is_first(call):
            return _with_data_format
        if not any(id(value) in self.last for value in call.inputs):
            return None
        if len({value.rank for value in call.inputs}) > 1:
            return None
        if isinstance(layer, kl.Activation) and layer.activation not in _ALONG_AXIS:
            return _same
        if isinstance(layer, _ELEMENTWISE) or (
            kind_of(layer) in _OPERATIONS and _scalars_only(call)
        ):
            return _same
        if isinstance(layer, _WITH_AXIS) or (is_norm(layer) and hasattr(layer, "axis")):
            return _with_axis
        if isinstance(layer, kl.PReLU):
            return _prelu
        return None

    def _with_channels_last(self, value: Value) -> Value:
        if value.rank < 3:
            return value
        if id(value) not in self.last:
            moved = Value(_moved(value.shape), value.dtype, value.producer)
            moved.producer = self._permute(value, moved, _LAST)
            self.last[id(value)] = moved
        return self.last[id(value)]

    def _permute(self, source: Value, target: Value, order: str) -> Call:
        axes = list(range(1, source.rank))
        axes = [*axes[1:], axes[0]] if order == _LAST else [axes[-1], *axes[:-1]]
        name = self.graph.unique_name(f"{_name_of(source)}_{order}")
        call = Call(Kept(kl.Permute(tuple(axes), name=name), name), [source])
        call.outputs = [target]
        return call


def _name_of(value: Value) -> str:
    call = value.producer
    return call.op.name if isinstance(call.op, Source) else call.name


def _moved(shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
    return (shape[0], *shape[2:], shape[1])


def _scalars_only(call: Call) -> bool:
    """Return whether all arguments of an operation are tensors of the network or scalars."""
    arguments = [*(call.args or ()), *(call.kwargs or {}).values()]
    return all(
        isinstance(item, (Slot, int, float, bool, type(None))) or getattr(item, "shape", None) == ()
        for item in arguments
    )


def _same(call: Call, inputs: list[Value]) -> Any:
    return call.op.operation


def _with_data_format(call: Call, inputs: list[Value]) -> Any:
    twin = _rebuilt(call, inputs, {"data_format": _LAST})
    _require_bias_of_channels(call, twin)
    return twin


def _require_bias_of_channels(call: Call, twin: Any) -> None:
    """Raise an error if TensorFlow adds the bias of a channels-first layer to another axis.

    Where the last axis is as long as the bias, Keras adds the bias to it; only in some graphs does
    TensorFlow's layout optimizer restore the sum that was meant.
    """
    import tensorflow as tf

    layer, shape = call.op.operation, call.output.shape
    bias = getattr(layer, "bias", None)
    if bias is None or bias_axis(shape, bias.shape[0]) in (None, 1 - len(shape)):
        return
    run = tf.function(lambda op, shape: op(tf.zeros([1, *shape])))
    sizes = [1 if size is None else size for size in call.inputs[0].shape[1:]]
    found = run(layer, tuple(sizes))
    meant = run(twin, (*sizes[1:], sizes[0]))
    if not np.allclose(found, np.moveaxis(np.asarray(meant), -1, 1), 1e-4, 1e-6):
        raise UserError(
            f"Keras adds the bias of the channels-first layer {layer.name!r} to its last axis "
            f"instead of its channels, because both have the length {shape[-1]}, and not in every "
            "way of running the model. Build the model with data_format='channels_last'."
        )


def _with_axis(call: Call, inputs: list[Value]) -> Any:
    layer, rank = call.op.operation, inputs[0].rank

    def moved(axis: int) -> int:
        axis %= rank
        return axis if axis == 0 else (rank - 1 if axis == 1 else axis - 1)

    axes = layer.axis
    axis = moved(axes) if isinstance(axes, int) else [moved(axis) for axis in axes]
    return _rebuilt(call, inputs, {"axis": axis})


def _prelu(call: Call, inputs: list[Value]) -> Any:
    layer, rank = call.op.operation, inputs[0].rank
    shared = layer.shared_axes or ()
    axes = [rank - 1 if axis % rank == 1 else axis % rank - 1 for axis in shared]
    alpha = keras.ops.moveaxis(layer.alpha, 0, -1)
    return _rebuilt(call, inputs, {"shared_axes": axes or None}, [alpha])


def _rebuilt(
    call: Call, inputs: list[Value], changes: dict[str, Any], weights: list[Any] | None = None
) -> Any:
    """Return a layer with a changed configuration and the weights of the original."""
    layer = call.op.operation
    twin = type(layer).from_config({**layer.get_config(), **changes})
    shapes = [value.shape for value in inputs]
    twin.build(shapes[0] if len(shapes) == 1 else shapes)
    values = layer.weights if weights is None else weights
    fits = [tuple(w.shape) for w in twin.weights] == [tuple(w.shape) for w in values]
    if not fits:
        raise UserError(
            f"The layer {layer.name!r} ({type(layer).__name__}) has different weights with "
            "channels last. Build the model with data_format='channels_last'."
        )
    for variable, value in zip(twin.weights, values, strict=True):
        variable.assign(value)
    return twin
