"""The integer ops of .onnx files: groups between DequantizeLinear and QuantizeLinear.

ONNX Runtime computes some kinds of such groups in integers (it fuses them into QLinearConv and
similar ops) and then exposes nothing between their integer inputs and outputs. All others are
computed as written, in float32, and QuantizeLinear itself is the integer op: a division in float32,
to the nearest integer, ties to even.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp
from ..operators import OPERATORS
from ..operators.base import Integers
from ..rounding.arithmetic import Arithmetic, Finish
from ..rounding.onnx_rules import OnnxRuntime, OnnxRuntimePlain
from ..rounding.quantized import Ints, NotKnownError, Quantized, quantized
from .base import IntegerOp, Values, known, one_of
from .linear_sums import LinearSums
from .onnx_floats import EXACT, FLOATS, average_pooled
from .onnx_moving import MOVING, axis_of, pads

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

    def exact(self, key: str) -> bool:
        """Return whether a float is computed from integers with the same result everywhere."""
        op = self._producers.get(key)
        if op is None or op.kind == "DequantizeLinear":
            return True
        return op.kind in EXACT and all(self.exact(before) for before in op.inputs if before)

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
    """Return the results of an op as a function of the rule; None if another op computes them.

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
    """Return the op that a QuantizeLinear ends, its result, and whether that depends on the rule.

    Raises:
        NotKnownError: It is not known.
    """
    found = fused(op, values)
    if found is not None:
        finish = _prepared(found, op, values)
        return found, lambda rule: known(op, lambda: finish(rule)), True
    core = values.producer(op.inputs[0])
    finish = known(op, lambda: _quantized(op, values))
    return core if core is not None and not values.shown(op.inputs[0]) else op, finish, False


def _quantized(op: GraphOp, values: OnnxValues) -> Finish:
    """Read a QuantizeLinear of floats, which are rounded in the same way by all rules."""
    floats, steps = values.array(op.inputs[0]), values.steps(op.outputs[0])
    result, exact = quantized(floats, steps), values.exact(op.inputs[0])

    def finish(rule: Arithmetic) -> Ints:
        return result if exact or not rule.turn else quantized(rule.moved(floats), steps)

    return finish


def _prepared(core: GraphOp, op: GraphOp, values: OnnxValues) -> Finish:
    return known(core, lambda: FUSED[core.kind](core, op, values))


def fused(op: GraphOp, values: OnnxValues) -> GraphOp | None:
    """Return the op that is computed in integers together with a QuantizeLinear; None without one.

    Raises:
        NotKnownError: It would be, but for integers of 16 bits.
    """
    steps, core = values.steps(op.outputs[0]), values.producer(op.inputs[0])
    if core is not None and core.kind == "Relu" and not values.shown(op.inputs[0]):
        # A relu that saturation computes as well is left out.
        before = values.producer(core.inputs[0])
        redundant = steps.zero_points[0] == np.iinfo(steps.dtype).min
        if redundant and before is not None and before.kind in FUSED:
            core = before
    if core is None or values.shown(core.outputs[0]) or not _fuses(core, values):
        return None
    if _wide(core, op, values):
        raise NotKnownError(f"{core.kind} of 16 bits, which is computed in floats")
    return core


def _fuses(core: GraphOp, values: OnnxValues) -> bool:
    """Return whether there is a kernel of integers for an op: not for a float constant's sum."""
    makers = [values.producer(key) for key in core.inputs if key]
    return core.kind in FUSED and all(
        m is not None and m.kind == "DequantizeLinear" for m in makers
    )


def _wide(core: GraphOp, op: GraphOp, values: OnnxValues) -> bool:
    """Return whether an op reads or writes integers of 16 bits, for which there are no kernels."""
    before = [values.producer(key) for key in core.inputs if key]
    read = [maker.inputs[0] for maker in before if maker and maker.kind == "DequantizeLinear"]
    steps = [values.graph.tensors[key].quantization for key in (*read, *op.outputs)]
    return any(entry is not None and entry.dtype.itemsize == 2 for entry in steps)


