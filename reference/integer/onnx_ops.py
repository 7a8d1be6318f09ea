"""The integer ops of .onnx files: what stands between DequantizeLinear and QuantizeLinear.

A runtime may compute such a group in integers (ONNX Runtime fuses it into QLinearConv and its kin),
and then shows nothing between the integers that enter and those that leave. Where it shows the
floats between, as with optimizations off, QuantizeLinear itself is the integer op: a division in
float32, to the nearest integer, ties to even.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from ...artifacts.graphs.base import GraphOp, Quantization
from ..operators.linear import LINEAR, same_padding
from ..operators.pooling import pooled_sums
from .arithmetic import Arithmetic, Ints
from .base import Finish, IntegerOp, Samples, quantized, saturated

Prepare = Callable[[GraphOp, GraphOp, Samples], "Finish | None"]


def integer_ops(samples: Samples) -> Iterator[IntegerOp]:
    """Yield every op whose integers can be computed exactly."""
    producers = {key: op for op in samples.graph.ops for key in op.outputs}
    for op in samples.graph.ops:
        if op.kind not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        got = samples.shown(op.outputs[0])
        if got is None:
            continue
        exact = (
            _dequantized(op, samples) if op.kind == "DequantizeLinear" else _divided(op, samples)
        )
        if exact is not None:
            yield IntegerOp(op, op, got, exact, ruled=False)
            continue
        core = producers.get(op.inputs[0])
        if core is None or core.kind not in PREPARED:
            continue
        # What the group reads are integers, turned to floats for it alone.
        read = [_integers_behind(key, producers) for key in core.inputs]
        finish = PREPARED[core.kind](replace(core, inputs=tuple(read)), op, samples)
        if finish is not None:
            yield IntegerOp(op, core, got, finish, ruled=core.kind not in _UNRULED)


def _integers_behind(key: str, producers: dict[str, GraphOp]) -> str:
    """Return the integer tensor that a DequantizeLinear made a float of; others as they are."""
    op = producers.get(key)
    return op.inputs[0] if op is not None and op.kind == "DequantizeLinear" else key


def _divided(op: GraphOp, samples: Samples) -> Finish | None:
    """Prepare a QuantizeLinear whose floats are shown."""
    values, steps = samples.floats(op.inputs[0]), samples.steps(op.outputs[0])
    if values is None or steps is None or steps.scales.size != 1:
        return None
    return lambda rule: quantized(values, steps)


def _dequantized(op: GraphOp, samples: Samples) -> Finish | None:
    """Prepare a DequantizeLinear: one product in float32."""
    x = samples.centred(op.inputs[0])
    if x is None:
        return None
    real = x.astype(np.float32) * samples.scale(op.inputs[0])
    return lambda rule: real


def _rescaled(sums: Ints, weight: str, read: str, op: GraphOp, samples: Samples) -> Finish | None:
    """Return sums, channels last, brought to the steps of a group's output by a rule."""
    steps, shown = samples.steps(op.outputs[0]), samples.integers(op.outputs[0])
    if steps is None or shown is None:
        return None
    scales = samples.scale(read), samples.scale(weight), samples.scale(op.outputs[0])

    def finish(rule: Arithmetic) -> Ints:
        values = saturated(rule.rounded(sums, *scales), steps, -np.inf, np.inf)
        return np.moveaxis(values, -1, 1).reshape(shown.shape)

    return finish


def _parts(core: GraphOp, samples: Samples) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
    """Return input, kernel and bias of a linear op as exact float64 integers."""
    x, kernel = samples.centred(core.inputs[0]), samples.constant(core.inputs[1])
    if x is None or kernel is None or kernel.data is None or kernel.data.dtype.itemsize != 1:
        return None
    steps: Quantization | None = kernel.quantization
    if steps is None or steps.zero_points.any():
        return None
    parts = {"kernel": kernel.data.astype(np.float64)}
    bias = samples.constant(core.inputs[2]) if len(core.inputs) > 2 else None
    if bias is not None and bias.data is not None:
        if bias.data.dtype.kind not in "iu":
            return None
        parts["bias"] = bias.data.astype(np.float64).reshape(-1)
    return x.astype(np.float64), parts


def _convolved(core: GraphOp, op: GraphOp, samples: Samples) -> Finish | None:
    """Prepare a Conv; the file has channels first."""
    parts = _parts(core, samples)
    if parts is None:
        return None
    x, weights = np.moveaxis(parts[0], 1, -1), parts[1]
    kernel, groups = weights["kernel"], int(core.attributes.get("group", 1))
    spatial = tuple(range(2, kernel.ndim))
    ones = [1] * len(spatial)
    attributes = {
        "strides": core.attributes.get("strides", ones),
        "dilation": core.attributes.get("dilations", ones),
        "groups": groups,
    }
    attributes["padding"] = _pads(core, x.shape[1:-1], kernel.shape[2:], attributes["strides"])
    operator = "conv"
    if groups == x.shape[-1] and kernel.shape[1] == 1:
        operator = "depthwise_conv"
        kernel = kernel.reshape(groups, -1, *kernel.shape[2:])
        weights["kernel"] = np.transpose(kernel, (*spatial, 0, 1))
    else:
        weights["kernel"] = np.transpose(kernel, (*spatial, 1, 0))
    sums = LINEAR[operator].evaluate([x], weights, attributes).astype(np.int64)
    return _rescaled(sums, core.inputs[1], core.inputs[0], op, samples)


