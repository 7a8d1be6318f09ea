"""Converts a quantization-aware model to a float network and an integer network for the export.

The float network has the same weights without rounding; checks compare files with it. The integer
network is a TensorFlow graph with a fake quantization wherever the file quantizes a value;
converters read those and need no calibration.

Each kernel is put into the graph as its integers times a unique number, its *mark*. Converters keep
weights with a single step unchanged, and the mark identifies the layer whose steps belong there.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import Any

import keras
import numpy as np
from keras import layers as kl
from keras import ops, tree

from ...errors import UserError
from ...toolkit.quantize_aware.functions import QuantizedFunction
from ...toolkit.quantize_aware.linear import QuantizedLinear
from ...toolkit.quantize_aware.operators import (
    Quantize,
    QuantizedAveragePooling,
    QuantizedConcatenate,
    QuantizedExtreme,
    QuantizedResizing,
)
from ...toolkit.quantize_aware.quantized import FUSED, Quantized, ends_of
from ...toolkit.quantize_aware.steps import grid_of
from ..fold.graph import Call, Kept, Source
from ..fold.keras_graph import read_graph
from .fake_quantized import (
    FakeQuantized,
    Grid,
    IntegerDense,
    IntegerLinear,
    Weights,
    fake_quantized,
)
from .integer_operations import keeps_grid

# Marks are 1, 1 + 1/1024, ...: their products with 8-bit integers are exact in float32.
_MARKS = 1024
# The slope of the first LEAKY_RELU that marks an operator which converters do not write in
# integers: they merge two consecutive fake quantizations, keep ELU in floating point, and refuse
# some functions of 16-bit numbers. Each marker has a slope of its own, since converters merge equal
# operators. No network has such slopes.
_MARKER = 0.7071067690849304
FENCE = "IDENTITY"  # marks an operator that is removed from the file
_MARKED = {8: {"elu": "ELU"}, 16: {"sigmoid": "LOGISTIC", "tanh": "TANH"}}


class TrainedModel:
    """A model made by `quantize_aware`.

    Attributes:
        model: The model.
        precision: Name of the precision that it was trained for.
        rounding: Arithmetic of the target.
    """

    def __init__(self, model: keras.Model, bits: int, rounding: str) -> None:
        self.model = model
        self._bits = bits
        self.precision = "int8" if bits == 8 else "int16x8"
        self.rounding = rounding

    @functools.cached_property
    def float_model(self) -> keras.Model:
        """The network without rounding, built of plain Keras layers."""
        return _FloatNetwork(self.model).build()

    @functools.cached_property
    def integers(self) -> IntegerModel:
        """The network as the file will compute it."""
        network = _IntegerNetwork(self.model, self._bits, self.rounding)
        built = network.build()
        left = frozenset(network.left_float)
        return IntegerModel(built, tuple(network.weights), network.markers, left, self.rounding)


@dataclasses.dataclass(frozen=True, eq=False)
class IntegerModel:
    """A network with fake quantizations.

    Attributes:
        model: The network, for tracing with TensorFlow only.
        weights: The integer weights of its linear layers.
        markers: Slope of each LEAKY_RELU that marks another operator, to that operator's name in
            TFLite, or to `FENCE`.
        float_layers: Names of the layers that stay in floating point.
        rounding: Arithmetic of the target that it was trained for.
    """

    model: keras.Model
    weights: tuple[Weights, ...]
    markers: dict[np.float32, str]
    float_layers: frozenset[str]
    rounding: str


def trained_model(model: keras.Model) -> TrainedModel | None:
    """Wrap a quantization-aware model; return None for other models.

    Raises:
        UserError: A range has not observed any data.
    """
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, Quantized)]
    if not layers:
        return None
    for layer in layers:
        if layer.ranged and not int(layer.output_range.step):
            raise UserError(
                f"The range of {layer.name} has not observed any data. Train the model with fit(), "
                "or pass samples=… to quantize_aware."
            )
    return TrainedModel(model, layers[0].output_range.bits, layers[0].rounding)


class _Network(abc.ABC):
    """Builds a network from a quantization-aware model, call by call."""

    def __init__(self, model: keras.Model) -> None:
        self.graph = read_graph(model)
        self.values: dict[int, Any] = {}
        self.layers: dict[int, Any] = {}
        self.fills: list[tuple[Any, Any]] = []

    def build(self) -> keras.Model:
        for call in self.graph.calls():
            results = self.call(call)
            self.values.update(
                (id(value), result) for value, result in zip(call.outputs, results, strict=True)
            )
        inputs, outputs = (
            [self.values[id(value)] for value in values]
            for values in (self.graph.inputs, self.named_outputs())
        )
        model = keras.Model(
            tree.map_structure(lambda slot: inputs[slot.index], self.graph.input_structure),
            tree.map_structure(lambda slot: outputs[slot.index], self.graph.output_structure),
            name=self.graph.name,
        )
        for old, new in self.fills:
            new.set_weights(old.get_weights())
        return model

    def named_outputs(self) -> list[Any]:
        """Return the outputs, which are computed by layers with the original names."""
        return self.graph.outputs

    def call(self, call: Call) -> list[Any]:
        """Build a call and return a value for each of its outputs."""
        op = call.op
        if isinstance(op, Source):
            shape, dtype = op.tensor.shape, op.tensor.dtype
            return [keras.Input(batch_shape=shape, dtype=dtype, name=op.name)]
        inputs = self.operands(call)
        if isinstance(op.operation, Quantized):
            return self.quantized(op.operation, call, inputs)
        layer = self.plain(op)
        args, kwargs = call.arguments(inputs)
        return tree.flatten(layer(*args, **kwargs))

    def operands(self, call: Call) -> list[Any]:
        """Return the values that a call reads."""
        return [self.values[id(value)] for value in call.inputs]

    def plain(self, op: Kept) -> Any:
        """Return the copy of a plain Keras layer, made once."""
        if id(op) not in self.layers:
            made = type(op.operation).from_config(op.operation.get_config())
            self.layers[id(op)] = made
            if isinstance(made, keras.layers.Layer):
                self.fills.append((op.operation, made))
        return self.layers[id(op)]

    @abc.abstractmethod
    def quantized(self, layer: Quantized, call: Call, inputs: list[Any]) -> list[Any]:
        """Build a call of a quantized layer and return its outputs."""


class _FloatNetwork(_Network):
    """Builds the network without rounding, in which grids are None."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__(model)
        self.plain_layers: dict[int, list[Any]] = {}
        self.linear: list[tuple[Any, QuantizedLinear]] = []

    def build(self) -> keras.Model:
        model = super().build()
        for made, layer in self.linear:
            _fill(made, layer)
        return model

    def quantized(self, layer: Quantized, call: Call, inputs: list[Any]) -> list[Any]:
        values = layer.operands(inputs)
        if isinstance(layer, Quantize):
            return [values[0], None]
        if id(layer) not in self.plain_layers:
            self.plain_layers[id(layer)] = self.made(layer)
        result = _one_or_all(values)
        for made in self.plain_layers[id(layer)]:
            result = made(result)
        return [result, None]

    def made(self, layer: Quantized) -> list[Any]:
        """Return the plain Keras layers that compute one quantized layer."""
        if isinstance(layer, QuantizedLinear):
            first, fused = _folded(layer), layer.activation in FUSED
            self.linear.append((first, layer))
        else:
            first, fused = layer.plain(), layer.activation is None
            if not fused:
                first.name = f"{layer.name}_before"
        return [first] if fused else [first, _activation(layer)]