def integer_ops(values: Values) -> Iterator[IntegerOp]:
    """Yield every op whose results can be computed exactly from its inputs."""
    graph = values.graph
    for op in graph.ops:
        if op.kind not in ("QuantizeLinear", "DequantizeLinear") or not values.has(op.outputs[0]):
            continue
        shown, floats = OnnxValues(graph, values.known), None
        try:
            if op.kind == "DequantizeLinear":
                core, finish, ruled = op, _fixed(_dequantized(op, shown)), False
            else:
                core, finish, ruled = group(op, shown)
                if core is not op and not ruled:
                    floats = shown.array(op.inputs[0])
                elif core.kind == "Softmax":
                    floats = _fused_shares(core, op, shown)
        except NotKnownError:
            continue
        got = values.array(op.outputs[0])
        yield IntegerOp(op, core, got, one_of(finish, 0), ruled, floats)


def _fixed(result: np.ndarray | list[np.ndarray]) -> Finish:
    """Return a result that no rule changes."""
    return lambda rule: result


def _dequantized(op: GraphOp, values: Values) -> np.ndarray:
    """Return the result of a DequantizeLinear: one product in float32, by channel for constants."""
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


def linear_sums(core: GraphOp, op: GraphOp, values: OnnxValues) -> LinearSums:
    """Return the exact sums of a Conv, or of a Gemm or MatMul by constants.

    Raises:
        NotKnownError: Its weights are computed, or have a zero point.
    """
    kernel = _kernel(core, values)
    stored, operator = kernel.integers, "dense"
    if core.kind == "Conv":
        grouped = int(core.attributes.get("group", 1)) > 1
        operator = "depthwise_conv" if grouped and stored.shape[1] == 1 else "conv"
    if core.kind == "Conv" or core.attributes.get("transB"):
        stored = np.moveaxis(stored, 0, -1)
    rows = Quantized(stored.reshape(-1, stored.shape[-1]), kernel.steps)
    steps = values.steps(values.behind(core.inputs[0]))
    return LinearSums.made(operator, steps, rows, _bias(core, values), values.output(op))


def _kernel(core: GraphOp, values: OnnxValues) -> Quantized:
    return values.kernel(values.behind(core.inputs[1]))


def _bias(core: GraphOp, values: OnnxValues) -> dict[str, Quantized]:
    has = len(core.inputs) > 2 and core.inputs[2]
    return values.bias(values.behind(core.inputs[2])) if has else {}


def _convolved(core: GraphOp, op: GraphOp, values: OnnxValues) -> Finish:
    """Read a Conv; the file has channels first."""
    x, kernel = values.quantized(values.behind(core.inputs[0])), _kernel(core, values)
    stored = kernel.integers
    merged = np.moveaxis(x.integers, 2, -1)
    groups = int(core.attributes.get("group", 1))
    spatial = tuple(range(2, stored.ndim))
    strides = core.attributes.get("strides", [1] * len(spatial))
    dilation = core.attributes.get("dilations", [1] * len(spatial))
    spans = [(k - 1) * d + 1 for k, d in zip(stored.shape[2:], dilation)]
    attributes = {
        "strides": strides,
        "dilation": dilation,
        "groups": groups,
        "padding": pads(core, merged.shape[2:-1], spans, strides),
    }
    operator = "conv"
    if groups == merged.shape[-1] and stored.shape[1] == 1:
        operator = "depthwise_conv"
        stored = stored.reshape(groups, -1, *stored.shape[2:])
        stored = np.transpose(stored, (*spatial, 0, 1))
    else:
        stored = np.transpose(stored, (*spatial, 1, 0))
    weights = {"kernel": Quantized(stored, kernel.steps), **_bias(core, values)}
    moved = Quantized(merged, x.steps)
    finish = OPERATORS[operator].integer(Integers([moved], values.output(op), weights, attributes))
    return lambda rule: np.moveaxis(finish(rule), -1, 2)


