"""Builds the layers of a quantization-aware model, one for each operator of a folded graph."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np
from keras import layers as kl
from keras import ops

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
    QuantizedAdd,
    QuantizedAveragePooling,
    QuantizedConcatenate,
    QuantizedExtreme,
    QuantizedMean,
    QuantizedResizing,
    QuantizedSubtract,
)
from ...toolkit.quantize_aware.quantized import FUSED, Quantized
from ..fold.affine import Affine
from ..fold.graph import ActivationOp, AffineOp, Call, Graph, Kept, Source
from ..fold.keras_graph import kind_of
from ..fold.linear import Linear
from .dense_form import dense_form
from .integer_operations import (
    ADVICE,
    CHANNELS_FIRST,
    axes_of,
    constant_of,
    function_named,
    fusable,
    keeps_grid,
    only_8_bits,
    refused,
    resized_to,
)
from .quantized_graph import BuiltValue, Choices, QuantizedGraph, in_float32


def build_quantized(graph: Graph, live: dict[Call, Any], choices: Choices) -> keras.Model:
    """Build the quantization-aware network.

    Args:
        graph: The folded graph.
        live: Calls of linear layers to the norm after each that stays trainable.
        choices: The options.
    """
    return _Builder(graph, live, choices).model()


class _Builder(QuantizedGraph):
    """Builds the operators, one method for each kind."""

    def call(self, call: Call) -> list[BuiltValue]:
        """Build the layer of a call and return its output values."""
        op = call.op
        wide = self.choices.output_range.bits > 8 and op.name not in self.choices.float_layers
        if wide and only_8_bits(op):
            raise refused(op, "TFLite's converter does not write it with 16-bit activations")
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
            sizes = resized_to(call, "nearest")
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
            sizes = resized_to(call, "bilinear")
            if sizes is not None:
                return [self.resized(call, sizes)]
            if type(layer) is kl.PReLU:
                return [self.prelu(call, layer)]
            if type(layer) in (kl.AveragePooling1D, kl.AveragePooling2D):
                return [self.pooled(call, layer)]
            constant = constant_of(call)
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
        raise refused(op)

    def linear(self, call: Call, op: Linear) -> BuiltValue:
        """Build a linear layer with the norm and the activation after it."""
        known = type(op.layer) in KERNELS or type(op.layer) in _SEPARABLE or dense_form(op)
        if not known or getattr(op.layer, "data_format", "") == CHANNELS_FIRST:
            raise refused(op, _CHANNELS_LAST if known else "")
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
        config = in_float32(op.kind.config(plain, None))
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
                f"operator. {ADVICE.format(name=op.name)}"
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
        if layer.data_format == CHANNELS_FIRST:
            raise refused(call.op, _CHANNELS_LAST)
        pool = type(layer).from_config(in_float32(layer.get_config()))
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
        if getattr(layer, "data_format", "") == CHANNELS_FIRST:
            raise refused(call.op, _CHANNELS_LAST)
        if kind_of(layer) == "Mean" and axes_of(layer.axis, call.inputs[0].rank) != axes:
            raise refused(call.op, "XNNPACK has integer means over height and width only")
        if None in [call.inputs[0].shape[axis] for axis in axes]:
            raise refused(
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
                layer = self.layers[id(op)] = type(op.layer).from_config(in_float32(config))
                self.fills.append(lambda: _assign(op.kind.variables(layer), op.kind.arrays(op)))
            return [BuiltValue(layer(tensors[0]))]
        if not isinstance(op, (Kept, ActivationOp)):
            raise UserError(f"{op.name} is a norm, which cannot stay in floating point alone.")
        return [BuiltValue(tensor) for tensor in self.replayed(call, tensors)]


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


def _like(norm: Any, rest: Affine | None) -> Any:
    """Return a new norm of the same type, with gamma and beta if it must absorb an affine."""
    config = in_float32(norm.get_config())
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
