"""Sums of products in .tflite files: convolutions, products of matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...artifacts.graphs.base import GraphOp
from ..operators.base import Attributes
from .arithmetic import Arithmetic, Ints, Scales
from .base import Finish, IntegerOperator, NotKnownError, Values, exact_sums, saturated

# TFLite's ActivationFunctionType, as the real numbers that it clips to.
_CLIPPED = {0: (-math.inf, math.inf), 1: (0.0, math.inf), 2: (-1.0, 1.0), 3: (0.0, 6.0)}
_PADDING = {0: "same", 1: "valid"}


def framing(op: GraphOp) -> dict[str, Any]:
    """Return what the file says of strides, dilation and padding."""
    options = op.attributes
    return {
        "strides": [options.get("strideH", 1), options.get("strideW", 1)],
        "dilation": [options.get("dilationHFactor", 1), options.get("dilationWFactor", 1)],
        "padding": _PADDING.get(options.get("padding", 1), "valid"),
        "depth": options.get("depthMultiplier", 1),
    }


def clipped(op: GraphOp, values: Values, integers: Ints) -> Ints:
    """Return integers with their zero point, in an op's type and within its fused activation."""
    activation = op.attributes.get("fusedActivationFunction", 0)
    if activation not in _CLIPPED:
        raise NotKnownError(f"fused activation {activation}")
    return saturated(integers, values.steps(op.outputs[0]), *_CLIPPED[activation])


# Sums that some runtimes round in another way than those of convolutions.
_BY_KIND: dict[str, Callable[[Arithmetic], Any]] = {
    "DEPTHWISE_CONV_2D": lambda rule: rule.depthwise,
    "FULLY_CONNECTED": lambda rule: rule.dense,
    "TRANSPOSE_CONV": lambda rule: rule.transposed,
    "BATCH_MATMUL": lambda rule: rule.matrices,
}


def rescaled(op: GraphOp, values: Values, sums: Ints, x: Scales, w: Scales) -> Finish:
    """Return sums, brought to the steps of an op's output by a rule.

    Args:
        op: The op.
        values: The tensors.
        sums: Exact sums.
        x: Scale of the data.
        w: Scale of the weights, one or one a channel; 1 where the product of both is in ``x``.
    """
    y = values.scale(op.outputs[0])
    wide = values.steps(op.outputs[0]).dtype.itemsize == 2

    def finish(rule: Arithmetic) -> Ints:
        if wide:
            scaled = rule.dense_wide if op.kind == "FULLY_CONNECTED" else rule.rounded_wide
        else:
            scaled = _BY_KIND.get(op.kind, lambda rule: rule.rounded)(rule)
        return clipped(op, values, scaled(sums, x, w, y))

    return finish


def _weights(op: GraphOp, values: Values) -> np.ndarray:
    """Return the constant kernel as exact float64 integers."""
    kernel, steps = values.constant(op.inputs[1]), values.graph.tensors[op.inputs[1]].quantization
    if steps is None or steps.zero_points.any():
        raise NotKnownError("weights with a zero point")
    return kernel.astype(np.float64)


def _with_bias(op: GraphOp, values: Values, place: int, kernel: np.ndarray) -> dict[str, Any]:
    """Return kernel and, where the op has one, bias as exact float64 integers."""
    parts = {"kernel": kernel}
    if len(op.inputs) > place and op.inputs[place]:
        bias = values.constant(op.inputs[place])
        if bias.dtype.kind != "i":
            raise NotKnownError("a bias of floats")
        parts["bias"] = bias.astype(np.float64)
    return parts


def _summed(operator: str, x: Ints, parts: dict[str, Any], attributes: Attributes) -> Ints:
    """Return exact sums of (P, B, …)."""
    sums = exact_sums(operator, x.reshape(-1, *x.shape[2:]), parts, attributes)
    return sums.reshape(*x.shape[:2], *sums.shape[1:])


def _convolution(operator: str, stored: Callable[[np.ndarray, Attributes], np.ndarray]) -> Any:
    """Return the preparation of a convolution, given how the file stores its kernel."""

    def prepare(op: GraphOp, values: Values) -> Finish:
        x, attributes = values.centred(op.inputs[0]), framing(op)
        kernel = stored(_weights(op, values), attributes)
        if operator == "conv":
            attributes["groups"] = x.shape[-1] // kernel.shape[-2]
        parts = _with_bias(op, values, 2, kernel)
        sums = _summed(operator, x, parts, attributes)
        scales = values.scale(op.inputs[0]), values.scale(op.inputs[1])
        return rescaled(op, values, sums, *scales)

    return prepare


def _connected(op: GraphOp, values: Values) -> Finish:
    """Prepare a FULLY_CONNECTED; what is not its input size is rows."""
    x, kernel = values.centred(op.inputs[0]), _weights(op, values).T
    parts = _with_bias(op, values, 2, kernel)
    rows = x.reshape(len(x), -1, kernel.shape[0])
    sums = exact_sums("dense", rows, parts, {})
    if op.attributes.get("keepNumDims"):
        sums = sums.reshape(*x.shape[:-1], kernel.shape[1])
    return rescaled(op, values, sums, values.scale(op.inputs[0]), values.scale(op.inputs[1]))


def _transposed(op: GraphOp, values: Values) -> Finish:
    """Prepare a TRANSPOSE_CONV: its inputs are the output's shape, the kernel and the data."""
    x, kernel = values.centred(op.inputs[2]), np.transpose(_weights(op, values), (1, 2, 0, 3))
    sizes = [int(size) for size in values.constant(op.inputs[0])[1:3]]
    attributes = {**framing(op), "dilation": [1, 1], "output_sizes": sizes}
    parts = _with_bias(op, values, 3, kernel)
    sums = _summed("conv_transpose", x, parts, attributes)
    return rescaled(op, values, sums, values.scale(op.inputs[2]), values.scale(op.inputs[1]))


def _matrices(op: GraphOp, values: Values) -> Finish:
    """Prepare a BATCH_MATMUL of two computed tensors."""
    left, right = (values.centred(key).astype(np.float64) for key in op.inputs)
    if op.attributes.get("adjX"):
        left = np.swapaxes(left, -1, -2)
    if op.attributes.get("adjY"):
        right = np.swapaxes(right, -1, -2)
    if left.ndim != right.ndim:
        raise NotKnownError("a product of matrices of other ranks")
    sums = (left @ right).astype(np.int64)
    return rescaled(op, values, sums, *(values.scale(key) for key in op.inputs))


LINEAR_OPS = {
    "CONV_2D": IntegerOperator(_convolution("conv", lambda w, a: np.moveaxis(w, 0, -1))),
    "DEPTHWISE_CONV_2D": IntegerOperator(
        _convolution("depthwise_conv", lambda w, a: w[0].reshape(*w.shape[1:3], -1, a["depth"]))
    ),
    "FULLY_CONNECTED": IntegerOperator(_connected),
    "TRANSPOSE_CONV": IntegerOperator(_transposed),
    "BATCH_MATMUL": IntegerOperator(_matrices),
}
