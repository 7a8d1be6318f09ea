"""Operators of .tflite files that compute: each is read as an operator of `reference.operators`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...artifacts.graphs.base import GraphOp
from ..operators import OPERATORS
from ..operators.base import Attributes, Integers
from ..rounding.arithmetic import Arithmetic, Finish
from ..rounding.fixed_point import multiplier
from ..rounding.quantized import Ints, NotKnownError, Output, Quantized, aligned
from .base import IntegerOperator, Values

# TFLite's ActivationFunctionType, as the real numbers that it clips to.
_CLIPPED = {0: (-math.inf, math.inf), 1: (0.0, math.inf), 2: (-1.0, 1.0), 3: (0.0, 6.0)}
_PADDING = {0: "same", 1: "valid"}

_BINARY = ("add", "subtract", "multiply", "maximum", "minimum", "matmul")

_Read = Callable[[GraphOp, Values], Attributes]


def output_of(op: GraphOp, values: Values) -> Output:
    """Return the steps of an op's output, with the limits of its fused activation."""
    activation = op.attributes.get("fusedActivationFunction", 0)
    if activation not in _CLIPPED:
        raise NotKnownError(f"fused activation {activation}")
    return values.output(op).clipped(*_CLIPPED[activation])


def _framing(op: GraphOp, values: Values) -> dict[str, Any]:
    """Return the strides, dilation, padding and window of an op."""
    options = op.attributes
    return {
        "strides": [options.get("strideH", 1), options.get("strideW", 1)],
        "dilation": [options.get("dilationHFactor", 1), options.get("dilationWFactor", 1)],
        "padding": _PADDING.get(options.get("padding", 1), "valid"),
        "pool_size": [options.get("filterHeight"), options.get("filterWidth")],
    }


def _linear(
    operator: str, op: GraphOp, values: Values, x: Quantized, kernel: Quantized, **attributes: Any
) -> Finish:
    """Return a linear operator of data and a kernel in the layout of `reference.operators`."""
    # A TRANSPOSE_CONV reads its output's shape as well.
    place = 3 if operator == "conv_transpose" else 2
    weights = {"kernel": kernel, **values.bias("".join(op.inputs[place : place + 1]))}
    return OPERATORS[operator].integer(Integers([x], output_of(op, values), weights, attributes))


def _convolution(op: GraphOp, values: Values) -> Finish:
    x, stored = values.quantized(op.inputs[0]), values.kernel(op.inputs[1])
    kernel = Quantized(np.moveaxis(stored.integers, 0, -1), stored.steps)
    groups = x.integers.shape[-1] // kernel.integers.shape[-2]
    return _linear("conv", op, values, x, kernel, **_framing(op, values), groups=groups)


def _depthwise(op: GraphOp, values: Values) -> Finish:
    x, stored = values.quantized(op.inputs[0]), values.kernel(op.inputs[1])
    single = stored.integers[0]
    shape = (*single.shape[:2], -1, op.attributes.get("depthMultiplier", 1))
    kernel = Quantized(single.reshape(shape), stored.steps)
    return _linear("depthwise_conv", op, values, x, kernel, **_framing(op, values))


def _connected(op: GraphOp, values: Values) -> Finish:
    """Read a FULLY_CONNECTED; everything but its input size is rows."""
    x, stored = values.quantized(op.inputs[0]), values.kernel(op.inputs[1])
    kernel = Quantized(stored.integers.T, stored.steps)
    if not op.attributes.get("keepNumDims"):
        rows = x.integers.reshape(len(x.integers), -1, kernel.integers.shape[0])
        x = Quantized(rows, x.steps)
    return _linear("dense", op, values, x, kernel)


def _transposed(op: GraphOp, values: Values) -> Finish:
    """Read a TRANSPOSE_CONV: its inputs are the output's shape, the kernel and the data."""
    x, stored = values.quantized(op.inputs[2]), values.kernel(op.inputs[1])
    kernel = Quantized(np.transpose(stored.integers, (1, 2, 0, 3)), stored.steps)
    sizes = [int(size) for size in values.constant(op.inputs[0])[1:3]]
    framing = {**_framing(op, values), "dilation": [1, 1], "output_sizes": sizes}
    return _linear("conv_transpose", op, values, x, kernel, **framing)


def _applied(
    operator: str, read: _Read | None = None, *, ruled: bool = True, **constant: Any
) -> IntegerOperator:
    """Return the reader of an op whose inputs, parameters aside, are an operator's operands.

    Args:
        operator: Key of `OPERATORS`.
        read: Returns the operator's attributes; None if there are none to read.
        ruled: Whether the result depends on the rule.
        **constant: Attributes that every op of the kind has.
    """

    def prepare(op: GraphOp, values: Values) -> Finish:
        keys = op.inputs if operator in _BINARY else op.inputs[:1]
        operands = [values.quantized(key) for key in keys]
        attributes = constant if read is None else {**constant, **read(op, values)}
        return OPERATORS[operator].integer(
            Integers(operands, output_of(op, values), {}, attributes)
        )

    return IntegerOperator(prepare, ruled)


