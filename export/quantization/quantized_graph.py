"""A quantization-aware model while it is built: its values, layers, names and fused activations."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import keras
from keras import layers as kl
from keras import tree

from ...toolkit.quantize_aware.linear import QuantizedLinear
from ...toolkit.quantize_aware.operators import Quantize
from ...toolkit.quantize_aware.ranges import Range
from ..fold.graph import ActivationOp, Call, Graph, Kept, Value
from ..fold.keras_graph import kind_of
from .integer_operations import fusable


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


class QuantizedGraph(abc.ABC):
    """The new network; a subclass builds the operators.

    Attributes:
        graph: The folded graph.
        live: Calls of linear layers to the norm after each that stays trainable.
        choices: The options.
        values: What was built, by `id` of the value of the graph.
        layers: Layers without quantization, by `id` of the op.
        linear_layers: The layers built for each linear layer, by `id` of the op.
        quantized: Values of floats behind their quantizer, by `id` of the value.
        fused: Activations that are part of the operator before them.
        fills: Actions that set weights, once all layers have been built.
        renamed: Names of separate activations that carry the name of their layer, by `id`.
    """

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
        """Build all layers and return the model, with the inputs and outputs of the graph."""
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

    @abc.abstractmethod
    def call(self, call: Call) -> list[BuiltValue]:
        """Build the layer of a call and return its output values."""

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
        args, kwargs = call.arguments(tensors)
        return tree.flatten(layer(*args, **kwargs))

    def same(self, call: Call) -> Any:
        """Return the unquantized copy of a layer, built once."""
        op = call.op
        layer = self.layers.get(id(op))
        if layer is None and isinstance(op, ActivationOp):
            layer = kl.Activation(op.function, name=self.name_of(call), dtype="float32")
        elif layer is None:
            config = {**in_float32(op.operation.get_config()), "name": self.name_of(call)}
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


def _repeated_names(graph: Graph) -> list[str]:
    """Return the names that several outputs have, since one layer computes them."""
    named: dict[str, set[int]] = {}
    for value, name in zip(graph.outputs, graph.output_names, strict=True):
        named.setdefault(name, set()).add(id(value))
    return [name for name, values in named.items() if len(values) > 1]


def _packed(structure: Any, tensors: list[Any]) -> Any:
    return tree.map_structure(lambda slot: tensors[slot.index], structure)


def in_float32(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a layer with float32 as its dtype."""
    return {**config, "dtype": "float32"} if "dtype" in config else config
