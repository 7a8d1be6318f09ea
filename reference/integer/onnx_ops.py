"""The integer ops of .onnx files: what stands between DequantizeLinear and QuantizeLinear.

ONNX Runtime computes some kinds of such groups in integers (it fuses them into QLinearConv and its
kin), and then shows nothing between the integers that enter and those that leave. All others are
computed as they are written, in float32, and QuantizeLinear itself is the integer op: a division in
float32, to the nearest integer, ties to even.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from scipy.special import softmax

from ...artifacts.graphs.base import ArtifactGraph, GraphOp
from ..operators.pooling import pooled_sums
from .arithmetic import Arithmetic, Ints, Scales
from .base import (
    Finish,
    IntegerOp,
    NotKnownError,
    Values,
    aligned,
    exact_sums,
    known,
    one_of,
    quantized,
    saturated,
)
from .onnx_floats import FLOATS, MOVING, pads
from .onnx_rules import OnnxRuntime, OnnxRuntimePlain

Prepare = Callable[[GraphOp, GraphOp, "OnnxValues"], Finish]


class OnnxValues(Values):
    """The tensors of a file; floats that follow from known integers are computed when asked for."""

    def __init__(self, graph: ArtifactGraph, tensors: Mapping[str, np.ndarray]) -> None:
        super().__init__(graph, tensors)
        self._computed: dict[str, np.ndarray] = {}
        self._producers = {key: op for op in graph.ops for key in op.outputs}

    def producer(self, key: str) -> GraphOp | None:
        """Return the op that gives a tensor, None for inputs and constants."""
        return self._producers.get(key)

    def array(self, key: str) -> np.ndarray:
        """See the base class."""
        op = self._producers.get(key)
        if not self.has(key) and op is not None:
            if op.kind == "DequantizeLinear":
                results: Any = _dequantized(op, self)
            elif op.kind in MOVING or op.kind in FLOATS:
                evaluate = MOVING.get(op.kind) or FLOATS[op.kind]
                results = known(op, lambda: evaluate(op, self))
            else:
                raise NotKnownError(f"{op.kind} in floats")
            arrays = results if isinstance(results, list) else [results]
            self._computed.update(zip(op.outputs, arrays))
        return self._computed[key] if key in self._computed else super().array(key)

    def has(self, key: str) -> bool:
        """See the base class."""
        return key in self._computed or super().has(key)

    def shown(self, key: str) -> bool:
        """Return whether a tensor was given, and not computed here."""
        return super().has(key)

    def behind(self, key: str) -> str:
        """Return the integers that a DequantizeLinear makes a float of.

        Raises:
            NotKnownError: None does.
        """
        op = self._producers.get(key)
        if op is None or op.kind != "DequantizeLinear":
            raise NotKnownError(f"tensor '{key}' is not made of integers")
        return op.inputs[0]


def prepared(op: GraphOp, values: Values) -> Finish | None:
    """Return what is left of an op to do once the rule is known; None where another op does it.

    Raises:
        NotKnownError: The group that it ends is not known.
    """
    assert isinstance(values, OnnxValues)
    if op.kind == "DequantizeLinear":
        return _fixed(_dequantized(op, values)) if op.outputs[0] in values.graph.outputs else None
    if op.kind != "QuantizeLinear":
        if not any(key in values.graph.outputs for key in op.outputs):
            return None
        if op.kind not in MOVING:
            raise NotKnownError(f"{op.kind} in floats at the end")
        return _fixed(known(op, lambda: MOVING[op.kind](op, values)))
    return group(op, values)[1]


def group(op: GraphOp, values: OnnxValues) -> tuple[GraphOp, Finish, bool]:
    """Return the op that computes what a QuantizeLinear writes, its result, and if it is ruled.

    Raises:
        NotKnownError: It is not known.
    """
    steps, core = values.steps(op.outputs[0]), values.producer(op.inputs[0])
    if core is not None and core.kind == "Relu" and not values.shown(op.inputs[0]):
        # A relu that saturation computes as well is left out.
        before = values.producer(core.inputs[0])
        redundant = steps.zero_points[0] == np.iinfo(steps.dtype).min
        if redundant and before is not None and before.kind in FUSED:
            core = before
    if core is not None and core.kind in FUSED and not values.shown(core.outputs[0]):
        found = core
        if _wide(core, op, values):
            raise NotKnownError(f"{core.kind} of 16 bits, which is computed in floats")
        finish = known(found, lambda: FUSED[found.kind](found, op, values))
        return core, lambda rule: known(op, lambda: finish(rule)), True
    result = known(op, lambda: quantized(values.array(op.inputs[0]), steps))
    return (
        core if core is not None and not values.shown(op.inputs[0]) else op,
        _fixed(result),
        False,
    )


def _wide(core: GraphOp, op: GraphOp, values: OnnxValues) -> bool:
    """Return whether an op reads or writes integers of 16 bits, for which there are no kernels."""
    before = [values.producer(key) for key in core.inputs if key]
    read = [maker.inputs[0] for maker in before if maker and maker.kind == "DequantizeLinear"]
    steps = [values.graph.tensors[key].quantization for key in (*read, *op.outputs)]
    return any(entry is not None and entry.dtype.itemsize == 2 for entry in steps)


def integer_ops(values: Values) -> Iterator[IntegerOp]:
    """Yield every op whose numbers can be computed exactly from those that it was given."""
    graph = values.graph
    for op in graph.ops:
        if op.kind not in ("QuantizeLinear", "DequantizeLinear") or not values.has(op.outputs[0]):
            continue
        shown = OnnxValues(graph, values.known)
        try:
            if op.kind == "DequantizeLinear":
                core, finish, ruled = op, _fixed(_dequantized(op, shown)), False
            else:
                core, finish, ruled = group(op, shown)
        except NotKnownError:
            continue
        yield IntegerOp(op, core, values.array(op.outputs[0]), one_of(finish, 0), ruled)


def _fixed(result: np.ndarray | list[np.ndarray]) -> Finish:
    """Return a result that no rule changes."""
    return lambda rule: result


def _dequantized(op: GraphOp, values: Values) -> np.ndarray:
    """Return what a DequantizeLinear gives: one product in float32, by channel for constants."""
    key = op.inputs[0]
    steps = values.graph.tensors[key].quantization
    if steps is None:
        raise NotKnownError("a DequantizeLinear with a computed scale")
    x, shape = values.integers(key), [1] * values.array(key).ndim
    if steps.scales.size > 1:
        shape[steps.axis + 1] = -1
    points = steps.zero_points.reshape(shape)
    return np.asarray(
        (x - points).astype(np.float32) * steps.scales.astype(np.float32).reshape(shape)
    )


def _weights(core: GraphOp, values: OnnxValues) -> tuple[np.ndarray, Scales]:
    """Return a constant kernel as exact float64 integers, and its scales."""
    key = values.behind(core.inputs[1])
    kernel, steps = values.constant(key), values.graph.tensors[key].quantization
    if steps is None or steps.zero_points.any():
        raise NotKnownError("weights with a zero point")
    return kernel.astype(np.float64), values.scale(key)


def _bias(core: GraphOp, values: OnnxValues) -> dict[str, np.ndarray]:
    """Return the bias of an op, if it has one, as exact float64 integers."""
    if len(core.inputs) < 3 or not core.inputs[2]:
        return {}
    return {"bias": values.constant(values.behind(core.inputs[2])).astype(np.float64).reshape(-1)}


def _rescaled(sums: Ints, x: Scales, w: Scales, op: GraphOp, values: Values) -> Finish:
    """Return sums, channels last, brought to the steps of a group's output by a rule."""
    steps, y = values.steps(op.outputs[0]), values.scale(op.outputs[0])
    return lambda rule: saturated(rule.rounded(sums, x, w, y), steps)


