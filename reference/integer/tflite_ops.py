"""The integer ops of .tflite files: exact sums from the file's own weights, then a rule.

Convolution, matrix product, sum, product and mean have rules that differ from runtime to runtime.
Average pooling rounds a mean of integers half away from zero in all of them, softmax is a table of
float32 exponentials, and what only moves integers leaves nothing to round. For logistic and tanh no
rule is known here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from ...artifacts.graphs.base import GraphOp
from ..operators.base import Attributes
from ..operators.linear import LINEAR
from ..operators.pooling import pooled_sums
from .arithmetic import Arithmetic, Ints, Scales
from .base import Finish, IntegerOp, Samples, saturated

# TFLite's ActivationFunctionType, as the real numbers that it clips to.
_CLIPPED = {0: (-math.inf, math.inf), 1: (0.0, math.inf), 2: (-1.0, 1.0), 3: (0.0, 6.0)}
_PADDING = {0: "same", 1: "valid"}

Prepare = Callable[[GraphOp, Samples], "Finish | None"]


def integer_ops(samples: Samples) -> Iterator[IntegerOp]:
    """Yield every op whose integers can be computed exactly."""
    for op in samples.graph.ops:
        if op.kind not in PREPARED or len(op.outputs) != 1:
            continue
        got = samples.shown(op.outputs[0])
        finish = None if got is None else PREPARED[op.kind](op, samples)
        if finish is not None and got is not None:
            yield IntegerOp(op, op, got, finish, ruled=op.kind not in _UNRULED)


def _linear(operator: str, kernel: Callable[[np.ndarray, Attributes], np.ndarray]) -> Prepare:
    """Return the preparation of a sum of products, given how the file stores its kernel."""

    def prepare(op: GraphOp, samples: Samples) -> Finish | None:
        data, weights = op.inputs[0], samples.constant(op.inputs[1])
        bias = samples.constant(op.inputs[2]) if len(op.inputs) > 2 else None
        x = samples.centred(data)
        if x is None or weights is None or weights.data is None or weights.quantization is None:
            return None
        if weights.quantization.zero_points.any():
            return None
        attributes = _framing(op)
        stored = kernel(weights.data.astype(np.float64), attributes)
        if operator == "dense":
            x = x.reshape(-1, stored.shape[0])
        elif operator == "conv":
            attributes["groups"] = x.shape[-1] // stored.shape[-2]
        parts = {"kernel": stored}
        if bias is not None and bias.data is not None:
            parts["bias"] = bias.data.astype(np.float64)
        # Integers below 2^53 are exact in float64, in any order of summation.
        sums = LINEAR[operator].evaluate([x.astype(np.float64)], parts, attributes)
        return _rescaled(op, samples, sums.astype(np.int64), samples.scale(weights.key))

    return prepare


def _framing(op: GraphOp) -> dict[str, object]:
    """Return what the file says of strides, dilation and padding."""
    options = op.attributes
    return {
        "strides": [options.get("strideH", 1), options.get("strideW", 1)],
        "dilation": [options.get("dilationHFactor", 1), options.get("dilationWFactor", 1)],
        "padding": _PADDING.get(options.get("padding", 1), "valid"),
        "depth": options.get("depthMultiplier", 1),
    }


def _rescaled(op: GraphOp, samples: Samples, sums: Ints, w: Scales) -> Finish | None:
    """Return sums, brought to the steps of an op's output by a rule."""
    x, y = samples.scale(op.inputs[0]), samples.scale(op.outputs[0])

    def finish(rule: Arithmetic) -> Ints:
        return _clipped(op, samples, rule.rounded(sums, x, w, y))

    return finish


def _clipped(op: GraphOp, samples: Samples, values: Ints) -> Ints:
    """Return values in an op's output type, within its fused activation, in the output's shape."""
    steps = samples.steps(op.outputs[0])
    shown = samples.integers(op.outputs[0])
    assert steps is not None
    assert shown is not None
    low, high = _CLIPPED[op.attributes.get("fusedActivationFunction", 0)]
    return saturated(values, steps, low, high).reshape(shown.shape)


def _transposed(op: GraphOp, samples: Samples) -> Finish | None:
    """Prepare a TRANSPOSE_CONV: its inputs are the output's shape, the kernel and the data."""
    weights, x = samples.constant(op.inputs[1]), samples.centred(op.inputs[2])
    shown = samples.integers(op.outputs[0])
    if weights is None or weights.data is None or x is None or shown is None:
        return None
    attributes = {**_framing(op), "dilation": [1, 1], "output_sizes": shown.shape[1:3]}
    parts = {"kernel": np.transpose(weights.data.astype(np.float64), (1, 2, 0, 3))}
    bias = samples.constant(op.inputs[3]) if len(op.inputs) > 3 else None
    if bias is not None and bias.data is not None:
        parts["bias"] = bias.data.astype(np.float64)
    exact = LINEAR["conv_transpose"].evaluate([x.astype(np.float64)], parts, attributes)
    sums = exact.astype(np.int64)
    scales = [samples.scale(key) for key in (op.inputs[2], op.inputs[1], op.outputs[0])]

    def finish(rule: Arithmetic) -> Ints:
        return _clipped(op, samples, rule.rounded(sums, *scales))

    return finish


def _operands(op: GraphOp, samples: Samples) -> list[Ints] | None:
    """Return both operands of a sum or product less their zero points."""
    found = []
    for key in op.inputs:
        tensor, steps = samples.graph.tensors[key], samples.steps(key)
        if tensor.data is not None and steps is not None:
            found.append(tensor.data.astype(np.int64) - int(steps.zero_points[0]))
            continue
        values = samples.centred(key)
        if values is None:
            return None
        found.append(values)
    return found


