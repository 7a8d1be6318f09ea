"""Gives the masks of attention values that integers can represent beside the scores.

Masked scores are replaced by numbers such as -1e9 or the least float, or these are added to them.
With them in its range, a tensor of integers has one step for all real scores. A number that is a
little below the least score has the same effect: the softmax of N scores gives it no weight if it
is lower by log(N) and by the logarithm of the softmax's step.

A mask that is computed and added, `h + (1 - m) * -1e9`, gets a smaller number in the same way: the
range of h, and the difference above if a softmax follows. If a maximum follows, it is the same,
unless all values are masked: a masked value is at most the least value of h.
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
_READERS = ("Softmax", "Max", "MaxPool")


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

    if not any(node.op in _READERS for node in graph.graph_def.node):
        return graph
    if any(value.min() < _LEAST_SCORE for value in graph.weights.values()):
        graph = graph.with_weights()  # it may be a mask
    with tf.Graph().as_default() as rewritten:
        tf.import_graph_def(graph.graph_def, name="")
        softmaxes = [op for op in rewritten.get_operations() if op.type == "Softmax"]
        masked = [m for op in softmaxes if (m := _masked_scores(op)) is not None]
        # With 16 bits, maxima and the sums before them are computed in float.
        kinds = ("Softmax",) if wide else _READERS
        readers = [op for op in rewritten.get_operations() if op.type in kinds]
        added = [a for op in readers if (a := _added_mask(op)) is not None]
    if not masked and not added:
        return graph
    names = [scores.name for _, scores, _ in masked] + [a.values.name for a in added]
    ends = _ends(graph, names, samples)
    replaced = {}
    with rewritten.as_default():
        for (op, scores, rule), (lowest, _) in zip(masked, ends, strict=False):
            below = (_BELOW_WIDE if wide else _BELOW) + math.log(scores.shape[-1] or 1)
            with tf.name_scope(f"{op.name}/"):
                replaced[op.name] = _selected(op, scores, rule, lowest - below).op.name
        for mask, (lowest, highest) in zip(added, ends[len(masked) :], strict=True):
            below = highest - lowest
            if mask.in_softmax:
                below += (_BELOW_WIDE if wide else _BELOW) + math.log(mask.values.shape[-1] or 1)
            with tf.name_scope(f"{mask.op.name}/"):
                replaced[mask.op.name] = mask.lowered(below).op.name
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


@dataclasses.dataclass(frozen=True)
class _AddedMask:
    """A mask that is added to values.

    Attributes:
        op: The operation that computes the mask: 0, or a number far below all values.
        values: The values.
        in_softmax: Whether a softmax reads the sum, not a maximum.
    """

    op: tf.Operation
    values: tf.Tensor
    in_softmax: bool

    def lowered(self, below: float) -> tf.Tensor:
        """Return the mask with another number, which lowers masked values by `below`."""
        import tensorflow as tf

        number = tf.constant(-below, tf.float32)
        inputs = [number if _is_mask(tensor) else tensor for tensor in self.op.inputs]
        return tf.where(*inputs) if len(inputs) == 3 else tf.multiply(*inputs)


def _added_mask(reader: tf.Operation) -> _AddedMask | None:
    """Return the mask in the input of a softmax or maximum; None if nothing is masked."""
    op = reader.inputs[0].op
    while op.type in _THROUGH and _has_one_reader(op):
        op = op.inputs[0].op
    if op.type not in ("Add", "AddV2") or not _has_one_reader(op):
        return None
    for values, added in (op.inputs, op.inputs[::-1]):
        mask = added.op
        while mask.type in _THROUGH and _has_one_reader(mask):
            mask = mask.inputs[0].op
        known = values.shape.is_fully_defined() and _has_one_reader(mask)
        if known and _is_zero_or_mask(mask):
            return _AddedMask(mask, values, reader.type == "Softmax")
    return None


def _has_one_reader(op: tf.Operation) -> bool:
    return len(op.outputs[0].consumers()) == 1


def _is_zero_or_mask(op: tf.Operation) -> bool:
    """Return whether an operation computes 0 or a number far below all values."""
    if op.type in ("Select", "SelectV2"):
        constants = [_static(tensor) for tensor in op.inputs[1:]]
        zeros = [c is not None and not np.any(c) for c in constants]
        return sorted(zeros) == [False, True] and any(map(_is_mask, op.inputs[1:]))
    if op.type != "Mul":
        return False
    return any(
        _is_mask(number) and number.shape.num_elements() == 1 and _is_zero_or_one(other.op)
        for number, other in (op.inputs, op.inputs[::-1])
    )


def _is_zero_or_one(op: tf.Operation) -> bool:
    """Return whether an operation computes truth values as numbers."""
    if op.type == "Cast":
        return bool(op.inputs[0].dtype.name == "bool")
    if op.type in (*_THROUGH, "StridedSlice", "BroadcastTo", "Tile"):
        return _is_zero_or_one(op.inputs[0].op)
    if op.type == "Sub":  # 1 - m
        one = _static(op.inputs[0])
        return one is not None and bool(np.all(one == 1)) and _is_zero_or_one(op.inputs[1].op)
    if op.type == "AddV2":  # (-1) m + 1
        negative, one = op.inputs[0].op, _static(op.inputs[1])
        if negative.type != "Mul" or one is None or not np.all(one == 1):
            return False
        factor = _static(negative.inputs[1])
        reversed_sign = factor is not None and bool(np.all(factor == -1))
        return reversed_sign and _is_zero_or_one(negative.inputs[0].op)
    if op.type == "Mul":
        return all(_is_zero_or_one(tensor.op) for tensor in op.inputs)
    return False


def _ends(
    graph: FrozenGraph, names: Sequence[str], samples: Iterable[Sequence[np.ndarray]]
) -> list[tuple[float, float]]:
    """Return the least and the greatest value of some tensors over the samples, and 0."""
    import tensorflow as tf

    graph_def = graph.with_weights().graph_def
    wrapped = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph_def, name=""), [])
    inputs = [wrapped.graph.get_tensor_by_name(tensor.name) for tensor in graph.inputs]
    outputs = [wrapped.graph.get_tensor_by_name(name) for name in names]
    run = wrapped.prune(inputs, outputs)
    least, greatest = np.zeros(len(names)), np.zeros(len(names))
    for batch in samples:
        values = run(*map(tf.constant, batch))
        least = np.minimum(least, [float(np.min(value)) for value in values])
        greatest = np.maximum(greatest, [float(np.max(value)) for value in values])
    return list(zip(least.tolist(), greatest.tolist(), strict=True))
