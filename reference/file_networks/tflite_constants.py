"""Ops of .tflite files that compute shapes and other constants from constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...artifacts.graphs.base import GraphOp
from .writer import Tensors

Compute = Callable[[GraphOp, Tensors], np.ndarray]


def _of(compute: Any) -> Compute:
    """Return an op that computes each number by itself."""
    return lambda op, tensors: np.asarray(compute(*map(tensors.constant, op.inputs)))


def _reduced(compute: Any) -> Compute:
    def evaluate(op: GraphOp, tensors: Tensors) -> np.ndarray:
        x, axes = tensors.constant(op.inputs[0]), tensors.constant(op.inputs[1])
        keepdims = bool(op.attributes.get("keepDims"))
        return np.asarray(compute(x, axis=tuple(axes.reshape(-1).tolist()), keepdims=keepdims))

    return evaluate


def _filled(op: GraphOp, tensors: Tensors) -> np.ndarray:
    return np.full(tensors.constant(op.inputs[0]).reshape(-1), tensors.constant(op.inputs[1]))


def _cast(op: GraphOp, tensors: Tensors) -> np.ndarray:
    return tensors.constant(op.inputs[0]).astype(tensors.graph.tensors[op.outputs[0]].dtype)


def _space_to_batch(op: GraphOp, tensors: Tensors) -> np.ndarray:
    """Move blocks of places into the batch, the way convolutions with dilation are written."""
    x, blocks, pads = (tensors.constant(key) for key in op.inputs)
    rest = x.ndim - 1 - len(blocks)
    x = np.pad(x, [(0, 0), *(tuple(pair) for pair in pads.tolist()), *[(0, 0)] * rest])
    count, n = len(blocks), x.shape[0]
    split = [part for b, s in zip(blocks, x.shape[1:]) for part in (s // b, b)]
    x = x.reshape(n, *split, *x.shape[1 + count :])
    inner = [2 + 2 * i for i in range(count)]
    outer = [1 + 2 * i for i in range(count)]
    tail = range(1 + 2 * count, x.ndim)
    x = x.transpose(*inner, 0, *outer, *tail)
    return x.reshape(-1, *x.shape[count + 1 :])


def _batch_to_space(op: GraphOp, tensors: Tensors) -> np.ndarray:
    x, blocks, crops = (tensors.constant(key) for key in op.inputs)
    count, n = len(blocks), x.shape[0] // int(np.prod(blocks))
    x = x.reshape(*blocks, n, *x.shape[1:])
    order = [count]
    for i in range(count):
        order += [count + 1 + i, i]
    x = x.transpose(*order, *range(2 * count + 1, x.ndim))
    sizes = [x.shape[1 + 2 * i] * x.shape[2 + 2 * i] for i in range(count)]
    x = x.reshape(n, *sizes, *x.shape[1 + 2 * count :])
    cut = tuple(slice(a, s - b) for (a, b), s in zip(crops.tolist(), sizes))
    return x[(slice(None), *cut)]


CONSTANTS: dict[str, Compute] = {
    "ADD": _of(np.add),
    "SUB": _of(np.subtract),
    "MUL": _of(np.multiply),
    "DIV": _of(np.divide),
    "FLOOR_DIV": _of(np.floor_divide),
    "FLOOR_MOD": _of(np.mod),
    "MAXIMUM": _of(np.maximum),
    "MINIMUM": _of(np.minimum),
    "EQUAL": _of(np.equal),
    "NOT_EQUAL": _of(np.not_equal),
    "GREATER": _of(np.greater),
    "GREATER_EQUAL": _of(np.greater_equal),
    "LESS": _of(np.less),
    "LESS_EQUAL": _of(np.less_equal),
    "LOGICAL_AND": _of(np.logical_and),
    "LOGICAL_NOT": _of(np.logical_not),
    "LOGICAL_OR": _of(np.logical_or),
    "NEG": _of(np.negative),
    "ABS": _of(np.abs),
    "SQRT": _of(np.sqrt),
    "SELECT": _of(np.where),
    "SELECT_V2": _of(np.where),
    "RANGE": _of(lambda start, stop, step: np.arange(start.item(), stop.item(), step.item())),
    "SUM": _reduced(np.sum),
    "REDUCE_PROD": _reduced(np.prod),
    "REDUCE_MAX": _reduced(np.max),
    "FILL": _filled,
    "CAST": _cast,
    "SPACE_TO_BATCH_ND": _space_to_batch,
    "BATCH_TO_SPACE_ND": _batch_to_space,
}
