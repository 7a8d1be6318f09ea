"""Gives the masks of attention values that integers can represent beside the scores.

Masked scores are replaced by numbers such as -1e9 or the least float, or these are added to them.
With them in its range, a tensor of integers has one step for all real scores. A number that is a
little below the least score has the same effect: the softmax of N scores gives it no weight if it
is lower by log(N) and by the logarithm of the softmax's step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .freeze import FrozenGraph
from .rewrites import VIEWS, redirect

if TYPE_CHECKING:
    import tensorflow as tf

_LEAST_SCORE = -1e4  # lower numbers are masks
_BELOW = 8.0  # exp(-8) is less than a tenth of the step of a softmax in 8 bits
_BELOW_WIDE = 13.0  # and exp(-13) of one in 16 bits
_THROUGH = (*VIEWS, "Transpose")


def with_near_masks(
    graph: FrozenGraph, samples: Iterable[Sequence[np.ndarray]], *, wide: bool
) -> FrozenGraph:
    """Return a network whose masked scores are close to the others.

    Args:
        graph: The network; not changed.
        samples: Batches of calibration samples, one array per input.
        wide: Whether the file has activations of 16 bits.
    """
    import tensorflow as tf

    if not any(node.op == "Softmax" for node in graph.graph_def.node):
        return graph
    with tf.Graph().as_default() as rewritten:
        tf.import_graph_def(graph.graph_def, name="")
        softmaxes = [op for op in rewritten.get_operations() if op.type == "Softmax"]
        masked = [m for op in softmaxes if (m := _masked_scores(op)) is not None]
    if not masked:
        return graph
    least = _least(graph, [scores.name for _, scores, _ in masked], samples)
    replaced = {}
    with rewritten.as_default():
        for (op, scores, rule), lowest in zip(masked, least, strict=True):
            below = (_BELOW_WIDE if wide else _BELOW) + math.log(scores.shape[-1] or 1)
            with tf.name_scope(f"{op.name}/"):
                replaced[op.name] = _selected(op, scores, rule, lowest - below).op.name
        graph_def = rewritten.as_graph_def()
    redirect(graph_def, replaced, [tensor.op.name for tensor in (*graph.inputs, *graph.outputs)])
    return dataclasses.replace(graph, graph_def=graph_def)


def _masked_scores(
    softmax: tf.Operation,
) -> tuple[tf.Operation, tf.Tensor, np.ndarray | bool] | None:
    """Return the operation that masks, its scores, and where it masks.

    The last is, for a selection, whether it takes the mask where its test is true; for a sum with
    a constant, the constant's elements that mask. None if the input is not masked in this way.
    """
    op = softmax.inputs[0].op
    while op.type in _THROUGH:
        op = op.inputs[0].op
    if op.type in ("Select", "SelectV2"):
        _, chosen, other = op.inputs
        if _is_mask(chosen) and not _is_mask(other):
            return op, other, True
        if _is_mask(other) and not _is_mask(chosen):
            return op, chosen, False
    if op.type in ("Add", "AddV2"):
        for scores, added in (op.inputs, op.inputs[::-1]):
            values = _static(added)
            if values is None or values.dtype != np.float32:
                continue
            below = values < _LEAST_SCORE
            if below.any() and not values[~below].any() and scores.shape.is_fully_defined():
                return op, scores, below
    return None


def _is_mask(tensor: tf.Tensor) -> bool:
    """Return whether a value is far below any score: a constant, or a score minus one."""
    values, op = _static(tensor), tensor.op
    if values is not None:
        return bool(np.all(values < _LEAST_SCORE))
    if op.type not in ("Sub", "Add", "AddV2"):
        return False
    number = _static(op.inputs[1])
    sign = -1 if op.type == "Sub" else 1
    return number is not None and bool(np.all(sign * number < _LEAST_SCORE))


def _static(tensor: tf.Tensor) -> np.ndarray | None:
    import tensorflow as tf

    value = tf.get_static_value(tensor)
    return None if value is None else np.asarray(value)


def _selected(
    op: tf.Operation, scores: tf.Tensor, rule: np.ndarray | bool, mask: float
) -> tf.Tensor:
    import tensorflow as tf

    number = tf.constant(mask, tf.float32)
    if rule is True:
        return tf.where(op.inputs[0], number, scores)
    if rule is False:
        return tf.where(op.inputs[0], scores, number)
    return tf.where(tf.constant(rule), number, scores)


def _least(
    graph: FrozenGraph, names: Sequence[str], samples: Iterable[Sequence[np.ndarray]]
) -> list[float]:
    """Return the least value of some tensors over the samples."""
    import tensorflow as tf

    wrapped = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph.graph_def, name=""), [])
    inputs = [wrapped.graph.get_tensor_by_name(tensor.name) for tensor in graph.inputs]
    outputs = [wrapped.graph.get_tensor_by_name(name) for name in names]
    run = wrapped.prune(inputs, outputs)
    least = np.zeros(len(names))
    for batch in samples:
        values = run(*map(tf.constant, batch))
        least = np.minimum(least, [float(np.min(value)) for value in values])
    return [float(value) for value in least]
