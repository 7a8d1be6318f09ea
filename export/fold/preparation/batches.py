"""Refuses operations that make one value of all samples of a batch."""

from __future__ import annotations

from ....errors import UserError
from ..graph import Call, Graph


def demand_samples_apart(graph: Graph) -> None:
    """Refuse a network in which samples of a batch depend on each other.

    A file is fed batches of its own size, so it could not compute what the model does.

    Raises:
        UserError: An operation takes the axis of the samples away; the message names it.
    """
    for call in graph.calls():
        if call.inputs and _loses_samples(call):
            raise UserError(
                f"The layer {call.name!r} makes one value of all samples of a batch, so that the "
                "output of a sample depends on the others and a file cannot give what the model "
                "gives. Compute means and the like over other axes than the first, or build the "
                "model for the batch size that it will have: keras.Input(batch_shape=(N, …))."
            )


def _loses_samples(call: Call) -> bool:
    free = [value for value in call.inputs if value.shape and value.shape[0] is None]
    return bool(free) and all(None not in value.shape for value in call.outputs)
