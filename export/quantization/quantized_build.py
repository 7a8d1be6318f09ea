"""Builds a quantization-aware model from a folded graph, with one layer for each operator."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np
from keras import layers as kl
from keras import ops, tree

from ...errors import UserError
from ...toolkit.quantize_aware.functions import (
    FUNCTIONS,
    QuantizedFunction,
    QuantizedLeakyReLU,
    QuantizedMultiply,
    QuantizedPReLU,
    QuantizedSoftmax,
)
from ...toolkit.quantize_aware.kernels import KERNELS
from ...toolkit.quantize_aware.linear import QuantizedLinear
from ...toolkit.quantize_aware.operators import (
    Quantize,
    QuantizedAdd,
    QuantizedAveragePooling,
    QuantizedConcatenate,
    QuantizedExtreme,
    QuantizedMean,
    QuantizedResizing,
    QuantizedSubtract,
)
from ...toolkit.quantize_aware.quantized import FUSED, Quantized
from ...toolkit.quantize_aware.ranges import Range
from ..fold.affine import Affine
from ..fold.graph import ActivationOp, AffineOp, Call, Graph, Kept, Slot, Source, Value
from ..fold.keras_graph import kind_of
from ..fold.linear import Linear
from ..fold.norms import NotAffineError, read_constant
from .dense_form import dense_form
from .integer_operations import function_named, fusable, keeps_grid, why_none

_ADVICE = "Replace it, or leave it in floating point: float_layers=({name!r},)."


@dataclasses.dataclass(frozen=True)
class Choices:
    """The options of `quantize_aware`.

    Attributes:
        weight_bits: Number of bits of the weights.
        rounding: Arithmetic of the target.
        output_range: Template of the range of each quantized value.
        freeze_statistics_after: Training steps after which norms run in inference mode.
        float_layers: Names of layers that stay in floating point.
    """

    weight_bits: int
    rounding: str
    output_range: Range
    freeze_statistics_after: int | None
    float_layers: frozenset[str]

    def options(self, calls: int = 1) -> dict[str, Any]:
        """Return the options of a quantized layer with a number of calls, with a new range."""
        config = {**self.output_range.get_config(), "calls": calls}
        del config["name"]
        return {"rounding": self.rounding, "output_range": Range.from_config(config)}


@dataclasses.dataclass(frozen=True)
class BuiltValue:
    """A value of the new network.

    Attributes:
        tensor: Its tensor.
        grid: Its grid; None if it is not quantized.
        opened: Whether it is an accumulator that is not yet rounded; the grid holds its steps.
    """

    tensor: Any
    grid: Any = None
    opened: bool = False


def build_quantized(graph: Graph, live: dict[Call, Any], choices: Choices) -> keras.Model:
    """Build the quantization-aware network.

    Args:
        graph: The folded graph.
        live: Calls of linear layers to the norm after each that stays trainable.
        choices: The options.
    """
    return _Builder(graph, live, choices).model()


class _Builder:
    """Builds one model; holds the layers and values built so far."""

    def __init__(self, graph: Graph, live: dict[Call, Any], choices: Choices) -> None:
        self.graph, self.live, self.choices = graph, live, choices
        self.values: dict[int, BuiltValue] = {}
        self.layers: dict[int, keras.layers.Layer] = {}
        self.linear_layers: dict[int, list[QuantizedLinear]] = {}
        self.quantized: dict[int, BuiltValue] = {}
        self.fused: set[Call] = set()
        self.fills: list[Any] = []
        self.renamed: dict[int, str] = {}
        for name in _repeated_names(graph):
            graph.own_name(None, name)

    def model(self) -> keras.Model:
        for call in self.graph.calls():
            if call in self.fused:
                self.values[id(call.output)] = self.values[id(call.inputs[0])]
                continue
            results = self.call(call)
            for value, result in zip(call.outputs, results, strict=True):
                self.values[id(value)] = result
        inputs = [self.values[id(value)].tensor for value in self.graph.inputs]
        model = keras.Model(
            _packed(self.graph.input_structure, inputs),
            _packed(self.graph.output_structure, self.outputs()),
            name=self.graph.name,
        )
        for fill in self.fills:
            fill()
        return model

    def call(self, call: Call) -> list[BuiltValue]:
        """Build the layer of a call and return its output values."""
        op = call.op
        wide = self.choices.output_range.bits > 8 and op.name not in self.choices.float_layers
        if wide and _only_8_bits(op):
            raise _refused(op, "TFLite's converter does not write it with 16-bit activations")
        if isinstance(op, Source):
            tensor = op.tensor
            return [
                BuiltValue(keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=op.name))
            ]
        if op.name in self.choices.float_layers:
            return self.kept_float(call)
        if isinstance(op, Linear):
            return [self.linear(call, op)]
        if isinstance(op, AffineOp):
            return [self.affine(call, op)]
        activation = fusable(op)
        if activation is not None:
            return [self.activation(call, activation)]
        if isinstance(op, Kept):
            layer, kind = op.operation, kind_of(op.operation)
            if kind == "Concatenate":
                return [self.joined(call)]
            sizes = _sizes(call, "nearest")
            if sizes is not None:
                return [self.enlarged(call, sizes)]
            if keeps_grid(layer):
                return self.moved(call)
            if kind in ("Add", "Average") and len(call.inputs) >= 2:
                return [self.added(call)]
            if kind in ("Maximum", "Minimum") and len(call.inputs) >= 2:
                return [self.extreme(call, greatest=kind == "Maximum")]
            if kind in ("GlobalAveragePooling1D", "GlobalAveragePooling2D", "Mean"):
                return [self.averaged(call, layer)]
            if kind in _PAIRS and len(call.inputs) == 2:
                return [self.pair(call, _PAIRS[kind])]
            sizes = _sizes(call, "bilinear")
            if sizes is not None:
                return [self.resized(call, sizes)]
            if type(layer) is kl.PReLU:
                return [self.prelu(call, layer)]
            if type(layer) in (kl.AveragePooling1D, kl.AveragePooling2D):
                return [self.pooled(call, layer)]
            constant = _constant(call)
            if constant is not None:
                return [self.by_constant(call, constant)]
        name, _ = function_named(op)
        if name in _GATES:
            return [self.gated(call, _GATES[name])]
        if name == "hard_sigmoid":
            return [self.hard_sigmoid(call, self.name_of(call))]
        made = self.function(call)
        if made is not None:
            x = self.on_grid(call.inputs[0])
            return [BuiltValue(*made(x.tensor, x.grid))]
        raise _refused(op)

    # The operators.

    def linear(self, call: Call, op: Linear) -> BuiltValue:
        """Build a linear layer with the norm and the activation after it."""
        known = type(op.layer) in KERNELS or type(op.layer) in _SEPARABLE or dense_form(op)
        if not known or getattr(op.layer, "data_format", "") == _FIRST:
            raise _refused(op, _CHANNELS_LAST if known else "")
        x = self.on_grid(call.inputs[0])
        layers = self.linear_layers.get(id(op))
        if layers is None:
            layers = self.linear_layers[id(op)] = self.made_linear(call, op)
        form = dense_form(op)
        tensor = x.tensor if form is None else form.rows(x.tensor)
        for layer in layers:
            tensor, grid = layer(tensor, x.grid)
            x = BuiltValue(tensor, grid, layer.opened)
        return x if form is None else dataclasses.replace(x, tensor=form.unrows(tensor))

    def made_linear(self, call: Call, op: Linear) -> list[QuantizedLinear]:
        """Return the layers of a linear call: two for a separable convolution, else one."""
        norm, calls = self.live.get(call), len(self.calls_of(op))
        plain = op if norm is None else dataclasses.replace(op, after=None)
        config = _float32(op.kind.config(plain, None))
        arrays = op.kind.arrays(plain)
        form = dense_form(op)
        if form is not None:
            config, arrays = form.config(op.name, arrays), form.arrays(arrays)
        layers = []
        if type(op.layer) in _SEPARABLE:
            depthwise, config, inner = _separated(type(op.layer), config)
            first = QuantizedLinear(
                depthwise,
                weight_bits=self.choices.weight_bits,
                name=self.graph.unique_name(f"{call.name}_depthwise"),
                **self.choices.options(calls),
            )
            layers.append(first)
            kernel, *arrays = arrays
            self.fills.append(lambda: first.layer.kernel.assign(kernel))
        else:
            inner = type(op.layer) if form is None else kl.Dense
        last = QuantizedLinear(
            inner.from_config(config),
            None if norm is None else _like(norm, op.after),
            activation=self.fuse_all(call.op),
            opened=self.opens(call),
            weight_bits=self.choices.weight_bits,
            freeze_statistics_after=self.choices.freeze_statistics_after,
            name=self.name_before_own_activation(call),
            **self.choices.options(calls),
        )
        self.fills.append(lambda: _fill(arrays, op.after, norm, last))
        return [*layers, last]

    def affine(self, call: Call, op: AffineOp) -> BuiltValue:
        """Build a norm that could not be folded, as a depthwise convolution of kernel size 1."""
        if op.affine.axis != call.output.rank - 1:
            raise UserError(
                f"{op.name} cannot be folded, and for axis {op.affine.axis} it has no integer "
                f"operator. {_ADVICE.format(name=op.name)}"
            )
        x = self.on_grid(call.inputs[0])
        scale, shift = op.affine.scale, op.affine.shift
        return self.scaled(x, scale, shift, name=self.name_of(call), activation=self.fuse(call))

    def scaled(
        self, x: BuiltValue, scale: Any, shift: Any, *, name: str, activation: str | None = None
    ) -> BuiltValue:
        """Build ``x * scale + shift``: a depthwise convolution of size 1."""
        shape = x.tensor.shape
        kind = kl.DepthwiseConv2D if len(shape) == 4 else kl.DepthwiseConv1D
        layer = QuantizedLinear(
            kind(1, name=name), activation=activation, name=name, **self.choices.options()
        )

        def fill() -> None:
            kernel, bias = layer.layer.kernel, layer.layer.bias
            kernel.assign(np.broadcast_to(scale, bias.shape).reshape(kernel.shape))
            bias.assign(np.broadcast_to(shift, bias.shape))

        self.fills.append(fill)
        if len(shape) in (3, 4):
            return BuiltValue(*layer(x.tensor, x.grid))
        places = ops.reshape(x.tensor, (-1, math.prod(shape[1:-1]), shape[-1]))
        tensor, grid = layer(places, x.grid)
        return BuiltValue(ops.reshape(tensor, (-1, *shape[1:])), grid)

    def by_constant(self, call: Call, affine: Affine) -> BuiltValue:
        """Build a sum or a product with a number."""
        x, name = self.on_grid(call.inputs[0]), self.name_of(call)
        return self.scaled(x, affine.scale, affine.shift, name=name, activation=self.fuse(call))

    def activation(self, call: Call, name: str) -> BuiltValue:
        """Build an activation that is not fused."""
        x = self.on_grid(call.inputs[0])
        if name not in FUSED:  # its ends are those of a grid
            return self.scaled(x, 1.0, 0.0, name=self.name_of(call), activation=name)
        layer = kl.ReLU(6.0 if name == "relu6" else None, name=self.name_of(call), dtype="float32")
        return BuiltValue(layer(x.tensor), x.grid)

    def added(self, call: Call) -> BuiltValue:
        """Build a sum, two operands at a time, or a mean, which is a sum and a product."""
        first, *others = (self.on_grid(value) for value in call.inputs)
        activation, mean = self.fuse(call), kind_of(call.op.operation) == "Average"
        for index, other in enumerate(others):
            last = index == len(others) - 1 and not mean
            layer = QuantizedAdd(
                activation=activation if last else None,
                name=self.name_of(call) if last else self.graph.unique_name(f"{call.op.name}_sum"),
                **self.choices.options(),
            )
            first = BuiltValue(*layer(first.tensor, first.grid, other.tensor, other.grid))
        if not mean:
            return first
        part = 1.0 / len(call.inputs)
        return self.scaled(first, part, 0.0, name=self.name_of(call), activation=activation)

    def extreme(self, call: Call, *, greatest: bool) -> BuiltValue:
        """Build the greatest or the least of several values."""
        values = [self.on_grid(value) for value in call.inputs]
        layer = QuantizedExtreme(greatest, name=self.name_of(call), **self.choices.options())
        return BuiltValue(*layer([v.tensor for v in values], [v.grid for v in values]))

    def resized(self, call: Call, sizes: tuple[int, int]) -> BuiltValue:
        """Build bilinear resizing, whose output has the grid of its input."""
        x = self.on_grid(call.inputs[0])
        layer = QuantizedResizing(*sizes, name=self.name_of(call), **self.choices.options())
        return BuiltValue(*layer(x.tensor, x.grid))

    def enlarged(self, call: Call, sizes: tuple[int, int]) -> BuiltValue:
        """Build resizing to the nearest place, which moves integers.

        The layers repeat places, which would become TILE, an operator that TFLite Micro lacks.
        """
        x, shape = self.on_grid(call.inputs[0]), call.inputs[0].shape
        layer = kl.Resizing(
            *sizes,
            interpolation="nearest",
            data_format="channels_last",
            name=self.name_of(call),
            dtype="float32",
        )
        # Keras' resizing assumes training where nothing is said, and all later layers follow it.
        if len(shape) == 4:
            return BuiltValue(layer(x.tensor, training=False), x.grid)
        maps = ops.reshape(x.tensor, (-1, 1, *(shape[1:-1] or (1,)), shape[-1]))
        rows = layer(maps, training=False)
        return BuiltValue(ops.reshape(rows, (-1, sizes[1], shape[-1])), x.grid)

    def prelu(self, call: Call, layer: kl.PReLU) -> BuiltValue:
        """Build ReLU with trained slopes."""
        x = self.on_grid(call.inputs[0])
        made = self.layers.get(id(call.op))
        if made is None:
            slopes = kl.PReLU(shared_axes=layer.shared_axes, dtype="float32")
            made = self.layers[id(call.op)] = QuantizedPReLU(
                slopes,
                self.choices.weight_bits,
                name=self.name_of(call),
                **self.choices.options(len(self.calls_of(call.op))),
            )
            self.fills.append(lambda: slopes.set_weights(layer.get_weights()))
        return BuiltValue(*made(x.tensor, x.grid))

    def pair(self, call: Call, made: type[Quantized]) -> BuiltValue:
        """Build an operator with two operands."""
        a, b = (self.on_grid(value) for value in call.inputs)
        layer = made(activation=self.fuse(call), name=self.name_of(call), **self.choices.options())
        return BuiltValue(*layer(a.tensor, a.grid, b.tensor, b.grid))

    def gated(self, call: Call, gate: str) -> BuiltValue:
        """Build SiLU or its hard form from two operators: a gate, and a product."""
        x, name = self.on_grid(call.inputs[0]), self.name_of(call)
        gate_name = self.graph.unique_name(f"{name}_gate")
        if gate == "sigmoid":
            layer = QuantizedFunction("sigmoid", name=gate_name, **self.choices.options())
            gated = BuiltValue(*layer(x.tensor, x.grid))
        else:
            gated = self.hard_sigmoid(call, gate_name)
        product = QuantizedMultiply(name=name, **self.choices.options())
        return BuiltValue(*product(x.tensor, x.grid, gated.tensor, gated.grid))

    def hard_sigmoid(self, call: Call, name: str) -> BuiltValue:
        """Build ``x / 6 + 1/2``, clipped to 0 and 1."""
        x = self.on_grid(call.inputs[0])
        return self.scaled(x, 1.0 / 6.0, 0.5, name=name, activation="relu1")

    def pooled(self, call: Call, layer: Any) -> BuiltValue:
        """Build average pooling, whose output has the grid of its input."""
        x = self.on_grid(call.inputs[0])
        if layer.data_format == _FIRST:
            raise _refused(call.op, _CHANNELS_LAST)
        pool = type(layer).from_config(_float32(layer.get_config()))
        made = QuantizedAveragePooling(pool, name=self.name_of(call), **self.choices.options())
        return BuiltValue(*made(x.tensor, x.grid))

    def function(self, call: Call) -> Any:
        """Build the layer of an elementwise function or softmax; return None for an unknown one."""
        name, slope = function_named(call.op)
        if name not in ("softmax", "leaky_relu", *FUNCTIONS):
            return None
        options = {"name": self.name_of(call), **self.choices.options()}
        if name == "softmax":
            return QuantizedSoftmax(**options)
        if name == "leaky_relu":
            return QuantizedLeakyReLU(slope, **options)
        return QuantizedFunction(name, **options)

    def joined(self, call: Call) -> BuiltValue:
        """Build a concatenation, whose operands share one grid."""
        values = [self.on_grid(value) for value in call.inputs]
        layer = QuantizedConcatenate(
            call.op.operation.axis,
            tuple(value.opened for value in values),
            name=self.name_of(call),
            **self.choices.options(),
        )
        return BuiltValue(*layer([v.tensor for v in values], [v.grid for v in values]))

    def averaged(self, call: Call, layer: Any) -> BuiltValue:
        """Build a global average pooling."""
        x, axes = self.on_grid(call.inputs[0]), tuple(range(1, call.inputs[0].rank - 1))
        if getattr(layer, "data_format", "") == _FIRST:
            raise _refused(call.op, _CHANNELS_LAST)
        if kind_of(layer) == "Mean" and _axes(layer.axis, call.inputs[0].rank) != axes:
            raise _refused(call.op, "XNNPACK has integer means over height and width only")
        if None in [call.inputs[0].shape[axis] for axis in axes]:
            raise _refused(
                call.op,
                "its step depends on the number of places, and the size of its input is free",
            )
        mean = QuantizedMean(
            axes,
            layer.keepdims,
            name=self.name_of(call),
            **self.choices.options(),
        )
        return BuiltValue(*mean(x.tensor, x.grid))

    def moved(self, call: Call) -> list[BuiltValue]:
        """Build a layer whose output has the grid of its input."""
        x = self.on_grid(call.inputs[0])
        return [BuiltValue(tensor, x.grid) for tensor in self.replayed(call, [x.tensor])]

    def kept_float(self, call: Call) -> list[BuiltValue]:
        """Build a layer that stays in floating point."""
        op = call.op
        tensors = [self.values[id(value)].tensor for value in call.inputs]
        if isinstance(op, Linear):
            layer = self.layers.get(id(op))
            if layer is None:
                config = op.kind.config(op, None)
                layer = self.layers[id(op)] = type(op.layer).from_config(_float32(config))
                self.fills.append(lambda: _assign(op.kind.variables(layer), op.kind.arrays(op)))
            return [BuiltValue(layer(tensors[0]))]
        if not isinstance(op, (Kept, ActivationOp)):
            raise UserError(f"{op.name} is a norm, which cannot stay in floating point alone.")
        return [BuiltValue(tensor) for tensor in self.replayed(call, tensors)]

    # What they share.

    def on_grid(self, value: Value) -> BuiltValue:
        """Return a value in quantized form; a float value gets a quantizer, once."""
        carried = self.values[id(value)]
        if carried.grid is not None:
            return carried
        if id(value) not in self.quantized:
            name = self.graph.unique_name(f"{value.producer.name}_quantizer")
            layer = Quantize(name=name, **self.choices.options())
            self.quantized[id(value)] = BuiltValue(*layer(carried.tensor))
        return self.quantized[id(value)]

    def fuse_all(self, op: Any) -> str | None:
        """Fuse the activation after all calls of a layer, if it is the same; return its name."""
        calls = self.calls_of(op)
        uses = [call.output.uses for call in calls]
        after = {fusable(used[0][0].op) if len(used) == 1 else None for used in uses}
        if len(after) > 1:
            return None
        first, *_ = [self.fuse(call) for call in calls]
        return first

    def fuse(self, call: Call) -> str | None:
        """Fuse the activation after a call, if possible; return its name or None."""
        value = call.output
        if len(value.uses) != 1 or value.is_output:
            return None
        (after, _) = value.uses[0]
        activation = fusable(after.op)
        if activation is not None and after.op.name not in self.choices.float_layers:
            self.fused.add(after)
        return activation

    def name_of(self, call: Call) -> str:
        """Return the name of the layer of a call."""
        return self.graph.own_name(call, self.renamed.get(id(call.op), call.name))

    def name_before_own_activation(self, call: Call) -> str:
        """Return the name of a linear layer.

        If its own activation becomes a separate operator, that operator gets the layer's name,
        since its output is the layer's output.
        """
        uses = call.output.uses
        after = uses[0][0] if uses else None
        own = after is not None and isinstance(after.op, ActivationOp) and after not in self.fused
        if not own or len(self.calls_of(call.op)) > 1:
            return self.name_of(call)
        assert after is not None
        self.renamed[id(after.op)] = call.name
        return self.graph.unique_name(f"{call.name}_linear")

    def opens(self, call: Call) -> bool:
        """Return whether the accumulators of a linear layer are rounded by a concatenation."""
        value = call.output
        if self.choices.output_range.bits > 8:
            return False  # exact sums do not fit one float32 number
        if len(value.uses) == 1 and value.uses[0][0] in self.fused:
            value = value.uses[0][0].output
        if len(value.uses) != 1 or value.is_output or len(self.calls_of(call.op)) > 1:
            return False
        after = value.uses[0][0].op
        joins = isinstance(after, Kept) and kind_of(after.operation) == "Concatenate"
        return joins and after.name not in self.choices.float_layers

    def calls_of(self, op: Any) -> list[Call]:
        """Return the calls of one op."""
        return [call for call in self.graph.calls() if call.op is op]

    def replayed(self, call: Call, tensors: list[Any]) -> list[Any]:
        """Return the outputs of a call of an unquantized layer."""
        layer = self.same(call)
        if call.args is None:
            return tree.flatten(layer(tensors[0]))
        args, kwargs = tree.map_structure(
            lambda x: tensors[x.index] if isinstance(x, Slot) else x, (call.args, call.kwargs)
        )
        return tree.flatten(layer(*args, **kwargs))

    def same(self, call: Call) -> Any:
        """Return the unquantized copy of a layer, built once."""
        op = call.op
        layer = self.layers.get(id(op))
        if layer is None and isinstance(op, ActivationOp):
            layer = kl.Activation(op.function, name=self.name_of(call), dtype="float32")
        elif layer is None:
            config = {**_float32(op.operation.get_config()), "name": self.name_of(call)}
            made = layer = type(op.operation).from_config(config)
            if isinstance(made, keras.layers.Layer):
                self.fills.append(lambda: made.set_weights(op.operation.get_weights()))
        self.layers[id(op)] = layer
        return layer

    def outputs(self) -> list[Any]:
        """Return the outputs, each computed by a layer with the original name."""
        made: dict[tuple[int, str], Any] = {}
        identities: dict[str, Any] = {}
        tensors = []
        for value, name in zip(self.graph.outputs, self.graph.output_names, strict=True):
            tensor = self.values[id(value)].tensor
            if tensor._keras_history.operation.name != name:
                key = (id(value), name)
                if name not in identities:
                    identities[name] = kl.Identity(name=name, dtype="float32")
                if key not in made:
                    made[key] = identities[name](tensor)
                tensor = made[key]
            tensors.append(tensor)
        return tensors


_FIRST = "channels_first"
_CHANNELS_LAST = "its channels come first, and integer operators have them last"
_PAIRS: dict[str, type[Quantized]] = {
    "Multiply": QuantizedMultiply,
    "Subtract": QuantizedSubtract,
}
_GATES = {"silu": "sigmoid", "hard_silu": "hard_sigmoid"}
_SEPARABLE: dict[Any, tuple[Any, Any]] = {
    kl.SeparableConv1D: (kl.DepthwiseConv1D, kl.Conv1D),
    kl.SeparableConv2D: (kl.DepthwiseConv2D, kl.Conv2D),
}


def _repeated_names(graph: Graph) -> list[str]:
    """Return the names that several outputs have, since one layer computes them."""
    named: dict[str, set[int]] = {}
    for value, name in zip(graph.outputs, graph.output_names, strict=True):
        named.setdefault(name, set()).add(id(value))
    return [name for name, values in named.items() if len(values) > 1]


def _what(op: Any) -> str:
    if isinstance(op, ActivationOp):
        return f"{op.owner} ends in {getattr(op.function, '__name__', op.function)}, which"
    layer = op.layer if isinstance(op, Linear) else getattr(op, "operation", op)
    return f"{op.name} ({type(layer).__name__})"


def _only_8_bits(op: Any) -> bool:
    """Return whether TFLite's converter cannot write a layer with 16-bit activations."""
    layers = kind_of(getattr(op, "operation", None)) in ("Concatenate", "PReLU")
    return layers or function_named(op)[0] in ("softmax", "gelu", "elu")


