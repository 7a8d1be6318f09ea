"""Sets the free sizes of inputs, which the user must give, and refuses sizes that are not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from ....errors import UserError
from ...equations import spelled_out
from ..declarations import is_misdeclared
from ..graph import Graph, Kept, Source, Value


def set_sizes(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> list[str] | None:
    """Set the sizes of inputs, in place.

    Args:
        graph: The network.
        shapes: Input name to the sizes of its free axes, or of all its axes, without the batch.

    Returns:
        An empty list, since this needs no note; None if no size was changed.

    Raises:
        UserError: There is no such input, or the sizes do not fit it.
    """
    sources = {value.producer.name: value for value in graph.inputs}
    unknown = sorted(set(shapes) - set(sources))
    if unknown:
        raise UserError(
            f"Expected shapes of the inputs {', '.join(sources)}. Received: {', '.join(unknown)}."
        )
    changed: list[str] | None = None
    for name, sizes in shapes.items():
        value = sources[name]
        shape = (value.shape[0], *_filled(name, value.shape[1:], [int(size) for size in sizes]))
        if shape == tuple(value.shape):
            continue
        changed = []
        tensor = value.producer.op.tensor
        sized = keras.KerasTensor(shape, tensor.dtype, sparse=tensor.sparse, name=tensor.name)
        value.producer.op = Source(sized, name)
        value.shape = shape
    return changed


def require_sizes(graph: Graph) -> None:
    """Refuse inputs with unknown or zero sizes.

    Raises:
        UserError: A size is unknown or zero; the message says how to give it.
    """
    for value in graph.inputs:
        name, sizes = value.producer.name, value.shape[1:]
        free = sum(size is None for size in sizes)
        if free:
            example = ["SIZE"] * free
            raise UserError(
                f"Input {name!r} has the shape {_text(value)}, but a network is exported with "
                f"fixed sizes. Give them: --shape {name}={','.join(example)} "
                f"(Python: shapes={{{name!r}: [{', '.join(example)}]}})."
            )
        if 0 in sizes:
            raise UserError(
                f"Input {name!r} has the shape {_text(value)}, so it is empty. "
                "Build the model with the sizes that it will be deployed with."
            )


def _filled(name: str, shape: Sequence[int | None], sizes: list[int]) -> tuple[int | None, ...]:
    free = [axis for axis, size in enumerate(shape) if size is None]
    filled = list(shape)
    if len(sizes) == len(shape):
        filled = list(sizes)
    elif len(sizes) == len(free):
        for axis, size in zip(free, sizes, strict=True):
            filled[axis] = size
    fits = all(want in (None, got) for want, got in zip(shape, filled, strict=True))
    if None in filled or not fits or min(sizes, default=1) < 1:
        raise UserError(
            f"Expected sizes for the free axes of input {name!r}, whose shape without the batch "
            f"is {tuple(shape)}. Received: {tuple(sizes)}."
        )
    return tuple(filled)


def _text(value: Value) -> str:
    """Return a shape without the batch."""
    return f"({', '.join('free' if s is None else str(s) for s in value.shape[1:])})"


def require_declared_sizes(graph: Graph) -> None:
    """Refuse a layer that computes another shape than Keras declares.

    Raises:
        UserError: There is one.
    """
    for call in graph.calls():
        layer: Any = call.op.operation if isinstance(call.op, Kept) else None
        if layer is None or not call.inputs or not is_misdeclared(layer, call.inputs[0]):
            continue
        if isinstance(layer, kl.EinsumDense):
            raise UserError(
                f"EinsumDense {layer.name!r} has the equation {layer.equation!r}, for which Keras "
                "declares the axes of the output in another order than it computes, so that the "
                "layers after it can get wrong sizes. Write a letter for each axis instead of "
                f"'...': {_with_letters(layer, call.inputs[0])}."
            )
        raise UserError(
            f"RandomCrop {layer.name!r} crops to {layer.height} x {layer.width} in training "
            "only: at inference Keras returns its input, so that the layers after it get "
            "another size than they were built for. Crop in the data pipeline instead, or use "
            "CenterCrop."
        )


def _with_letters(layer: kl.EinsumDense, given: Value) -> str:
    """Return an EinsumDense with letters for its leading ellipsis."""
    config = layer.get_config()
    equation = spelled_out(config["equation"], (given.rank, 0))
    named = len(config["equation"].replace(" ", "").partition("->...")[2])
    hidden = len(equation.partition("->")[2]) - named - 1
    own = np.atleast_1d(config["output_shape"])
    sizes = ["None"] * hidden + [str(size) for size in own[len(own) - named :]]
    return f"EinsumDense('{equation}', ({', '.join(sizes)}), …)"
