"""Converts the states of stateful recurrent layers to inputs and outputs.

A file has no memory: it takes the states as inputs and returns the next states. A streaming app
feeds each state output back into its input; the initial states are zero.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import tree

from ..graph import Call, Graph, Kept, Slot, Source, Value
from ..rebuild import copy_weights, from_config

_RECURRENT = (keras.layers.RNN, keras.layers.Bidirectional)


def states_outside(graph: Graph) -> dict[str, str]:
    """Convert the states of every stateful recurrent layer to inputs and outputs, in place.

    Args:
        graph: The network.

    Returns:
        Name of each new input to the name of the output with its next value.
    """
    pairs: dict[str, str] = {}
    for call in graph.calls():
        if _is_stateful(call):
            pairs |= _replace(graph, call)
    return pairs


def _is_stateful(call: Call) -> bool:
    layer = getattr(call.op, "operation", None)
    given = "initial_state" in (call.kwargs or {})
    return isinstance(layer, _RECURRENT) and bool(layer.stateful) and not given


def _replace(graph: Graph, call: Call) -> dict[str, str]:
    """Replace one call; return the pairs that it adds."""
    layer = call.op.operation
    variables = [state for part in _parts(layer) for state in tree.flatten(part.states)]
    pairs: dict[str, str] = {}
    states: list[Value] = []
    for index, variable in enumerate(variables):
        shape = tuple(variable.shape)
        name = graph.unique_name(f"{layer.name}_state_{index}")
        tensor = keras.KerasTensor(shape, variable.dtype, name=name)
        states += graph.add(Call(Source(tensor, name), []), [(shape, variable.dtype)]).outputs
        pairs[name] = graph.unique_name(f"{layer.name}_next_state_{index}")
    count = len(call.inputs)
    slots: Any = [Slot(count + index) for index in range(len(states))]
    if isinstance(layer, keras.layers.RNN):
        slots = tree.pack_sequence_as(layer.states, slots)
    args = (Slot(0),) if call.args is None else call.args
    new = Call(
        Kept(_stateless(layer, variables), call.op.name),
        [*call.inputs, *states],
        args,
        {**(call.kwargs or {}), "initial_state": slots},
    )
    returned = [(value.shape, value.dtype) for value in call.outputs[:1]]
    graph.add(new, returned + [(value.shape, value.dtype) for value in states])
    for old, value in zip(call.outputs, new.outputs, strict=False):
        graph.replace_value(old, value)
    graph.inputs += states
    graph.input_structure = _extended(graph.input_structure, list(pairs))
    for value, name in zip(new.outputs[1:], pairs.values(), strict=True):
        identity = Kept(keras.layers.Identity(name=name), name)
        output = graph.add(Call(identity, [value]), [(value.shape, value.dtype)]).output
        output.is_output = True
        graph.outputs.append(output)
    graph.output_structure = _extended(graph.output_structure, list(pairs.values()))
    graph.output_names += pairs.values()
    return pairs


def _parts(layer: Any) -> list[Any]:
    """Return the layers that have the states of a layer."""
    if isinstance(layer, keras.layers.Bidirectional):
        return [layer.forward_layer, layer.backward_layer]
    return [layer]


def _stateless(layer: Any, states: list[keras.Variable]) -> Any:
    """Return the same layer with its states as inputs and outputs."""
    config = layer.get_config()
    inner = [config[key] for key in ("layer", "backward_layer") if config.get(key)]
    for part in [config, *(entry["config"] for entry in inner)]:
        if "stateful" in part:
            part |= {"stateful": False, "return_state": True}
    twin = from_config(layer, config)
    twin.build_from_config(layer.get_build_config())
    kept = {id(state) for state in states}
    copy_weights([weight for weight in layer.weights if id(weight) not in kept], twin.weights)
    return twin


def _extended(structure: Any, names: list[str]) -> Any:
    """Return a structure of slots with one more for each name."""
    first = len(tree.flatten(structure))
    slots = [Slot(first + index) for index in range(len(names))]
    if isinstance(structure, dict):
        return {**structure, **dict(zip(names, slots, strict=True))}
    if isinstance(structure, (list, tuple)):
        return [*structure, *slots]
    return [structure, *slots]
