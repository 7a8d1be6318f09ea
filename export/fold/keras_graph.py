"""Reads a Keras model into a `Graph`.

Keras has no public API to walk a functional graph call by call. This file and `declarations`
contain all uses of its internals: ``KerasTensor._keras_history``, ``Operation._inbound_nodes`` and
``_outbound_nodes``, the attributes of a ``Node`` and ``Layer._flatten_layers``.

Nested models are expanded, and so are subclassed models and composite layers: their ``call`` is
traced on symbolic inputs, and the nodes that this adds to the user's layers are removed again.

Keras attaches masks to the values of a run, where layers such as MultiHeadAttention look for them.
A composite layer that attaches one to its result is not expanded in a model that has masks.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import layers as kl
from keras import tree

from ...errors import UserError
from ...toolkit.quantize_aware.quantized import Quantized
from .declarations import as_computed, is_misdeclared, returns_integers
from .graph import Call, Graph, Kept, Slot, Source, Value

Env = dict[int, Value]

# Layers that convert the norm to the type of their input; some norms compute in that type.
_TRUNCATES = (
    *(kl.LayerNormalization, kl.GroupNormalization, kl.RMSNormalization),
    kl.SpectralNormalization,
)


def read_graph(
    model: keras.Model, *, time_in_batch: Callable[[keras.Layer], bool] = lambda layer: False
) -> Graph:
    """Read a built Keras model of any kind.

    Args:
        model: Sequential, Functional (nested, shared, multi-input and -output) or subclassed. Not
            changed.
        time_in_batch: Selects the ``TimeDistributed`` layers that are read as the layer inside,
            with the steps as samples of a larger batch.

    Returns:
        The graph, in which every operation is `Kept`.

    Raises:
        UserError: The model is not built, or its ``call`` cannot be traced symbolically.
    """
    if not isinstance(model, keras.Model):
        raise UserError(f"Expected a Keras model. Received: {type(model).__name__}")
    graph = Graph(model.name)
    if _is_functional(model):
        inputs, outputs = _structures(model)
        _read_into(graph, inputs, outputs, _Reader(graph, time_in_batch, _makes_masks(model)))
        return graph
    inputs = _subclassed_inputs(model)
    with _traced(model, (inputs,), {}) as (outputs, problem):
        if problem:
            raise UserError(
                f"The layers of {model.name!r} could not be read: {problem}. Use only Keras layers "
                "and keras.ops in `call`, or build the model with the functional API."
            )
        _read_into(graph, inputs, outputs, _Reader(graph, time_in_batch, _makes_masks(model)))
    return graph


def call_structure(model: keras.Model) -> Any:
    """Return the structure of the inputs of a built model, with a symbolic input at each leaf."""
    return _structures(model)[0] if _is_functional(model) else _subclassed_inputs(model)


def operation_of(tensor: keras.KerasTensor) -> Any:
    """Return the operation that computes a symbolic tensor."""
    return tensor._keras_history.operation


def input_name(tensor: keras.KerasTensor) -> str:
    """Return the name of a model's symbolic input: that of its input layer.

    Keras numbers inputs without a name (`keras_tensor_7`), and saves the name of the layer.
    """
    source = operation_of(tensor)
    return str(source.name if isinstance(source, keras.layers.InputLayer) else tensor.name)


def kind_of(operation: Any) -> str:
    """Return the class name of a Keras operation, such as ``Add`` of keras.ops.

    Many operations have no public class that could be compared.

    Returns:
        The class name for operations of Keras itself, an empty string for others.
    """
    cls = type(operation)
    return cls.__name__ if cls.__module__.partition(".")[0] == "keras" else ""


def _is_functional(model: Any) -> bool:
    """Return whether a model is Functional or Sequential and does not override ``call``."""
    if isinstance(model, keras.Sequential):
        return type(model).call is keras.Sequential.call
    if not isinstance(model, keras.Function):
        return False
    cls: Any = type(model)
    functional = next(c for c in cls.__mro__ if c.__name__ == "Functional")
    return bool(cls.call is functional.call)


def _structures(model: Any) -> tuple[Any, Any]:
    """Return the structures of symbolic inputs and outputs of a functional model."""
    if isinstance(model, keras.Sequential):
        if not model.built:
            raise UserError(
                f"The model {model.name!r} is not built. Call it once, or add an Input layer."
            )
        return model.inputs[0], model.outputs[0]
    return model.input, model.output


def _subclassed_inputs(model: keras.Model) -> Any:
    """Create symbolic inputs with the shapes that a subclassed model was built with.

    They have the name of the first parameter of `call`, with a number if it takes several.
    """
    config = model.get_build_config() if model.built else None
    if not config:
        raise UserError(
            f"The model {model.name!r} is not built, so its input shape is unknown. "
            "Call it once on real data first."
        )
    shapes = config.get("input_shape") or next(iter(config["shapes_dict"].values()))

    parameter = next(iter(inspect.signature(model.call).parameters), "inputs")

    def source(name: str, shape: Sequence[int | None]) -> keras.KerasTensor:
        # The batch size of the first call is not a property of the model.
        return keras.Input(batch_shape=(None, *shape[1:]), name=name, dtype=model.input_dtype)

    if _is_shape(shapes):
        return source(parameter, shapes)
    if isinstance(shapes, dict):
        return {key: source(str(key), shape) for key, shape in shapes.items()}
    return [source(f"{parameter}_{place}", shape) for place, shape in enumerate(shapes)]


def _is_shape(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(d is None or isinstance(d, int) for d in value)


def _read_into(graph: Graph, inputs: Any, outputs: Any, reader: _Reader) -> None:
    """Fill an empty graph from symbolic inputs and outputs."""
    env: Env = {}
    for tensor in tree.flatten(inputs):
        name = graph.unique_name(input_name(tensor))
        source = graph.add(Call(Source(tensor, name), []), [(tensor.shape, tensor.dtype)])
        env[id(tensor)] = source.output
        graph.inputs.append(source.output)
    graph.outputs = reader.expand(tree.flatten(outputs), env, "")
    for value in graph.outputs:
        value.is_output = True
    graph.output_names = [t._keras_history.operation.name for t in tree.flatten(outputs)]
    graph.input_structure = _with_slots(inputs)
    graph.output_structure = _with_slots(outputs)


def _with_slots(structure: Any) -> Any:
    """Replace the leaves of a structure by slots in flattening order."""
    slots = [Slot(i) for i in range(len(tree.flatten(structure)))]
    return tree.pack_sequence_as(structure, slots)


class _Reader:
    """Converts Keras nodes to calls, with one op for each operation however often it is called."""

    def __init__(
        self, graph: Graph, time_in_batch: Callable[[keras.Layer], bool], masks: bool
    ) -> None:
        self.graph = graph
        self.time_in_batch = time_in_batch
        self.masks = masks
        self.ops: dict[int, Kept] = {}
        self.inside: list[str] = []  # names of the nested models that are being read

    def expand(self, outputs: list[keras.KerasTensor], env: Env, prefix: str) -> list[Value]:
        """Add all calls between the tensors in ``env`` and ``outputs``, without recursion."""
        stack = outputs[::-1]
        while stack:
            tensor = stack[-1]
            if id(tensor) in env:
                stack.pop()
                continue
            history = tensor._keras_history
            node = history.operation._inbound_nodes[history.node_index]
            waiting = [t for t in node.input_tensors if id(t) not in env]
            if waiting:
                stack.extend(reversed(waiting))
                continue
            stack.pop()
            values = self.call(node, env, prefix)
            for out, value in zip(node.outputs, values, strict=True):
                env[id(out)] = value
        return [env[id(t)] for t in outputs]

    def call(self, node: Any, env: Env, prefix: str) -> list[Value]:
        """Add one node: expanded if it is a network itself, otherwise as one call."""
        operation = node.operation
        inputs = [env[id(t)] for t in node.input_tensors]
        if isinstance(operation, keras.Function) and _is_functional(operation):
            return self.inline(operation.inputs, operation.outputs, inputs, operation.name)
        if isinstance(operation, keras.Sequential):
            return self.inline(operation.inputs, operation.outputs, inputs, operation.name)
        if type(operation) is kl.TimeDistributed and self.time_in_batch(operation):
            return self.merged_time(operation, inputs[0])
        if _is_composite(operation) and not (self.masks and operation.supports_masking):
            values = self.trace(node, inputs)
            if values is not None:
                return values
        return self.keep(node, inputs, prefix)

    def inline(
        self,
        inner_inputs: list[keras.KerasTensor],
        inner_outputs: list[keras.KerasTensor],
        inputs: list[Value],
        prefix: str,
    ) -> list[Value]:
        """Add the calls of a nested network in place of its call."""
        env = {
            id(tensor): self.adapted(value, tensor, value.dtype, prefix)
            for tensor, value in zip(inner_inputs, inputs, strict=False)
        }
        self.inside.append(prefix)
        values = self.expand(list(inner_outputs), env, prefix)
        self.inside.pop()
        return values

    def adapted(self, value: Value, wanted: Any, dtype: str, prefix: str) -> Value:
        """Convert a value to a dtype and a rank, as Keras does at the input of a nested model.

        Args:
            value: The value.
            wanted: A tensor with the wanted dtype and rank.
            dtype: The actual dtype of the value.
            prefix: Prefix of layer names.
        """
        symbol = adapted = keras.KerasTensor(value.shape, dtype)
        if len(wanted.shape) < value.rank:
            adapted = keras.ops.squeeze(adapted, -1)
        elif len(wanted.shape) > value.rank:
            adapted = keras.ops.expand_dims(adapted, -1)
        if wanted.dtype != dtype:
            adapted = keras.ops.cast(adapted, wanted.dtype)
        (result,) = self.expand([adapted], {id(symbol): value}, prefix)
        return result

    def merged_time(self, wrapper: Any, value: Value) -> list[Value]:
        """Add the layer inside a ``TimeDistributed``, called on the steps as samples."""
        symbol = keras.KerasTensor(value.shape, value.dtype)
        with _unrecorded(wrapper):
            samples = keras.ops.reshape(symbol, (-1, *value.shape[2:]))
            result = wrapper.layer(samples)
            steps = keras.ops.reshape(result, (-1, value.shape[1], *result.shape[1:]))
            return self.expand([steps], {id(symbol): value}, wrapper.name)

    def trace(self, node: Any, inputs: list[Value]) -> list[Value] | None:
        """Add the calls inside a subclassed model or composite layer.

        If it cannot be traced, the reason is recorded and the result is None.
        """
        operation = node.operation
        symbols = [keras.Input(batch_shape=t.shape, dtype=t.dtype) for t in node.input_tensors]
        swap = {id(t): s for t, s in zip(node.input_tensors, symbols, strict=True)}
        args, kwargs = tree.map_structure(
            lambda x: swap.get(id(x), x), (node.arguments.args, node.arguments.kwargs)
        )
        with _traced(operation, args, kwargs) as (outputs, problem):
            if problem:
                self.graph.opaque[id(operation)] = problem
                return None
            flat = tree.flatten(outputs)
            return self.inline(symbols, flat, inputs, operation.name)

    def keep(self, node: Any, inputs: list[Value], prefix: str) -> list[Value]:
        """Add one node as one call."""
        operation = node.operation
        if inputs and is_misdeclared(operation, inputs[0]):
            self.graph.misdeclared = operation.name
        op = self.ops.get(id(operation))
        if op is None:
            op = Kept(operation, self.graph.unique_name(operation.name, prefix))
            self.ops[id(operation)] = op
            self.graph.paths[op.name] = "/".join((*self.inside, operation.name))
        if isinstance(operation, _TRUNCATES):
            inputs = [
                self.adapted(value, as_computed(tensor), value.dtype, prefix)
                for value, tensor in zip(inputs, node.input_tensors, strict=True)
            ]
        arguments = node.arguments
        args = kwargs = None
        simple = len(arguments.args) == 1 and not arguments.kwargs
        if not (simple and isinstance(arguments.args[0], keras.KerasTensor)):
            slots = iter(range(len(inputs)))
            args, kwargs = tree.map_structure(
                lambda x: Slot(next(slots)) if isinstance(x, keras.KerasTensor) else x,
                (arguments.args, arguments.kwargs),
            )
        call = Call(op, inputs, args, kwargs)
        values = self.graph.add(call, [(t.shape, t.dtype) for t in node.outputs]).outputs
        if returns_integers(node, [value.dtype for value in inputs]):
            values = [
                self.adapted(v, v, "int64", prefix) if "float" in v.dtype else v for v in values
            ]
        return values


def _is_composite(operation: Any) -> bool:
    """Return whether an operation is a custom layer composed of other layers."""
    if isinstance(operation, keras.Model):
        return True
    if not isinstance(operation, keras.Layer) or kind_of(operation):
        return False
    if isinstance(operation, Quantized):  # one operator of an integer file
        return False
    return len(layers_inside(operation)) > 1


def _makes_masks(model: keras.Model) -> bool:
    """Return whether a layer of a model computes a mask."""
    return any(
        isinstance(layer, kl.Masking)
        or (isinstance(layer, kl.Embedding) and layer.mask_zero)
        or (not kind_of(layer) and layer.supports_masking)
        for layer in layers_inside(model)
    )


def layers_inside(layer: keras.Layer) -> list[keras.Layer]:
    """Return a layer and all layers inside it."""
    return list(layer._flatten_layers())


@contextlib.contextmanager
def _traced(layer: Any, args: Any, kwargs: Any) -> Iterator[tuple[Any, str]]:
    """Call ``layer.call`` on symbolic tensors, and remove the nodes that this adds afterwards.

    Yields:
        The symbolic outputs and an empty string, or None and the reason why it is not possible.
    """
    with _unrecorded(layer):
        yield _trace(layer, args, kwargs)


@contextlib.contextmanager
def _unrecorded(layer: Any) -> Iterator[None]:
    """Remove the nodes that calls of a layer, or of layers inside it, add in this context."""
    layers = layers_inside(layer)
    marks = [(len(x._inbound_nodes), len(x._outbound_nodes)) for x in layers]
    try:
        yield
    finally:
        for inner, (inbound, outbound) in zip(layers, marks, strict=True):
            del inner._inbound_nodes[inbound:]
            del inner._outbound_nodes[outbound:]


def _trace(layer: Any, args: Any, kwargs: Any) -> tuple[Any, str]:
    own = [w.name for w in (*layer._trainable_variables, *layer._non_trainable_variables)]
    if own:
        return None, f"it has weights ({', '.join(own)}) outside any layer"
    if "training" in inspect.signature(layer.call).parameters:
        kwargs = {**kwargs, "training": False}
    try:
        outputs = layer.call(*args, **kwargs)
    except Exception as error:  # whatever the user's own code raises is the reason to report
        first_line = str(error).strip().partition("\n")[0]
        return (
            None,
            f"its `call` does not run on symbolic tensors ({type(error).__name__}: {first_line})",
        )
    if not all(isinstance(t, keras.KerasTensor) for t in tree.flatten(outputs)):
        return None, "its `call` returns something other than tensors"
    return outputs, ""
