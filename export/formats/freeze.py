"""Converts a Keras model to a frozen TensorFlow graph, from which all formats are written.

The graph is traced through `keras.Model.stateless_call` with the weights as arguments, which are
then replaced by constants, so that there are no variables to freeze. (The freezing of the
converters takes half of their time and sometimes leaves variables of Keras 3 models.) Functions
inside layers are inlined, since Keras wraps grouped convolutions in a compiled function that no
converter can read. The name of every op begins with the name of its Keras layer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from ...artifacts.manifest import TensorSpec
from ...errors import UserError
from ..fold.backend import require_tensorflow, view_of
from ..fold.scope_names import refused_layers
from ..fold.traced_functions import inlined_functions
from ..layer_codes import CODED_LAYER, readable_name
from ..not_running import not_running
from ..quantization.quantizer_choices import IN_FLOATS
from ..signature import Signature, as_functional, unique_names
from . import complex_numbers, fourier
from .expansions import expand
from .rewrites import in_single_precision, keep_needed, plain_sums, put_constants, redirect
from .rewrites_3d import split_grouped_conv3d
from .stand_ins import put_stand_in, stand_ins
from .unroll import Loops, unrolled

if TYPE_CHECKING:
    import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class FrozenGraph:
    """A network as one TensorFlow graph without variables.

    Attributes:
        graph_def: `tf.compat.v1.GraphDef`; its inputs are the placeholders `input_0`, `input_1`,
            …, its outputs the identities `output_0`, `output_1`, ….
        inputs: The placeholders, symbolic, with their static shapes.
        outputs: The outputs, symbolic.
        signature: Exported names and shapes; the batch dimension is fixed unless the user wants it
            free.
        layer_names: Code of a layer in op names to the layer's path, see `layer_codes`.
        steps: Name of each recurrent layer that is unrolled to the number of its steps.
        weights: Name of each constant that is a stand-in for a large weight to the weight, see
            `stand_ins`.
    """

    graph_def: tf.compat.v1.GraphDef
    inputs: tuple[tf.Tensor, ...]
    outputs: tuple[tf.Tensor, ...]
    signature: Signature
    layer_names: dict[str, str]
    steps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def with_weights(self) -> FrozenGraph:
        """Return the network with its large weights as constants of the graph."""
        import tensorflow as tf

        if not self.weights:
            return self
        graph_def = tf.compat.v1.GraphDef()
        graph_def.CopyFrom(self.graph_def)
        put_constants(graph_def, self.weights)
        return dataclasses.replace(self, graph_def=graph_def, weights={})

    def without_values(self) -> FrozenGraph:
        """Return the network without the values of its constants, for messages about its ops."""
        import tensorflow as tf

        graph_def = tf.compat.v1.GraphDef(library=self.graph_def.library)
        for node in self.graph_def.node:
            kept = graph_def.node.add(name=node.name, op=node.op, input=node.input)
            for name, attribute in node.attr.items():
                if not attribute.HasField("tensor"):
                    kept.attr[name].CopyFrom(attribute)
        return dataclasses.replace(self, graph_def=graph_def, weights={})

    def readable_name(self, name: str) -> str:
        """Return the name of an op or tensor with codes replaced by the names of Keras layers."""
        return readable_name(name, self.layer_names)

    def layer_of(self, op: str) -> str:
        """Return the path of the innermost Keras layer that an op belongs to; empty for none."""
        layers = list(CODED_LAYER.finditer(op))
        return self.readable_name(op[: layers[-1].end()]) if layers else ""

    @property
    def output_layers(self) -> dict[str, str]:
        """Name of the op of each output to the path of the layer that computes it."""
        sources = {node.name: node.input[0] for node in self.graph_def.node if node.input}
        return {t.op.name: self.layer_of(sources[t.op.name]) for t in self.outputs}

    def with_layers(self, kinds: Sequence[str]) -> str:
        """Return a comma-separated list of types of ops, each with the layers that contain it."""
        layers: dict[str, list[str]] = {kind: [] for kind in kinds}
        bodies = [self.graph_def.node, *(f.node_def for f in self.graph_def.library.function)]
        for node in (node for body in bodies for node in body):
            layer = self.layer_of(node.name)
            if node.op in layers and layer and layer not in layers[node.op]:
                layers[node.op].append(layer)
        places = {
            kind: f"layer {', '.join(map(repr, found))}" if found else "a keras.ops function"
            for kind, found in layers.items()
        }
        return ", ".join(f"{kind} ({place})" for kind, place in places.items())

    def draws_random_numbers(self, ops: Sequence[str]) -> str:
        """Return the refusal of random numbers if some types of ops draw any; else empty."""
        random = [op for op in ops if "Random" in op]
        if not random:
            return ""
        return (
            f"The model draws random numbers when it predicts ({self.with_layers(random)}), which "
            "no file repeats. Let it return what that layer reads, such as a mean and a variance, "
            "and draw the numbers in the app."
        )

    def computes_with_complex_numbers(self, ops: Sequence[str] = ()) -> str:
        """Return the refusal of complex numbers that are not computed as real ones; else empty.

        Args:
            ops: Types of ops that a format lacks; empty for any.
        """
        import tensorflow as tf

        complex_types = {tf.complex64.as_datatype_enum, tf.complex128.as_datatype_enum}
        kinds = sorted({
            node.op
            for node in self.graph_def.node
            if complex_types & {attribute.type for attribute in node.attr.values()}
        })  # fmt: skip
        if not kinds or (ops and not set(kinds) & set(ops)):
            return ""
        unknown = [kind for kind in kinds if kind not in complex_numbers.COMPUTED]
        reason = (
            f"compute the real and the imaginary part of {self.with_layers(unknown)} as two tensors"
            if unknown
            else f"let {self.with_layers([kind for kind in kinds if 'FFT' in kind])} transform at "
            f"most {fourier.LONGEST} numbers, in sizes that are fixed"
        )
        return f"Neither TFLite nor ONNX can compute with complex numbers: {reason}."

    def until(self, ops: Sequence[str]) -> FrozenGraph:
        """Return the part of the network that ends in the given ops, which are its outputs."""
        import tensorflow as tf

        inputs = [tensor.op.name for tensor in self.inputs]
        graph_def = tf.compat.v1.GraphDef()
        graph_def.CopyFrom(self.graph_def)
        keep_needed(graph_def, [*inputs, *ops])
        with tf.Graph().as_default() as part:
            tf.import_graph_def(graph_def, name="")
        outputs = tuple(part.get_tensor_by_name(f"{op}:0") for op in ops)
        described = tuple(
            TensorSpec(f"output_{i}", tuple(t.shape.as_list()), t.dtype.name)
            for i, t in enumerate(outputs)
        )
        return dataclasses.replace(
            self,
            graph_def=graph_def,
            inputs=tuple(part.get_tensor_by_name(f"{name}:0") for name in inputs),
            outputs=outputs,
            signature=Signature(self.signature.inputs, described),
        )


def freeze(
    model: keras.Model,
    signature: Signature,
    *,
    batch_size: int | None = 1,
    channels_first: bool = False,
    loops: Loops = Loops.KEPT,
) -> FrozenGraph:
    """Trace a float32 model into one graph with its weights as constants.

    Args:
        model: The folded model. The names of its layers are changed during tracing and restored.
        signature: Exported names and shapes, in the order of the model's inputs and outputs.
        batch_size: The fixed batch size; None leaves it free.
        channels_first: Whether inputs and outputs with spatial axes are channels-first.
        loops: Treatment of the loops of recurrent layers.

    Returns:
        The graph.

    Raises:
        UserError: The backend is not TensorFlow, or the model has state that a constant graph
            cannot represent.
    """
    require_tensorflow("Export")
    model = as_functional(model)
    arrange = _channels_first if channels_first else _as_it_is
    inputs = tuple(arrange(with_batch(tensor, batch_size)) for tensor in signature.inputs)
    with contextlib.ExitStack() as stack:
        steps = stack.enter_context(unrolled(model, loops))
        names = stack.enter_context(_coded_layer_names(model))
        stack.enter_context(_formulas_in_floats(model))
        stack.enter_context(inlined_functions())
        trace = _trace(model, inputs, signature, arrange, names)
    constants = trace.constants
    replaced = trace.replaced | split_grouped_conv3d(trace.graph, constants)
    ins = [f"input_{i}" for i in range(len(inputs))]
    outs = [f"output_{i}" for i in range(len(trace.outputs))]
    graph_def = trace.graph.as_graph_def()
    redirect(graph_def, replaced, [*ins, *outs])
    numbers = stand_ins(constants)
    for node in graph_def.node:
        if node.name in numbers:
            put_stand_in(node, numbers[node.name], constants[node.name].shape)
    put_constants(graph_def, {n: value for n, value in constants.items() if n not in numbers})
    plain_sums(graph_def, trace.graph)
    if not any(tensor.dtype == "float64" for tensor in (*inputs, *trace.outputs)):
        in_single_precision(graph_def)
    return FrozenGraph(
        graph_def,
        tuple(trace.graph.get_tensor_by_name(f"{name}:0") for name in ins),
        tuple(trace.graph.get_tensor_by_name(f"{name}:0") for name in outs),
        Signature(inputs, trace.outputs),
        _decode_calls(graph_def, names),
        steps,
        {name: constants[name] for name in numbers},
    )


@dataclasses.dataclass(frozen=True)
class _Trace:
    """A traced network with placeholders instead of weights.

    Attributes:
        graph: The graph.
        constants: Name of the placeholder op of each weight to the value of the weight.
        outputs: The outputs of the file.
        replaced: Name of each op that formats lack to the name of its replacement.
    """

    graph: tf.Graph
    constants: dict[str, np.ndarray]
    outputs: tuple[TensorSpec, ...]
    replaced: dict[str, str]


def _trace(
    model: keras.Model,
    inputs: Sequence[TensorSpec],
    signature: Signature,
    arrange: Callable[[TensorSpec], TensorSpec],
    names: Mapping[int, str],
) -> _Trace:
    """Trace a model with its weights as arguments, which keeps them out of the traced function."""
    import tensorflow as tf

    weights = [*model.trainable_variables, *model.non_trainable_variables]
    trainable = len(model.trainable_variables)
    described: list[TensorSpec] = []

    def call(data: Sequence[tf.Tensor], weights: Sequence[tf.Tensor]) -> None:
        ordered = [_to_keras_order(v, t.axes) for v, t in zip(data, inputs, strict=True)]
        result, _ = model.stateless_call(
            weights[:trainable],
            weights[trainable:],
            keras.tree.pack_sequence_as(model.input, ordered),
            training=False,
        )
        results = keras.tree.flatten(result)
        described.extend(_described(signature, results, arrange))
        for index, (value, tensor) in enumerate(zip(results, described, strict=True)):
            tf.identity(_to_file_order(value, tensor.axes), name=f"output_{index}")

    def readable(text: str) -> str:
        return CODED_LAYER.sub(lambda match: names.get(int(match[1]), match[0]), text)

    try:
        function = tf.function(call).get_concrete_function(
            [tf.TensorSpec(t.shape, t.dtype, name=f"input_{i}") for i, t in enumerate(inputs)],
            [tf.TensorSpec(w.shape, w.dtype, name=f"weight_{i}") for i, w in enumerate(weights)],
        )
    except UserError:
        raise
    except Exception as error:  # whatever the code of a layer raises
        raise not_running(error, readable) from error
    constants = {f"weight_{i}": view_of(weight) for i, weight in enumerate(weights)}
    replaced = expand(function)
    captured = _captured(function, len(inputs) + len(weights), set(replaced), names)
    return _Trace(function.graph, constants | captured, tuple(described), replaced)


def _captured(
    function: Any, arguments: int, replaced: set[str], names: Mapping[int, str]
) -> dict[str, np.ndarray]:
    """Return the constants and variables that layers use in addition to Keras weights.

    Args:
        function: The traced function.
        arguments: Number of its inputs that are not captured.
        replaced: Names of the ops that have a replacement.
        names: Number of each layer to its name.

    Raises:
        UserError: A layer writes to such a variable, or has a lookup table.
    """
    constants: dict[str, np.ndarray] = {}
    for outside, inside in zip(function.captured_inputs, function.inputs[arguments:], strict=True):
        if inside.dtype.name != "resource":
            constants[inside.op.name] = outside.numpy()
            continue
        variable = next((v for v in function.variables if v.handle is outside), None)
        readers = [op for op in inside.consumers() if op.name not in replaced]
        if not readers:
            continue
        if variable is None or any(op.type != "ReadVariableOp" for op in readers):
            coded = [int(match[1]) for match in CODED_LAYER.finditer(readers[0].name)]
            if any(op.type.startswith("LookupTable") for op in readers):
                raise UserError(
                    f"The layer {names[coded[-1] if coded else 0]!r} looks up text in a table, "
                    "which neither TFLite nor ONNX supports. Feed the model numbers instead of "
                    "text."
                )
            raise UserError(
                f"The layer {names[coded[-1] if coded else 0]!r} has state that is not a Keras "
                f"weight ({', '.join(sorted({op.type for op in readers}))}). Create it with "
                "`self.add_weight` so that it can be exported, or remove the layer."
            )
        constants |= {op.name: variable.numpy() for op in readers}
    return constants


def _described(
    signature: Signature,
    results: Sequence[tf.Tensor],
    arrange: Callable[[TensorSpec], TensorSpec],
) -> tuple[TensorSpec, ...]:
    """Return the traced outputs; an output with the name of an input is renamed in the file."""
    inputs = [tensor.name for tensor in signature.inputs]
    names = unique_names([*inputs, *(t.name for t in signature.outputs)])[len(inputs) :]
    return tuple(
        arrange(
            dataclasses.replace(
                tensor,
                name=name,
                keras_name=tensor.name,
                shape=tuple(result.shape.as_list()),
                dtype=result.dtype.name,
            )
        )
        for tensor, name, result in zip(signature.outputs, names, results, strict=True)
    )


def _as_it_is(tensor: TensorSpec) -> TensorSpec:
    return tensor


def _channels_first(tensor: TensorSpec) -> TensorSpec:
    """Return `tensor` channels-first if it has spatial axes."""
    rank = len(tensor.shape)
    if rank < 3:
        return tensor
    axes = (0, rank - 1, *range(1, rank - 1))
    return dataclasses.replace(tensor, shape=tuple(tensor.shape[i] for i in axes), axes=axes)


def _to_file_order(value: tf.Tensor, axes: tuple[int, ...] | None) -> tf.Tensor:
    import tensorflow as tf

    return value if axes is None else tf.transpose(value, axes)


def _to_keras_order(value: tf.Tensor, axes: tuple[int, ...] | None) -> tf.Tensor:
    import tensorflow as tf

    if axes is None:
        return value
    return tf.transpose(value, [axes.index(axis) for axis in range(len(axes))])


def with_batch(tensor: TensorSpec, batch_size: int | None) -> TensorSpec:
    """Return `tensor` with its first dimension set to `batch_size`."""
    return dataclasses.replace(tensor, shape=(batch_size, *tensor.shape[1:]))


def _all_layers(model: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """Yield a model and all of its layers, including those of nested models, each once."""
    seen: set[int] = set()
    pending: list[keras.layers.Layer] = [model]
    while pending:
        layer = pending.pop(0)
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        yield layer
        pending.extend(getattr(layer, "layers", ()))
    yield from (layer for layer in refused_layers(model) if id(layer) not in seen)


@contextlib.contextmanager
def _coded_layer_names(model: keras.Model) -> Iterator[dict[int, str]]:
    """Rename every layer by its number within the block; yield number to original name.

    Functions of `keras.ops` in a Functional model get a scope with their number as well.
    """
    layers = list(_all_layers(model))
    functions = _functions(layers)
    originals = [part.name for part in (*layers, *functions)]
    try:
        for number, layer in enumerate(layers):
            layer.name = f"k{number}k"
        for number, function in enumerate(functions, start=len(layers)):
            function.call = functools.partial(_in_scope, f"k{number}k", function.call)
        yield dict(enumerate(originals))
    finally:
        for layer, name in zip(layers, originals, strict=False):
            layer.name = name
        for function in functions:
            del function.call  # restores the method of the class


# Layers whose weights are given by a formula. Their results are exact only with all of its digits.
_FORMULAS = (keras.layers.STFTSpectrogram,)


@contextlib.contextmanager
def _formulas_in_floats(model: keras.Model) -> Iterator[None]:
    """Mark the ops of layers of a formula, which dynamic-range and int4 files keep in floats."""
    layers = [layer for layer in _all_layers(model) if isinstance(layer, _FORMULAS)]
    try:
        for layer in layers:
            layer.call = functools.partial(_in_scope, IN_FLOATS, layer.call)
        yield
    finally:
        for layer in layers:
            del layer.call  # restores the method of the class


def _functions(layers: Sequence[keras.layers.Layer]) -> list[Any]:
    """Return the functions of `keras.ops` that Functional models among `layers` call, each once.

    Those that compute masks are left out: the user knows only the layer whose mask it is.
    """
    masks = _of_masks(layers)
    operations = (op for layer in layers for op in getattr(layer, "operations", ()))
    functions = {id(op): op for op in operations if not isinstance(op, keras.Layer)}
    return [function for key, function in functions.items() if key not in masks]


def _of_masks(layers: Sequence[keras.layers.Layer]) -> set[int]:
    """Return the ids of the functions that compute masks."""
    found: set[int] = set()
    for layer in layers:
        waiting = [node.arguments.kwargs.get("mask") for node in layer._inbound_nodes]
        waiting = [mask for mask in keras.tree.flatten(waiting) if mask is not None]
        while waiting:
            function = waiting.pop()._keras_history.operation
            if not isinstance(function, keras.Layer) and id(function) not in found:
                found.add(id(function))
                waiting += [t for node in function._inbound_nodes for t in node.input_tensors]
    return found


def _in_scope(name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    import tensorflow as tf

    with tf.name_scope(name):
        return call(*args, **kwargs)


def _decode_calls(graph_def: tf.compat.v1.GraphDef, names: dict[int, str]) -> dict[str, str]:
    """Map every coded scope to a layer name, with the calls of a layer numbered in order."""
    scopes: dict[int, list[str]] = {}
    for node in graph_def.node:
        for match in CODED_LAYER.finditer(node.name):
            calls = scopes.setdefault(int(match[1]), [])
            if match[0] not in calls:
                calls.append(match[0])
    decoded = {}
    for number, calls in scopes.items():
        for call, scope in enumerate(calls, start=1):
            name = names[number] if call == 1 else f"{names[number]}#{call}"
            decoded[scope] = "" if number == 0 else name
    return decoded
