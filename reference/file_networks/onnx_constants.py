"""Ops of .onnx files that compute shapes and other constants from constants."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...artifacts.graphs.base import GraphOp
from ..integer.base import quotient
from ..integer.onnx_moving import Evaluate, Reader


def _relation(compute: Any) -> Evaluate:
    def evaluate(op: GraphOp, values: Reader) -> np.ndarray:
        arrays = [values.array(key)[0] for key in op.inputs]
        return np.asarray(compute(*arrays))[None]

    return evaluate


def _expanded(x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    wanted = np.broadcast_shapes(x.shape, tuple(int(size) for size in shape))
    return np.broadcast_to(x, wanted)


def _filled(op: GraphOp, values: Reader) -> np.ndarray:
    value = np.ravel(op.attributes.get("value", [0.0]))[0]
    return np.full((1, *(int(size) for size in values.array(op.inputs[0])[0])), value)


def _cast_constant(op: GraphOp, values: Reader) -> np.ndarray:
    types = {1: "f4", 2: "u1", 3: "i1", 5: "i2", 6: "i4", 7: "i8", 9: "?", 10: "f2", 11: "f8"}
    return values.array(op.inputs[0]).astype(types[int(op.attributes["to"])])


CONSTANTS: dict[str, Evaluate] = {
    "Cast": _cast_constant,
    "ConstantOfShape": _filled,
    "Div": _relation(quotient),
    "Equal": _relation(np.equal),
    "Expand": _relation(_expanded),
    "Floor": _relation(np.floor),
    "Ceil": _relation(np.ceil),
    "Greater": _relation(np.greater),
    "GreaterOrEqual": _relation(np.greater_equal),
    "Less": _relation(np.less),
    "LessOrEqual": _relation(np.less_equal),
    "Mod": _relation(np.mod),
    "Not": _relation(np.logical_not),
    "And": _relation(np.logical_and),
    "Or": _relation(np.logical_or),
    "Range": _relation(lambda a, b, step: np.arange(a, b, step)),
    "ReduceProd": _relation(lambda x, *axes: np.prod(x, keepdims=True)),
    "Where": _relation(np.where),
}