def _prelu(op: GraphOp, values: Values) -> Finish:
    x, alpha = (values.quantized(key) for key in op.inputs)
    return OPERATORS["prelu"].integer(Integers([x], output_of(op, values), {"alpha": alpha}, {}))


def reduction(op: GraphOp, values: Values) -> Attributes:
    """Return the axes that an op reduces, counted with that of the samples."""
    rank = values.array(op.inputs[0]).ndim
    axes = values.constant(op.inputs[1]).reshape(-1)
    return {
        "axes": tuple(sorted({int(axis) % (rank - 1) + 1 for axis in axes})),
        "keepdims": bool(op.attributes.get("keepDims")),
    }


def _resizing(op: GraphOp, values: Values) -> Attributes:
    return {
        "sizes": [int(size) for size in values.constant(op.inputs[1]).reshape(-1)],
        "align_corners": bool(op.attributes.get("alignCorners")),
        "half_pixel": bool(op.attributes.get("halfPixelCenters")),
    }


def _slope(op: GraphOp, values: Values) -> Attributes:
    return {"negative_slope": op.attributes.get("alpha", 0.0)}


def gelu(op: GraphOp, values: Values) -> Attributes:
    """Return the form of a GELU."""
    return {"approximate": bool(op.attributes.get("approximate"))}


def scaled_softmax(op: GraphOp, values: Values) -> Attributes:
    """Return the factor of the numbers of a SOFTMAX."""
    return {"beta": op.attributes.get("beta", 1.0)}


def _matrices(op: GraphOp, values: Values) -> Attributes:
    flags = op.attributes.get("adjX"), op.attributes.get("adjY")
    return {"transpose_first": flags[0], "transpose_second": flags[1]}


def _squared_difference(op: GraphOp, values: Values) -> Finish:
    """Read a SQUARED_DIFFERENCE: operands as in a sum, then squared.

    Source: TFLite, `kernels/squared_difference.cc`.
    """
    left, right = aligned(*(values.quantized(key) for key in op.inputs))
    output = output_of(op, values)
    a, b, y = (float(scale[0]) for scale in (left.scale, right.scale, output.scale))
    twice, shift = 2 * max(a, b), 7

    def finish(rule: Arithmetic) -> Ints:
        parts = [
            rule.times(side.centred << shift, *multiplier(scale / twice))
            for side, scale in ((left, a), (right, b))
        ]
        squares = np.square(parts[0] - parts[1])
        return output.saturated(rule.times(squares, *multiplier(twice**2 / ((1 << 2 * shift) * y))))

    return finish


def _dequantize(op: GraphOp, values: Values) -> Finish:
    """Read a DEQUANTIZE."""
    x = values.quantized(op.inputs[0])
    return lambda rule: rule.dequantized(x.integers, x.point, x.scale)


ARITHMETIC_OPS = {
    "CONV_2D": IntegerOperator(_convolution),
    "DEPTHWISE_CONV_2D": IntegerOperator(_depthwise),
    "FULLY_CONNECTED": IntegerOperator(_connected),
    "TRANSPOSE_CONV": IntegerOperator(_transposed),
    "BATCH_MATMUL": _applied("matmul", _matrices),
    "ADD": _applied("add"),
    "SUB": _applied("subtract"),
    "MUL": _applied("multiply"),
    "SQUARED_DIFFERENCE": IntegerOperator(_squared_difference),
    "MAXIMUM": _applied("maximum", ruled=False),
    "MINIMUM": _applied("minimum", ruled=False),
    "RELU": _applied("relu"),
    "RELU6": _applied("relu", max_value=6.0),
    "RELU_N1_TO_1": _applied("clip", min_value=-1.0, max_value=1.0),
    "RELU_0_TO_1": _applied("clip", min_value=0.0, max_value=1.0),
    "LEAKY_RELU": _applied("leaky_relu", _slope),
    "PRELU": IntegerOperator(_prelu),
    "LOGISTIC": _applied("sigmoid"),
    "TANH": _applied("tanh"),
    "GELU": _applied("gelu", gelu),
    "EXP": _applied("exp"),
    "HARD_SWISH": _applied("hard_silu", ruled=False),
    "ABS": _applied("absolute"),
    "SOFTMAX": _applied("softmax", scaled_softmax),
    "LOG_SOFTMAX": _applied("log_softmax"),
    "MEAN": _applied("reduce_mean", reduction),
    "REDUCE_MAX": _applied("reduce_max", reduction, ruled=False),
    "REDUCE_MIN": _applied("reduce_min", reduction, ruled=False),
    "AVERAGE_POOL_2D": _applied("average_pool", _framing, ruled=False),
    "MAX_POOL_2D": _applied("max_pool", _framing, ruled=False),
    "RESIZE_BILINEAR": _applied("resize", _resizing),
    "DEQUANTIZE": IntegerOperator(_dequantize),
}