def _refused(op: Any, why: str = "") -> UserError:
    why = why or why_none(op.layer if isinstance(op, Linear) else getattr(op, "operation", None))
    return UserError(
        f"{_what(op)} has no integer operator here{why and f', since {why}'}. "
        f"{_ADVICE.format(name=op.name)}"
    )


def _sizes(call: Call, interpolation: str) -> tuple[int, int] | None:
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
    if layer.interpolation != interpolation or layer.data_format == _FIRST:
        return None
    height, width = call.output.shape[1:3]
    return None if height is None or width is None else (height, width)


def _constant(call: Call) -> Affine | None:
    """Return the affine of an operation with a number; None for any other layer."""
    if kind_of(call.op.operation) == "Negative":
        return Affine(np.array([-1.0]), np.zeros(1), -1)
    try:
        return read_constant(call, scalars=True) if kind_of(call.op.operation) else None
    except NotAffineError:
        return None


def _axes(axis: Any, rank: int) -> tuple[int, ...]:
    chosen = range(rank) if axis is None else np.atleast_1d(axis)
    return tuple(sorted(int(one) % rank for one in chosen))


def _packed(structure: Any, tensors: list[Any]) -> Any:
    return tree.map_structure(lambda slot: tensors[slot.index], structure)


def _float32(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "dtype": "float32"} if "dtype" in config else config