def _convolved(core: GraphOp, op: GraphOp, values: OnnxValues) -> Finish:
    """Prepare a Conv; the file has channels first."""
    data = values.behind(core.inputs[0])
    x, (kernel, w) = values.centred(data), _weights(core, values)
    merged = np.moveaxis(x.reshape(-1, *x.shape[2:]), 1, -1)
    groups = int(core.attributes.get("group", 1))
    spatial = tuple(range(2, kernel.ndim))
    strides = core.attributes.get("strides", [1] * len(spatial))
    dilation = core.attributes.get("dilations", [1] * len(spatial))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel.shape[2:], dilation)]
    attributes = {
        "strides": strides,
        "dilation": dilation,
        "groups": groups,
        "padding": pads(core, merged.shape[1:-1], spans, strides),
    }
    operator = "conv"
    if groups == merged.shape[-1] and kernel.shape[1] == 1:
        operator = "depthwise_conv"
        kernel = kernel.reshape(groups, -1, *kernel.shape[2:])
        kernel = np.transpose(kernel, (*spatial, 0, 1))
    else:
        kernel = np.transpose(kernel, (*spatial, 1, 0))
    parts = {"kernel": kernel, **_bias(core, values)}
    sums = exact_sums(operator, merged, parts, attributes)
    finish = _rescaled(sums, values.scale(data), w, op, values)

    def first(rule: Arithmetic) -> Ints:
        rounded = np.moveaxis(np.asarray(finish(rule)), -1, 1)
        return rounded.reshape(*x.shape[:2], *rounded.shape[1:])

    return first


