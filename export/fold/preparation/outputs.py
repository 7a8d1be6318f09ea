"""Splits an output that joins parts, such as boxes and scores, into one output per part.

An integer tensor has one step for all its values. If boxes in pixels and scores from 0 to 1 are
joined along the last axis, the step fits the boxes, and scores are rounded to 0 and 1. As separate
outputs, boxes and scores have separate steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import tree

from ....errors import UserError
from ..graph import Call, Graph, Kept, Slot, Source, Value
from ..keras_graph import kind_of


def split_outputs(graph: Graph, names: Sequence[str]) -> list[str] | None:
    """Replace outputs by the parts that they join along the last axis, in place.

    A part is named after the layer that computes it.

    Args:
        graph: The network.
        names: Names of the outputs; their keys if the model returns a dictionary.

    Returns:
        One sentence for each output that was split; None if there are no names.

    Raises:
        UserError: There is no such output, or it does not join parts.
    """
    notes = [_split(graph, name) for name in dict.fromkeys(names)]
    return notes or None


def _split(graph: Graph, name: str) -> str:
    known = _names(graph)
    if name not in known:
        raise UserError(
            f"split_outputs: the model has no output {name!r}. Name one of: {', '.join(known)}."
        )
    place = known.index(name)
    value = graph.outputs[place]
    parts = _parts(graph, value)
    if parts is None:
        raise UserError(
            f"split_outputs: the output {name!r} is computed by {value.producer.name!r}, which "
            "does not join parts along the last axis. Return the parts from the model, each as an "
            "output."
        )
    others = {other for index, other in enumerate(known) if index != place}
    made = _part_names(graph, parts, name, others)
    value.is_output = any(v is value for i, v in enumerate(graph.outputs) if i != place)
    for part in parts:
        part.is_output = True
    graph.outputs[place : place + 1] = parts
    graph.output_names[place : place + 1] = made
    graph.output_structure = _with_parts(graph.output_structure, place, name, made)
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + int(part.shape[-1] or 0))
    listed = ", ".join(
        f"{part!r} ({_columns(ends[i], ends[i + 1])})" for i, part in enumerate(made)
    )
    return f"output {name!r} is split along its last axis into {listed}"


def _columns(start: int, end: int) -> str:
    return str(start) if end == start + 1 else f"{start} to {end - 1}"


def _names(graph: Graph) -> list[str]:
    """Return the names of the outputs in exported files, in order."""
    structure = graph.output_structure
    if not isinstance(structure, dict) or not all(isinstance(s, Slot) for s in structure.values()):
        return list(graph.output_names)
    by_slot = {slot.index: str(key) for key, slot in structure.items()}
    return [by_slot[index] for index in range(len(graph.outputs))]


def _parts(graph: Graph, value: Value) -> list[Value] | None:
    """Return the values that are joined along a value's last axis; None if it is not a join."""
    call = value.producer
    axis = _axis(call)
    if axis is None:
        return None
    if axis == value.rank - 1:
        return list(call.inputs)
    # A join along another axis of values with the same parts: each part is joined separately.
    groups = []
    for joined in call.inputs:
        group = _parts(graph, joined)
        if group is None:
            return None
        groups.append(group)
    if len({tuple(part.shape[-1] for part in group) for group in groups}) > 1:
        return None
    return [_joined(graph, list(column), axis) for column in zip(*groups, strict=True)]


def _joined(graph: Graph, parts: list[Value], axis: int) -> Value:
    name = graph.unique_name(f"{parts[0].producer.name}_joined")
    sizes = [part.shape[axis] for part in parts]
    whole = None if None in sizes else sum(size or 0 for size in sizes)
    shape = (*parts[0].shape[:axis], whole, *parts[0].shape[axis + 1 :])
    layer = Kept(keras.layers.Concatenate(axis=axis, name=name), name)
    slots = [Slot(index) for index in range(len(parts))]
    return graph.add(Call(layer, parts, (slots,), {}), [(shape, parts[0].dtype)]).output


def _axis(call: Call) -> int | None:
    """Return the axis along which a call joins values, counted from 0; None if it does not."""
    operation: Any = getattr(call.op, "operation", None)
    is_layer = isinstance(operation, keras.layers.Concatenate)
    if len(call.outputs) != 1 or not (is_layer or kind_of(operation) == "Concatenate"):
        return None
    return int(operation.axis) % call.output.rank


def _part_names(graph: Graph, parts: list[Value], name: str, taken: set[str]) -> list[str]:
    """Return the layers' names; numbered after the output where they would not be unique."""
    layers = [part.producer.name for part in parts]
    taken = taken | {value.producer.name for value in graph.inputs}
    found: list[str] = []
    for index, (part, layer) in enumerate(zip(parts, layers, strict=True)):
        unique = layers.count(layer) == 1 and layer not in taken
        found.append(
            layer if unique and not isinstance(part.producer.op, Source) else f"{name}_{index}"
        )
    return found


def _with_parts(structure: Any, place: int, name: str, made: list[str]) -> Any:
    """Return the structure of the outputs with parts in the place of one."""
    more = len(made) - 1
    slots = [Slot(place + index) for index in range(len(made))]
    moved = tree.map_structure(
        lambda slot: Slot(slot.index + more) if slot.index > place else slot, structure
    )
    if isinstance(moved, Slot):
        return slots
    if isinstance(moved, dict) and all(isinstance(slot, Slot) for slot in moved.values()):
        kept = {key: slot for key, slot in moved.items() if str(key) != name}
        return {**kept, **dict(zip(made, slots, strict=True))}
    flat = tree.flatten(moved)
    at = next(i for i, slot in enumerate(flat) if slot.index == place)
    return [*flat[:at], *slots, *flat[at + 1 :]]
