"""The affine maps of the norms that read the inputs of a network."""

from __future__ import annotations

import keras

from .affine import Affine
from .graph import AffineOp, Value
from .keras_graph import read_graph
from .recognize import recognize


def affines_of_inputs(model: keras.Model) -> list[Affine | None]:
    """Return the composed affine of the norms that read each input of a model.

    Args:
        model: Any built Keras model.

    Returns:
        For each input, the affine of all norms between it and the first other layer; None if there
        is no norm, or one that converts integers to floating point, which is never folded.
    """
    graph = read_graph(model)
    recognize(graph)
    return [_composed_norms(value) for value in graph.inputs]


def _composed_norms(value: Value) -> Affine | None:
    for call, _ in value.uses:
        if isinstance(call.op, AffineOp):
            first = call.op.affine
            rest = _composed_norms(call.output)
            fits = rest is not None and (rest.axis, rest.size) == (first.axis, first.size)
            return rest.after(first) if rest is not None and fits else first
    return None