def _added(op: GraphOp, samples: Samples) -> Finish | None:
    operands = _operands(op, samples)
    if operands is None:
        return None
    a, b, y = (samples.scale(key)[0] for key in (*op.inputs, op.outputs[0]))
    left, right = operands

    def finish(rule: Arithmetic) -> Ints:
        return _clipped(op, samples, rule.added(left, right, (a, b, y)))

    return finish


def _multiplied(op: GraphOp, samples: Samples) -> Finish | None:
    operands = _operands(op, samples)
    if operands is None:
        return None
    return _rescaled(op, samples, operands[0] * operands[1], samples.scale(op.inputs[1]))


def _averaged(op: GraphOp, samples: Samples) -> Finish | None:
    """Prepare a MEAN over the places of a map."""
    x, axes = samples.centred(op.inputs[0]), samples.constant(op.inputs[1])
    if x is None or axes is None or axes.data is None:
        return None
    reduced = tuple(int(axis) % x.ndim for axis in axes.data.reshape(-1))
    if reduced != tuple(range(1, x.ndim - 1)):
        return None
    sums = x.sum(axis=reduced)
    count = int(np.prod([x.shape[axis] for axis in reduced]))
    scales = samples.scale(op.inputs[0])[0], samples.scale(op.outputs[0])[0]

    def finish(rule: Arithmetic) -> Ints:
        return _clipped(op, samples, rule.averaged(sums, count, *scales))

    return finish


def _pooled(op: GraphOp, samples: Samples) -> Finish | None:
    """Prepare an AVERAGE_POOL_2D: a mean of the integers, half away from zero."""
    x, steps = samples.integers(op.inputs[0]), samples.steps(op.inputs[0])
    if (
        x is None
        or steps is None
        or not np.array_equal(samples.scale(op.inputs[0]), samples.scale(op.outputs[0]))
    ):
        return None
    size = [op.attributes["filterHeight"], op.attributes["filterWidth"]]
    sums, count = pooled_sums(x, {**_framing(op), "pool_size": size})
    away = np.sign(sums) * ((np.abs(sums) + count // 2) // count)
    return lambda rule: _clipped(op, samples, away - int(steps.zero_points[0]))


def _softmax(op: GraphOp, samples: Samples) -> Finish | None:
    """Prepare a SOFTMAX on the last axis: float32 exponentials of all 256 differences.

    Source: TFLite, `internal/optimized/optimized_ops.h`, `Softmax` for 8 bits.
    """
    x = samples.integers(op.inputs[0])
    if x is None:
        return None
    beta = np.float32(op.attributes.get("beta", 1.0))
    table = np.exp(-samples.scale(op.inputs[0])[0] * beta * np.arange(256, dtype=np.float32))
    raised = table[x.max(axis=-1, keepdims=True) - x]
    sums = np.cumsum(raised, axis=-1, dtype=np.float32)[..., -1:]
    shares = raised * (np.float32(1) / (sums * samples.scale(op.outputs[0])))
    values = np.floor(shares + np.float32(0.5)).astype(np.int64)
    return lambda rule: _clipped(op, samples, values)


def _requantized(op: GraphOp, samples: Samples) -> Finish | None:
    """Prepare a QUANTIZE, from floats or from integers of other steps."""
    floats = samples.floats(op.inputs[0])
    if floats is not None:
        y = samples.scale(op.outputs[0])
        return lambda rule: _clipped(op, samples, rule.quantized(floats, y))
    x = samples.centred(op.inputs[0])
    if x is None:
        return None
    steps = samples.scale(op.inputs[0]), samples.scale(op.outputs[0])
    return lambda rule: _clipped(op, samples, rule.requantized(x, *steps))


def _dequantized(op: GraphOp, samples: Samples) -> Finish | None:
    """Prepare a DEQUANTIZE."""
    x, steps = samples.integers(op.inputs[0]), samples.steps(op.inputs[0])
    if x is None or steps is None or steps.scales.size != 1:
        return None
    point, scale = int(steps.zero_points[0]), samples.scale(op.inputs[0])
    return lambda rule: rule.dequantized(x, point, scale)


def _reshaped(op: GraphOp, samples: Samples) -> Finish | None:
    """Prepare an op that gives integers another shape."""
    x, shown = samples.integers(op.inputs[0]), samples.integers(op.outputs[0])
    if x is None or shown is None:
        return None
    return lambda rule: x.reshape(shown.shape)


PREPARED: dict[str, Prepare] = {
    "CONV_2D": _linear("conv", lambda w, a: np.moveaxis(w, 0, -1)),
    "DEPTHWISE_CONV_2D": _linear(
        "depthwise_conv", lambda w, a: w[0].reshape(*w.shape[1:3], -1, a["depth"])
    ),
    "FULLY_CONNECTED": _linear("dense", lambda w, a: w.T),
    "TRANSPOSE_CONV": _transposed,
    "ADD": _added,
    "MUL": _multiplied,
    "MEAN": _averaged,
    "QUANTIZE": _requantized,
    "DEQUANTIZE": _dequantized,
    "AVERAGE_POOL_2D": _pooled,
    "SOFTMAX": _softmax,
    "RESHAPE": _reshaped,
    "SQUEEZE": _reshaped,
}
_UNRULED = ("AVERAGE_POOL_2D", "SOFTMAX", "RESHAPE", "SQUEEZE")