def _pads(
    core: GraphOp, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Return the zero padding of every spatial axis, as an ONNX node has it."""
    if core.attributes.get("auto_pad", "NOTSET") in ("SAME_UPPER",):
        return [same_padding(*axis) for axis in zip(sizes, kernel, strides)]
    pads = core.attributes.get("pads", [0] * 2 * len(sizes))
    return list(zip(pads[: len(sizes)], pads[len(sizes) :]))


def _multiplied(core: GraphOp, op: GraphOp, samples: Samples) -> Finish | None:
    """Prepare a Gemm or MatMul with constant weights."""
    parts = _parts(core, samples)
    if parts is None or core.attributes.get("transA", 0):
        return None
    x, weights = parts
    if core.attributes.get("transB", 0):
        weights["kernel"] = weights["kernel"].T
    if weights["kernel"].ndim != 2:
        return None
    sums = LINEAR["dense"].evaluate([x], weights, {}).astype(np.int64)
    return _rescaled(sums, core.inputs[1], core.inputs[0], op, samples)


def _added(core: GraphOp, op: GraphOp, samples: Samples) -> Finish | None:
    """Prepare an Add of two computed values: fused multiply-adds in float32.

        round( q_b (s_b/s_y) + ( q_a (s_a/s_y) + (z_y - (z_a s_a/s_y + z_b s_b/s_y)) ) )

    Source: ONNX Runtime, MLAS `qladd.cpp`, the kernel for AVX2. Other processors have kernels with
    other arithmetic, which is not known here: there the op is held to its bound.
    """
    steps, shown = samples.steps(op.outputs[0]), samples.integers(op.outputs[0])
    operands = [samples.integers(key) for key in core.inputs]
    read = [samples.steps(key) for key in core.inputs]
    if platform.machine().lower() not in ("x86_64", "amd64") or steps is None or shown is None:
        return None
    y, part = samples.scale(op.outputs[0]), np.zeros(1, np.float32)
    terms = []
    for values, known, key in zip(operands, read, core.inputs):
        if values is None or known is None:
            return None
        ratio = samples.scale(key) / y
        part = part + ratio * np.float32(known.zero_points[0])
        terms.append(values * ratio.astype(np.float64))
    total = (np.float32(steps.zero_points[0]) - part).astype(np.float64)
    for term in terms:
        # The product of 8 and 24 bits is exact in float64: rounded once, as a fused operation is.
        total = (term + total).astype(np.float32).astype(np.float64)
    limits = np.iinfo(steps.dtype)
    exact = np.clip(np.rint(total), limits.min, limits.max).astype(np.int64)
    return lambda rule: exact


def _softmax(core: GraphOp, op: GraphOp, samples: Samples) -> Finish | None:
    """Prepare a Softmax on the last axis: a table of float32 exponentials.

    The scale is floor(1/s) instead of 1/s: with s the float32 nearest to 1/255 results are 254/255
    of what they should be. The exponentials are scaled up by a power that divides out; it is kept,
    since it decides how they round. Source: ONNX Runtime, `qlinear_softmax.cc`.
    """
    x, steps = samples.integers(core.inputs[0]), samples.steps(op.outputs[0])
    if x is None or steps is None or core.attributes.get("axis", -1) not in (-1, x.ndim - 1):
        return None
    scale = float(samples.scale(core.inputs[0])[0])
    room = max(0.0, math.log(float(np.finfo(np.float32).max) / x.shape[-1]) - 5) / scale
    table = np.exp((np.arange(256) - 255 + room) * scale).astype(np.float32)
    raised = table[x + 255 - x.max(axis=-1, keepdims=True)]
    sums = np.cumsum(raised, axis=-1, dtype=np.float32)[..., -1:]
    whole = np.floor(np.float32(1) / samples.scale(op.outputs[0]))
    values = np.rint(raised * whole / sums).astype(np.int64)
    return lambda rule: saturated(values, steps, -np.inf, np.inf)


def _averaged(core: GraphOp, op: GraphOp, samples: Samples) -> Finish | None:
    """Prepare an AveragePool without padding, or a global one."""
    x, steps = samples.centred(core.inputs[0]), samples.steps(op.outputs[0])
    if x is None or steps is None or any(core.attributes.get("pads", [])):
        return None
    if core.attributes.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    size = core.attributes.get("kernel_shape", x.shape[2:])
    framing = {"pool_size": size, "padding": "valid"}
    framing["strides"] = core.attributes.get("strides", [1] * len(size))
    sums, _ = pooled_sums(np.moveaxis(x, 1, -1), framing)
    scales = samples.scale(core.inputs[0])[0], samples.scale(op.outputs[0])[0]

    def finish(rule: Arithmetic) -> Ints:
        values = rule.averaged(sums, int(np.prod(size)), *scales)
        return np.moveaxis(saturated(values, steps, -np.inf, np.inf), -1, 1)

    return finish


def _reshaped(core: GraphOp, op: GraphOp, samples: Samples) -> Finish | None:
    """Prepare a Reshape: integers of the same steps in another shape."""
    x, shown = samples.integers(core.inputs[0]), samples.integers(op.outputs[0])
    if x is None or shown is None:
        return None
    same = np.array_equal(samples.scale(core.inputs[0]), samples.scale(op.outputs[0]))
    return (lambda rule: x.reshape(shown.shape)) if same else None


PREPARED: dict[str, Prepare] = {
    "Conv": _convolved,
    "Gemm": _multiplied,
    "MatMul": _multiplied,
    "Add": _added,
    "AveragePool": _averaged,
    "GlobalAveragePool": _averaged,
    "Reshape": _reshaped,
    "Softmax": _softmax,
}
_UNRULED = ("Add", "Reshape", "Softmax")