def _multiplied(core: GraphOp, op: GraphOp, values: OnnxValues) -> Finish:
    """Read a Gemm, or a MatMul by constants or by a computed matrix."""
    x, other = values.quantized(values.behind(core.inputs[0])), values.behind(core.inputs[1])
    if values.graph.tensors[other].data is None:
        right = values.quantized(other)
        return OPERATORS["matmul"].integer(Integers([x, right], values.output(op), {}, {}))
    kernel = _kernel(core, values)
    if core.attributes.get("transA") or kernel.integers.ndim != 2:
        raise NotKnownError(f"a {core.kind} of another form")
    if any(float(core.attributes.get(name, 1.0)) != 1 for name in ("alpha", "beta")):
        raise NotKnownError("a Gemm with factors")
    if core.attributes.get("transB"):
        kernel = Quantized(kernel.integers.T, kernel.steps)
    weights = {"kernel": kernel, **_bias(core, values)}
    return OPERATORS["dense"].integer(Integers([x], values.output(op), weights, {}))


def _binary(operator: str) -> Prepare:
    """Return the reader of an op of two values."""

    def prepare(core: GraphOp, op: GraphOp, values: OnnxValues) -> Finish:
        operands = [values.quantized(values.behind(key)) for key in core.inputs]
        return OPERATORS[operator].integer(Integers(operands, values.output(op), {}, {}))

    return prepare


def _softmax(core: GraphOp, op: GraphOp, values: OnnxValues) -> Finish:
    """Read a Softmax."""
    x, axis = _with_axis_last(core, values)
    finish = OPERATORS["softmax"].integer(Integers([x], values.output(op), {}, {}))
    return lambda rule: np.moveaxis(finish(rule), -1, axis)


def _fused_shares(core: GraphOp, op: GraphOp, values: OnnxValues) -> np.ndarray:
    """Return the numbers that a fused Softmax rounds; its sum in float32 may err."""
    (x, axis), y = _with_axis_last(core, values), values.output(op).scale
    return np.moveaxis(OnnxRuntime.unrounded_shares(x.centred, x.scale[0], y) * y, -1, axis)


def _with_axis_last(core: GraphOp, values: OnnxValues) -> tuple[Quantized, int]:
    """Return the integers that a Softmax reads, with its axis moved to the end, and that axis."""
    x = values.quantized(values.behind(core.inputs[0]))
    axis = axis_of(int(core.attributes.get("axis", -1)), x.integers.ndim)
    return Quantized(np.moveaxis(x.integers, axis, -1), x.steps), axis


def _average_pooled(core: GraphOp, op: GraphOp, values: OnnxValues) -> Finish:
    """Read an AveragePool, which is computed in floats, window by window.

    Where it is fused and its only window is the whole map, it is computed as a GlobalAveragePool.
    Source: ONNX Runtime, `qlinear_pool.cc`; the whole map measured of version 1.32.
    """
    means, steps = average_pooled(core, values), values.steps(op.outputs[0])
    y, limits = values.output(op).scale, np.iinfo(steps.dtype)
    # The zero point is added before the rounding, which turns ties.
    fused = np.rint(means / y + np.float32(steps.zero_points[0])).clip(limits.min, limits.max)
    plain = quantized(means, steps)
    whole = _averaged(core, op, values) if _is_whole(core, values) else None

    def finish(rule: Arithmetic) -> Ints:
        if isinstance(rule, OnnxRuntimePlain):
            return plain
        return fused.astype(np.int64) if whole is None else np.asarray(whole(rule))

    return finish


def _is_whole(pool: GraphOp, values: OnnxValues) -> bool:
    """Return whether the window of a pool is the whole map, without padding."""
    size, places = list(pool.attributes["kernel_shape"]), values.array(pool.inputs[0]).shape[3:]
    strides = pool.attributes.get("strides", [1] * len(size))
    return size == list(places) and not np.any(pads(pool, places, size, strides))


def _averaged(core: GraphOp, op: GraphOp, values: OnnxValues) -> Finish:
    """Read a mean over all places."""
    x = values.quantized(values.behind(core.inputs[0]))
    attributes = {"axes": tuple(range(3, x.integers.ndim)), "keepdims": True}
    return OPERATORS["reduce_mean"].integer(Integers([x], values.output(op), {}, attributes))


FUSED: dict[str, Prepare] = {
    "Conv": _convolved,
    "Gemm": _multiplied,
    "MatMul": _multiplied,
    "Add": _binary("add"),
    "Mul": _binary("multiply"),
    "AveragePool": _average_pooled,
    "GlobalAveragePool": _averaged,
    "Softmax": _softmax,
}
