"""The affine maps that norms in front of a network apply to its inputs."""

from __future__ import annotations

import keras

from .affine import Affine
from .graph import AffineOp, Value
from .keras_graph import read_graph
from .recognize import recognize


def affines_of_inputs(model: keras.Model) -> list[Affine | None]:
    """Return the affine map of the norms in front of a network for each input, in their order.

    Args:
        model: Any built Keras model.

    Returns:
        The affine of all norms between an input and the first other layer; None where there is no
        norm, or one that turns integers into floating point, which is never folded.
    """
    graph = read_graph(model)
    recognize(graph)
    return [_norms_behind(value) for value in graph.inputs]


def _norms_behind(value: Value) -> Affine | None:
    for call, _ in value.uses:
        if isinstance(call.op, AffineOp):
            first = call.op.affine
            rest = _norms_behind(call.output)
            fits = rest is not None and (rest.axis, rest.size) == (first.axis, first.size)
            return rest.after(first) if rest is not None and fits else first
    return None