def _multiplied(core: GraphOp, op: GraphOp, values: OnnxValues) -> Finish:
    """Prepare a Gemm, or a MatMul by constants or by a computed matrix."""
    data, other = (values.behind(key) for key in core.inputs[:2])
    x = values.centred(data).astype(np.float64)
    scale = values.scale(data)
    if values.graph.tensors[other].data is None:
        right = values.centred(other).astype(np.float64)
        if x.ndim != right.ndim:
            raise NotKnownError("a product of matrices of other ranks")
        return _rescaled((x @ right).astype(np.int64), scale, values.scale(other), op, values)
    kernel, w = _weights(core, values)
    if core.attributes.get("transA") or kernel.ndim != 2:
        raise NotKnownError(f"a {core.kind} of another form")
    if any(float(core.attributes.get(name, 1.0)) != 1 for name in ("alpha", "beta")):
        raise NotKnownError("a Gemm with factors")
    sums = x @ (kernel.T if core.attributes.get("transB") else kernel)
    sums = sums + _bias(core, values).get("bias", 0.0)
    return _rescaled(sums.astype(np.int64), scale, w, op, values)


def _added(core: GraphOp, op: GraphOp, values: OnnxValues) -> Finish:
    """Prepare an Add of two values, by a rule of its own for each kind of processor."""
    keys = [values.behind(key) for key in core.inputs]
    operands = aligned(*(values.integers(key) for key in keys))
    y, steps = values.scale(op.outputs[0]), values.steps(op.outputs[0])
    ratios = [values.scale(key) / y for key in keys]
    points = [np.float32(values.steps(key).zero_points[0]) for key in keys]
    limits = np.iinfo(steps.dtype)

    def finish(rule: Arithmetic) -> Ints:
        if not isinstance(rule, OnnxRuntime):
            raise NotKnownError("an Add by another rule")
        total = rule.total(operands, ratios, points, np.float32(steps.zero_points[0]))
        return np.clip(np.rint(total), limits.min, limits.max).astype(np.int64)

    return finish


def _product(core: GraphOp, op: GraphOp, values: OnnxValues) -> Finish:
    """Prepare a Mul of two values: one product in float32. Source: MLAS, `qlmul.cpp`."""
    keys = [values.behind(key) for key in core.inputs]
    left, right = aligned(*(values.centred(key) for key in keys))
    a, b, y = (values.scale(key)[0] for key in (*keys, op.outputs[0]))
    steps = values.steps(op.outputs[0])
    return lambda rule: saturated(rule.scaled(left * right, float(a * b / y)), steps)


