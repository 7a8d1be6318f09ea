"""Applies every step of the preparation in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import keras

from ....errors import UserError
from ..build import build
from ..evaluation import first_line
from ..keras_graph import read_graph
from .batches import demand_samples_apart
from .channels_last import channels_last
from .quantized import dequantize
from .sizes import demand_sizes, set_sizes
from .states import states_outside
from .text import cut_text

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Prepared:
    """A model as the fold takes it.

    Attributes:
        model: The model itself, or one that was built from it.
        notes: What was changed, a sentence each.
        states: Name of each input that takes a state to the name of the output that gives it.
    """

    model: keras.Model
    notes: tuple[str, ...] = ()
    states: Mapping[str, str] = field(default_factory=dict)


def prepare(
    model: keras.Model, shapes: Shapes | None = None, *, for_files: bool = True
) -> Prepared:
    """Prepare a model.

    Args:
        model: Any built Keras model. Not changed.
        shapes: Input name to the sizes of its free axes, or of all its axes; the batch aside.
        for_files: Whether TFLite and ONNX files will be made of it: then it has no free sizes
            besides the batch, no text and no channels first. A Keras model may keep all of them.

    Returns:
        The model and what was changed.

    Raises:
        UserError: A size is missing, wrong or zero; nothing but text processing would be left; a
            layer cannot be prepared.
    """
    graph = read_graph(model)
    # Text first: sizes are asked only for the inputs that stay.
    steps = [
        cut_text(graph) if for_files else None,
        set_sizes(graph, shapes or {}),
        dequantize(graph),
        channels_last(graph) if for_files else None,
    ]
    if for_files:
        demand_sizes(graph)
        demand_samples_apart(graph)
    states = states_outside(graph) if for_files else {}
    if states:
        steps.append([f"states become inputs and outputs: {', '.join(states)}; feed each back"])
    if all(step is None for step in steps):
        return Prepared(model)
    notes = tuple(note for step in steps if step for note in step)
    try:
        return Prepared(build(graph, "float32"), notes, states)
    except (ValueError, TypeError) as error:
        given = ", ".join(f"{name}={tuple(sizes)}" for name, sizes in (shapes or {}).items())
        raise UserError(
            f"The model cannot be built{f' with {given}' if given else ''}: {first_line(error)}"
        ) from error
