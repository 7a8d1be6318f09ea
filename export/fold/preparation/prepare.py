"""Applies the steps of the preparation in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import keras

from ....artifacts.images import Preprocessing
from ....errors import UserError
from ..build import build
from ..evaluation import first_line
from ..keras_graph import read_graph
from .batches import require_independent_samples
from .channels_last import channels_last
from .loudest import clip_each_sample
from .outputs import split_outputs
from .pixels import take_pixels
from .quantized import dequantize
from .sizes import require_declared_sizes, require_sizes, set_sizes
from .states import states_outside
from .text import cut_text

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Prepared:
    """A prepared model.

    Attributes:
        model: The model itself, or one that was built from it.
        notes: The changes, one sentence each.
        states: Name of each state input to the name of the output with its next value.
        cut: The notes among them on inputs that the app must compute.
        paths: Name of each layer of the network to its path in the model.
    """

    model: keras.Model
    notes: tuple[str, ...] = ()
    states: Mapping[str, str] = field(default_factory=dict)
    cut: tuple[str, ...] = ()
    paths: Mapping[str, str] = field(default_factory=dict)


def prepare(
    model: keras.Model,
    shapes: Shapes | None = None,
    *,
    for_files: bool = True,
    preprocessing: Preprocessing | None = None,
    split: Sequence[str] = (),
) -> Prepared:
    """Prepare a model.

    Args:
        model: Any built Keras model. Not changed.
        shapes: Input name to the sizes of its free axes, or of all its axes, without the batch.
        for_files: Whether TFLite and ONNX files will be made from it, which have no free sizes
            other than the batch, no text and no channels-first layers. A folded Keras model may
            have all of them.
        preprocessing: The preprocessing to put into the model as its first layer; None for none.
        split: Names of outputs that are replaced by the parts that they join.

    Returns:
        The model and the changes.

    Raises:
        UserError: A size is missing, wrong or zero; the model only processes text; a layer cannot
            be prepared.
    """
    graph = read_graph(model)
    # Text first: sizes are required only for the remaining inputs.
    cut = cut_text(graph) if for_files else None
    steps = [
        cut,
        set_sizes(graph, shapes or {}),
        dequantize(graph),
        channels_last(graph) if for_files else None,
        clip_each_sample(graph) if for_files else None,
    ]
    if for_files:
        require_sizes(graph)
        require_declared_sizes(graph)
        require_independent_samples(graph)
    steps.append(split_outputs(graph, split))
    if preprocessing is not None:
        steps.append(take_pixels(graph, preprocessing))
    states = states_outside(graph) if for_files else {}
    if states:
        steps.append([f"states are inputs and outputs: {', '.join(states)}; feed each output back"])
    if all(step is None for step in steps):
        return Prepared(model, paths=graph.paths)
    notes = tuple(note for step in steps if step for note in step)
    try:
        return Prepared(build(graph, "float32"), notes, states, tuple(cut or ()), graph.paths)
    except (ValueError, TypeError) as error:
        given = ", ".join(f"{name}={tuple(sizes)}" for name, sizes in (shapes or {}).items())
        raise UserError(
            f"The model cannot be built{f' with {given}' if given else ''}: {first_line(error)}"
        ) from error