def _activation(layer: Quantized) -> Any:
    """Return the activation of a quantized layer as a layer with its name."""
    low, high = ends_of(layer.activation)
    if low == 0.0:
        return kl.ReLU(high, name=layer.name, dtype="float32")
    return kl.Activation(layer.activation, name=layer.name, dtype="float32")


def _one_or_all(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _folded(layer: QuantizedLinear) -> Any:
    """Return the plain Keras layer for the inference of a quantized layer, without rounding."""
    config = layer.layer.get_config()
    own = layer.activation in FUSED
    config.update(
        name=layer.name if own else f"{layer.name}_before",
        use_bias=True,
        activation=(own and layer.activation) or "linear",
        dtype="float32",
    )
    return type(layer.layer).from_config(config)


def _fill(made: Any, layer: QuantizedLinear) -> None:
    scale, shift = (ops.convert_to_numpy(v).astype(np.float64) for v in layer.scale_and_shift())
    kernel = ops.convert_to_numpy(layer.layer.kernel).astype(np.float64)
    laid = ops.convert_to_numpy(layer.kernel_type.along(scale, kernel.shape))
    made.kernel.assign(kernel * laid)
    made.bias.assign(shift)


class _IntegerNetwork(_Network):
    """Builds the network with fake quantizations, in which a grid is a `Grid`."""

    def __init__(self, model: keras.Model, bits: int, rounding: str) -> None:
        super().__init__(model)
        self.bits = bits
        self.rounding = rounding
        self.weights: list[Weights] = []
        self.markers: dict[np.float32, str] = {}
        self.left_float: set[str] = set()
        self._grids: dict[int, Grid] = {}

    def call(self, call: Call) -> list[Any]:
        """Build a call and record the grids of its outputs."""
        results = super().call(call)
        if isinstance(call.op, Source):
            return results
        layer = call.op.operation
        if isinstance(layer, Quantized):
            grid = results[-1]
        else:
            grid = self._grids.get(id(call.inputs[0]))
            if grid is None or not keeps_grid(layer):
                self.left_float.add(call.name)
                # The converter names the last operator after the output.
                outputs = [value.is_output for value in call.outputs]
                return [
                    self.apart(call, result) if last else result
                    for result, last in zip(results, outputs, strict=True)
                ]
            # Converters need the grid of a ReLU repeated, and pass no grid on to several users.
            if type(layer) is kl.ReLU or any(len(value.uses) > 1 for value in call.outputs):
                results = [
                    FakeQuantized(grid, name=self.graph.unique_name(f"{call.name}_grid"))(result)
                    for result in results
                ]
        self._grids.update((id(value), grid) for value in call.outputs)
        return results

    def operands(self, call: Call) -> list[Any]:
        """Return the values that a call reads, apart from grids where it computes with floats.

        TensorFlow's converter gives the mean, the pool and the resized form of a quantized value
        its grid, and the operand of such an operator that of its result.
        """
        values, layer = super().operands(call), call.op.operation
        if isinstance(layer, Quantize):
            computed = not isinstance(call.inputs[0].producer.op, Source)
            return [self.apart(call, values[0])] if computed else values
        if isinstance(layer, Quantized) or keeps_grid(layer):
            return values
        return [
            self.apart(call, value) if id(read) in self._grids else value
            for read, value in zip(call.inputs, values, strict=True)
        ]

    def apart(self, call: Call, value: Any) -> Any:
        """Return a value that converters cannot give the grid of another one."""
        name = self.graph.unique_name(f"{call.name}_apart")
        return FakeQuantized(None, before=functools.partial(self.marked, FENCE), name=name)(value)

    def quantized(self, layer: Quantized, call: Call, inputs: list[Any]) -> list[Any]:
        name = self.graph.own_name(call, layer.name)
        if isinstance(layer, QuantizedLinear):
            grid = None if layer.opened else layer_grid(layer)
            weights = self._weights(layer, inputs[1])
            kind = IntegerLinear
            fixed_point = self.rounding == "double" or self.bits > 8
            if fixed_point and not layer.kernel_type.per_channel:
                kind = IntegerDense
            repeated = inputs[1] if len(call.inputs[0].uses) > 1 else None
            made = kind(
                layer.layer,
                layer.kernel_type,
                weights,
                layer.activation,
                grid,
                repeated,
                name=name,
            )
            return [made(inputs[0]), grid]
        keeps = isinstance(layer, (QuantizedAveragePooling, QuantizedResizing))
        grid = inputs[1] if keeps else layer_grid(layer)
        before: Any = layer.plain()
        if isinstance(layer, QuantizedConcatenate):
            before = functools.partial(self.joined, layer, grid)
        elif isinstance(layer, QuantizedExtreme):
            before = functools.partial(self.extreme, layer, grid)
        elif isinstance(layer, QuantizedFunction):
            marked = _MARKED[self.bits].get(layer.function)
            if marked is not None:
                before = functools.partial(self.marked, marked)
        made = FakeQuantized(grid, layer.activation, before, name=name)
        return [made(_one_or_all(layer.operands(inputs))), grid]

    def joined(self, layer: QuantizedConcatenate, grid: Grid, values: list[Any]) -> Any:
        """Concatenate values; each that changes its grid is requantized before."""
        parts = [
            fake_quantized(value, None, grid) if opened else self.requantized(value, grid)
            for value, opened in zip(values, layer.opened, strict=True)
        ]
        return ops.concatenate(parts, layer.axis)

    def extreme(self, layer: QuantizedExtreme, grid: Grid, values: list[Any]) -> Any:
        """Return the greatest or the least of values, each requantized before."""
        chosen = ops.maximum if layer.greatest else ops.minimum
        return functools.reduce(chosen, [self.requantized(value, grid) for value in values])

    def requantized(self, value: Any, grid: Grid) -> Any:
        """Return a value on another grid."""
        return fake_quantized(self.marked("QUANTIZE", value), None, grid)

    def marked(self, kind: str, value: Any) -> Any:
        """Mark an operator."""
        import tensorflow as tf

        slope = np.float32(_MARKER * (1.0 + len(self.markers) * 2.0**-20))
        self.markers[slope] = kind
        return tf.nn.leaky_relu(value, float(slope))

    def _weights(self, layer: QuantizedLinear, grid: Grid) -> Weights:
        if len(self.weights) == _MARKS:
            raise UserError(f"A model trained in integers has at most {_MARKS} linear layers.")
        kernel, steps, bias = (
            ops.convert_to_numpy(v) for v in layer.integer_weights(ops.convert_to_tensor(grid.step))
        )
        mark = np.float32(1 + len(self.weights) / _MARKS)
        weights = Weights(
            layer.name,
            kernel,
            layer.kernel_type.channels,
            steps,
            bias,
            grid.step,
            mark,
            layer.weight_bits,
        )
        self.weights.append(weights)
        return weights


def layer_grid(layer: Quantized) -> Grid:
    """Return the current grid of a layer's output."""
    found = layer.output_range
    if layer.fixed is not None:
        return Grid(np.float32(layer.fixed[0]), layer.fixed[1], found.bits)
    step, zero = ops.convert_to_numpy(
        grid_of(found.low.value, found.high.value, found.bits, symmetric=found.bits > 8)
    )
    return Grid(np.float32(step), int(zero), found.bits)
