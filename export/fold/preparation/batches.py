"""Refuses operations that combine the samples of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras

from ....errors import UserError
from ..graph import Call, Graph, Value
from ..traced_functions import inlined_functions

if TYPE_CHECKING:
    import tensorflow as tf

# Operations of TensorFlow whose results do not depend on the values of their inputs.
_READ_SHAPES = ("Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike")


def require_independent_samples(graph: Graph) -> None:
    """Refuse a network in which samples of a batch depend on each other.

    The batch size of a file differs from that of the model, so the outputs would differ.

    Raises:
        UserError: An operation removes the batch axis, or an output has none; the message names it.
    """
    # Keras declares the batch size 1 for a sum with a constant of that size.
    batched = {value for call in graph.calls() for value in call.outputs if None in value.shape}
    for call in graph.calls():
        given = [value in batched for value in call.inputs]
        if not any(given) or any(value in batched for value in call.outputs):
            continue
        traced = _traced(call, given)
        made = traced.outputs if traced is not None else call.outputs
        batched |= {v for v, t in zip(call.outputs, made, strict=False) if _has_batch(t)}
        if any(value in batched for value in call.outputs):
            continue
        if traced is None or _reads_values(traced, len(given)):
            raise UserError(
                f"The layer {call.name!r} combines all samples of a batch, so the output of a "
                "sample depends on the others and a file cannot reproduce the model. Do not reduce "
                "over the first axis, or build the model for one batch size: "
                "keras.Input(batch_shape=(N, …))."
            )
    constant = [
        name
        for name, value in zip(graph.output_names, graph.outputs, strict=True)
        if value not in batched
    ]
    if constant and any(value in batched for value in graph.inputs):
        raise UserError(
            f"The output {constant[0]!r} is a constant without a batch axis, which no input "
            "changes. Leave it out of the model."
        )


def _has_batch(tensor: Value | tf.Tensor) -> bool:
    return tensor.shape is not None and None in tuple(tensor.shape)


def _traced(call: Call, batched: Sequence[bool]) -> Any:
    """Return a call as a concrete function of batches of any size; None if its code fails."""
    import tensorflow as tf

    def run(*values: tf.Tensor) -> list[tf.Tensor]:
        args, kwargs = call.arguments(values)
        return list(keras.tree.flatten(call.op.operation(*args, **kwargs)))

    specs = [
        tf.TensorSpec((None, *value.shape[1:]) if free else value.shape, value.dtype)
        for value, free in zip(call.inputs, batched, strict=True)
    ]
    try:
        with inlined_functions():
            return tf.function(run, autograph=False).get_concrete_function(*specs)
    except Exception:  # whatever the layer's own code raises
        return None


def _reads_values(function: Any, count: int) -> bool:
    """Return whether a call computes with its inputs, and not with weights and shapes alone.

    Layers of learned positions or queries return a weight, and are called on the input for its
    shape.

    Args:
        function: The traced call.
        count: Number of its inputs.
    """
    samples = {tensor.op.name for tensor in function.inputs[:count]}
    waiting = [tensor.op for tensor in function.outputs]
    seen = {op.name for op in waiting}
    while waiting:
        op = waiting.pop()
        if op.name in samples:
            return True
        if op.type in _READ_SHAPES:
            continue
        before = {t.op.name: t.op for t in op.inputs if t.op.name not in seen}
        seen.update(before)
        waiting += before.values()
    return False