def _softmax(core: GraphOp, op: GraphOp, values: OnnxValues) -> Finish:
    """Prepare a Softmax on the last axis: a table of float32 exponentials.

    The scale is floor(1/s) instead of 1/s: with s the float32 nearest to 1/255 results are 254/255
    of what they should be. The exponentials are scaled up by a power that divides out; it is kept,
    since it decides how they round. Source: ONNX Runtime, `qlinear_softmax.cc`.
    """
    data = values.behind(core.inputs[0])
    x, steps = values.integers(data), values.steps(op.outputs[0])
    if core.attributes.get("axis", -1) not in (-1, x.ndim - 2):
        raise NotKnownError("a Softmax of another axis")
    scale = float(values.scale(data)[0])
    room = max(0.0, math.log(float(np.finfo(np.float32).max) / x.shape[-1]) - 5) / scale
    table = np.exp((np.arange(256) - 255 + room) * scale).astype(np.float32)
    raised = table[x + 255 - x.max(axis=-1, keepdims=True)]
    sums = np.cumsum(raised, axis=-1, dtype=np.float32)[..., -1:]
    whole = np.floor(np.float32(1) / values.scale(op.outputs[0]))
    shares = np.rint(raised * whole / sums).astype(np.int64)
    exact = softmax(values.array(core.inputs[0]).astype(np.float64), axis=-1).astype(np.float32)
    plain = quantized(exact, steps)
    return lambda rule: plain if isinstance(rule, OnnxRuntimePlain) else saturated(shares, steps)


def _average_pooled(core: GraphOp, op: GraphOp, values: OnnxValues) -> Finish:
    """Prepare an AveragePool: sums of floats, window by window.

    Source: ONNX Runtime, `qlinear_pool.cc`.
    """
    x, steps = values.array(core.inputs[0]), values.steps(op.outputs[0])
    merged = np.moveaxis(x.reshape(-1, *x.shape[2:]), 1, -1)
    size = core.attributes["kernel_shape"]
    strides = core.attributes.get("strides", [1] * len(size))
    padding = pads(core, merged.shape[1:-1], size, strides)
    if core.attributes.get("ceil_mode") or core.attributes.get("count_include_pad"):
        raise NotKnownError("an AveragePool of another form")
    framing = {"pool_size": size, "padding": padding, "strides": strides}
    sums, count = pooled_sums(merged, framing)
    means = np.moveaxis((sums / count).astype(np.float32), -1, 1)
    means = means.reshape(*x.shape[:2], *means.shape[1:])
    y, limits = values.scale(op.outputs[0]), np.iinfo(steps.dtype)
    # The zero point is added before the rounding, which turns ties.
    fused = np.rint(means / y + np.float32(steps.zero_points[0])).clip(limits.min, limits.max)
    plain = quantized(means, steps)
    return lambda rule: plain if isinstance(rule, OnnxRuntimePlain) else fused.astype(np.int64)


def _averaged(core: GraphOp, op: GraphOp, values: OnnxValues) -> Finish:
    """Prepare a GlobalAveragePool."""
    data = values.behind(core.inputs[0])
    x, steps = values.centred(data), values.steps(op.outputs[0])
    axes = tuple(range(3, x.ndim))
    sums, count = x.sum(axis=axes, keepdims=True), int(np.prod(x.shape[3:]))
    scales = values.scale(data)[0], values.scale(op.outputs[0])[0]
    return lambda rule: saturated(rule.averaged(sums, count, *scales), steps)


FUSED: dict[str, Prepare] = {
    "Conv": _convolved,
    "Gemm": _multiplied,
    "MatMul": _multiplied,
    "Add": _added,
    "Mul": _product,
    "AveragePool": _average_pooled,
    "GlobalAveragePool": _averaged,
    "Softmax": _softmax,
}
