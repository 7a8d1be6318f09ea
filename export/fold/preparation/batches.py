"""Refuses operations that combine the samples of a batch."""

from __future__ import annotations

from ....errors import UserError
from ..graph import Call, Graph


def require_independent_samples(graph: Graph) -> None:
    """Refuse a network in which samples of a batch depend on each other.

    The batch size of a file differs from that of the model, so the outputs would differ.

    Raises:
        UserError: An operation removes the batch axis; the message names it.
    """
    for call in graph.calls():
        if call.inputs and _loses_samples(call):
            raise UserError(
                f"The layer {call.name!r} combines all samples of a batch, so the output of a "
                "sample depends on the others and a file cannot reproduce the model. Do not reduce "
                "over the first axis, or build the model for one batch size: "
                "keras.Input(batch_shape=(N, …))."
            )


def _loses_samples(call: Call) -> bool:
    free = [value for value in call.inputs if value.shape and value.shape[0] is None]
    return bool(free) and all(None not in value.shape for value in call.outputs)
