"""Removes text processing and hashing, which neither TFLite nor ONNX supports.

The exported network begins after the layers that do it: each of their numeric outputs becomes an
input with the name of the layer. A last layer that converts numbers to text is removed as well. The
app must compute what was removed.
"""

from __future__ import annotations

import keras

from ....errors import UserError
from ..build import build
from ..graph import Call, Graph, Slot, Source, Value
from ..keras_graph import read_graph

# Keras hashes numbers by their decimal digits, as text.
_HASHES = (keras.layers.Hashing, keras.layers.HashedCrossing)


def cut_text(graph: Graph) -> list[str] | None:
    """Remove text processing up to the first numeric values, in place.

    Args:
        graph: The network.

    Returns:
        A sentence for each removed part that the app must compute; None if there is no text.

    Raises:
        UserError: The model only processes text, or an output is text made from several tensors.
    """
    notes = [_cut_output(graph, value) for value in graph.outputs if _is_text(value)]
    calls = [call for call in graph.calls() if _makes_numbers(call)]
    new: list[Value] = []
    for call in calls:
        for position, value in enumerate(call.outputs):
            if value.uses or value.is_output:
                new.append(_make_input(graph, call, value, position))
                notes.append(_note(graph, call, new[-1]))
    if not notes:
        return None
    alone = [
        name for name, value in zip(graph.output_names, graph.outputs, strict=True) if value in new
    ]
    if alone and len(alone) == len(graph.outputs):
        raise UserError(
            f"The model {graph.name!r} only processes text, which neither TFLite nor ONNX can do. "
            "Export the network after it."
        )
    if alone:
        raise UserError(
            f"The output {alone[0]!r} is made from text by a layer that neither TFLite nor ONNX "
            "can compute. Remove it from the outputs of the model; the app must compute it anyway."
        )
    if new:
        needed = {id(call) for call in graph.calls_before(graph.outputs)}
        kept = [value for value in graph.inputs if id(value.producer) in needed]
        graph.inputs = [*kept, *new]
        slots = [Slot(index) for index in range(len(graph.inputs))]
        names = [value.producer.name for value in graph.inputs]
        named = isinstance(graph.input_structure, dict)
        graph.input_structure = dict(zip(names, slots, strict=True)) if named else slots
        if named:  # Keras takes the entries of a dict in the order of their names
            order = sorted(range(len(names)), key=names.__getitem__)
            graph.inputs = [graph.inputs[index] for index in order]
            graph.input_structure = {names[i]: Slot(n) for n, i in enumerate(order)}
    return notes


def text_processing(model: keras.Model) -> keras.Model:
    """Return the removed part of a model that has text: from all its inputs to the new inputs.

    Its outputs have the names of the new inputs.
    """
    graph = read_graph(model)
    calls = [call for call in graph.calls() if _makes_numbers(call)]
    named = [
        (value, _name(graph, call, position))
        for call in calls
        for position, value in enumerate(call.outputs)
        if value.uses or value.is_output
    ]
    layers = build(graph, "float32", [value for value, _ in named])
    inputs = keras.tree.flatten(layers.input)
    flat = keras.Model(inputs, layers.outputs)
    flat.output_names = [name for _, name in named]
    return flat


def _is_text(value: Value) -> bool:
    layer = getattr(value.producer.op, "operation", None)
    if isinstance(layer, keras.layers.StringLookup) and layer.invert:
        return True  # Keras calls it int64
    return value.dtype == "string"


def _makes_numbers(call: Call) -> bool:
    """Return whether a call converts text, or numbers hashed as text, to numbers."""
    if isinstance(call.op, Source) or not call.inputs:
        return False
    hashes = isinstance(getattr(call.op, "operation", None), _HASHES)
    takes_text = hashes or any(map(_is_text, call.inputs))
    return takes_text and not any(map(_is_text, call.outputs))


def _make_input(graph: Graph, call: Call, value: Value, position: int) -> Value:
    """Replace a value that is computed from text by an input."""
    name = _name(graph, call, position)
    tensor = keras.KerasTensor(value.shape, value.dtype, name=name)
    source = graph.add(Call(Source(tensor, name), []), [(value.shape, value.dtype)])
    graph.replace_value(value, source.output)
    return source.output


def _name(graph: Graph, call: Call, position: int) -> str:
    """Return the name of the input in the place of an output of a call."""
    return call.name if position == 0 else graph.unique_name(f"{call.name}_{position}")


def _note(graph: Graph, call: Call, value: Value) -> str:
    layer = type(call.op.operation).__name__
    sources = [repr(call.name) for call in graph.calls_before(call.inputs) if not call.inputs]
    what = "text" if any(map(_is_text, call.inputs)) else "numbers that are hashed as text"
    several = len(sources) > 1
    shape = ", ".join(["N", *("?" if s is None else str(s) for s in value.shape[1:])])
    return (
        f"{'inputs' if several else 'input'} {' and '.join(sources)} "
        f"{'take' if several else 'takes'} {what}, which neither TFLite nor ONNX can process: the "
        f"app must compute the output of the layer {call.name!r} ({layer}) and feed it to the "
        f"input {value.producer.name!r}, {value.dtype} of shape ({shape})"
    )


def _cut_output(graph: Graph, value: Value) -> str:
    """Replace a text output by the numbers that it is made from; return a note."""
    call = value.producer
    while len(call.inputs) == 1 and _is_text(call.inputs[0]):
        call = call.inputs[0].producer
    if len(call.inputs) != 1:
        raise UserError(
            f"The output of {value.producer.name!r} is text, which neither TFLite nor ONNX "
            "supports, and it is not made from one numeric tensor. End the model before it."
        )
    (numbers,) = call.inputs
    graph.outputs = [numbers if output is value else output for output in graph.outputs]
    value.is_output, numbers.is_output = False, True
    layer = type(call.op.operation).__name__
    return (
        f"output {value.producer.name!r} is text, which neither TFLite nor ONNX supports: the "
        f"files return the input of the layer {call.name!r} ({layer}), and the app must look it up"
    )