def _like(norm: Any, rest: Affine | None) -> Any:
    """Return a new norm of the same type, with gamma and beta if it must absorb an affine."""
    config = _float32(norm.get_config())
    if rest is not None:
        config.update(scale=True, center=True)
    return type(norm).from_config(config)


def _separated(
    kind: type[keras.layers.Layer], config: dict[str, Any]
) -> tuple[keras.layers.Layer, dict[str, Any], type[keras.layers.Layer]]:
    """Return the depthwise part of a separable convolution; config and type of the pointwise."""
    depthwise, pointwise = _SEPARABLE[kind]
    shared = ("kernel_size", "strides", "padding", "dilation_rate", "depth_multiplier")
    first = depthwise(**{key: config[key] for key in shared}, use_bias=False, dtype="float32")
    rest = {"filters": config["filters"], "kernel_size": 1, "use_bias": config["use_bias"]}
    return first, {**rest, "dtype": "float32", "name": config["name"]}, pointwise


def _fill(arrays: list[Any], rest: Affine | None, norm: Any, layer: Any) -> None:
    """Give a quantized linear layer its weights, and its norm those of the one it replaces."""
    inner = layer.layer
    _assign([inner.kernel, inner.bias] if inner.use_bias else [inner.kernel], arrays)
    if norm is None:
        return
    before = {variable.name: variable.numpy() for variable in norm.weights}
    for variable in layer.norm.weights:
        if variable.name in before:
            variable.assign(before[variable.name])
    if rest is not None:
        layer.norm.gamma.assign(layer.norm.gamma.numpy() * rest.scale)
        layer.norm.beta.assign(layer.norm.beta.numpy() * rest.scale + rest.shift)


def _assign(variables: list[Any], arrays: list[Any]) -> None:
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
