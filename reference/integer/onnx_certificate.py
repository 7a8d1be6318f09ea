"""Determines the runtimes on which an integer .onnx file gives equal integers for all inputs.

ONNX Runtime's rounding in float32, with and without fused multiply-add, is compared with the
fixed-point rules of integer runtimes, for every operator that ONNX Runtime computes in integers
(`onnx_ops`), in the same ways as for a .tflite file (`tflite_certificate`).

An operator that is computed in float32 between integers is undecided unless it only moves them, or
is a function of one integer such as a sigmoid: then no result of any input may be near a tie, where
the last bits of the function would decide.
ONNX Runtime with its fusions turned off is not compared: its sums of floats depend on their order.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp
from ..rounding.arithmetic import Arithmetic, Finish
from ..rounding.onnx_rules import OnnxRuntime, OnnxRuntimeApart
from ..rounding.quantized import NotKnownError, Quantized, quantized, same_steps
from ..rounding.tflite_rules import AwayFromZero, SingleRounding
from .base import known
from .certificate import (
    Certificate,
    CertifiedOp,
    Found,
    by_examples,
    by_floats,
    by_function,
    by_thresholds,
    certified,
    compared,
    every_integer,
    names,
    random_rows,
)
from .linear_sums import LinearSums, MeanSums
from .onnx_floats import FLOATS
from .onnx_moving import MOVING
from .onnx_ops import OnnxValues, fused, group, linear_sums, prepared

RULES: tuple[Arithmetic, ...] = (
    OnnxRuntime(),
    OnnxRuntimeApart(),
    AwayFromZero(),
    SingleRounding(),
)
Shapes = dict[str, tuple[int, ...]]
_MOST_INPUTS = 1 << 24  # integers that an operator with a constant operand is fed
# Functions of one number that runtimes compute in float32, or by a table of such results.
_FUNCTIONS = {
    "Elu", "Erf", "Exp", "Log", "Mish", "Reciprocal", "Selu", "Sigmoid", "Softplus", "Softsign",
    "Sqrt", "Tanh",
}  # fmt: skip
# Of the range of a result: sixteen units in the last place of a float32 number of that size.
_NEAR_TIE = 2.0**-20


def certify_onnx(graph: ArtifactGraph) -> Certificate:
    """Compare the rounding rules on all inputs of every operator of an .onnx file.

    The operators between integers are listed by the QuantizeLinear that ends them.
    """
    values, shapes = OnnxValues(graph, {}), _shapes(graph)
    found, between = [], set()
    for op in graph.ops:
        if op.kind == "QuantizeLinear":
            found.append(_certified(op, values, shapes))
            between |= _before(op, values)
    for op in graph.ops:
        if op.kind not in ("QuantizeLinear", "DequantizeLinear") and op.index not in between:
            found.append(CertifiedOp(op.index, op.kind, op.outputs[0], "floats"))
    found.sort(key=lambda entry: entry.index)
    return Certificate(tuple(found), tuple(rule.kernels for rule in RULES))


def _shapes(graph: ArtifactGraph) -> Shapes:
    """Return the shapes of the integer tensors, found by running the file on one zero sample."""
    held = {
        key: np.zeros((1, *(max(size, 1) for size in graph.tensors[key].shape)), tensor.dtype)
        for key in graph.inputs
        for tensor in [graph.tensors[key]]
    }
    for op in graph.ops:
        try:
            finish = prepared(op, OnnxValues(graph, held))
            results = finish(RULES[0]) if finish is not None else []
        except NotKnownError:
            continue
        held.update(zip(op.outputs, results if isinstance(results, list) else [results]))
    return {key: array.shape[1:] for key, array in held.items()}


def _before(op: GraphOp, values: OnnxValues) -> set[int]:
    """Return the indices of the ops between the integers before and those of a QuantizeLinear."""
    found: set[int] = set()
    waiting = list(op.inputs)
    while waiting:
        maker = values.producer(waiting.pop())
        if maker is not None and maker.kind != "DequantizeLinear" and maker.index not in found:
            found.add(maker.index)
            waiting.extend(maker.inputs)
    return found


def _certified(op: GraphOp, values: OnnxValues, shapes: Shapes) -> CertifiedOp:
    core = values.producer(op.inputs[0])
    kind = op.kind if core is None or core.kind == "DequantizeLinear" else core.kind
    try:
        core = fused(op, values)
        if core is None:
            return _not_fused(op, kind, values)
        kind = core.kind
        return dataclasses.replace(_fused(core, op, values, shapes), kind=kind)
    except NotKnownError as reason:
        return CertifiedOp(op.index, kind, op.outputs[0], "", why=str(reason))


def _fused(core: GraphOp, op: GraphOp, values: OnnxValues, shapes: Shapes) -> CertifiedOp:
    """Compare the rules in an op that is computed in integers."""
    name, keys = op.outputs[0], [values.behind(key) for key in core.inputs if key]
    read = [key for key in dict.fromkeys(keys) if values.graph.tensors[key].data is None]
    if core.kind in ("Conv", "Gemm", "MatMul") and len(read) == 1:
        sums = linear_sums(core, op, values)
        found = by_thresholds(sums, RULES)
        return certified(op, name, "thresholds", found, sums.ends.shape[1])
    if core.kind == "MatMul" and len(keys) == 2:
        count = shapes.get(keys[0], ())[-1:]
        if not count:
            raise NotKnownError("a product of matrices of unknown sizes")
        factors = values.steps(keys[0]), values.steps(keys[1])
        sums = LinearSums.of_matrices(factors, count[0], values.output(op))
        return certified(op, name, "thresholds", by_thresholds(sums, RULES), 1)
    if core.kind in ("Add", "Mul"):
        return certified(op, name, "all inputs", _of_pairs(op, keys, read, values))
    steps, shape = values.steps(read[0]), shapes.get(read[0], ())
    if core.kind == "Softmax" and core.attributes.get("axis", -1) in (-1, len(shape) - 1):
        groups = by_function(lambda rule: type(rule).shares, RULES)
        rows = random_rows(steps, shape[-1], 0)
        rows = rows.reshape(len(rows), *[1] * (len(shape) - 1), shape[-1])
        return certified(
            op, name, "functions", by_examples(groups, _finish(op, {read[0]: rows}, values), [rows])
        )
    if core.kind == "GlobalAveragePool" and len(shape) > 2:
        means = MeanSums(int(np.prod(shape[2:])), steps, values.output(op), places=False)
        return certified(op, name, "all sums", by_thresholds(means, RULES))
    raise NotKnownError("not a sum and no function of one or two integers")


def _of_pairs(op: GraphOp, keys: list[str], read: list[str], values: OnnxValues) -> Found:
    """Compare the rules on all integers of one or two operands."""
    every = every_integer([values.steps(key) for key in read])
    constants = [values.constant(key) for key in keys if key not in read]
    if constants:  # every integer with every constant
        if every[0].size * constants[0].size > _MOST_INPUTS:
            raise NotKnownError("a constant operand of too many numbers")
        every = [every[0].reshape(-1, *[1] * constants[0].ndim)]
    return compared(_finish(op, dict(zip(read, every)), values), every, RULES)


def _finish(op: GraphOp, fed: dict[str, np.ndarray], values: OnnxValues) -> Finish:
    return group(op, OnnxValues(values.graph, fed))[1]


def _not_fused(op: GraphOp, kind: str, values: OnnxValues) -> CertifiedOp:
    """Compare the rules in a QuantizeLinear of floats, or of integers in other steps.

    Source: ONNX, QuantizeLinear: a division in float32, rounded to the nearest integer, ties to
    even. Fixed-point rules quantize and requantize in their own ways.
    """
    name, output = op.outputs[0], values.output(op)
    if kind in _FUNCTIONS:
        return _of_one_integer(op, kind, values)
    sources = _sources(op.inputs[0], values)
    steps = [None if source is None else values.steps(source) for source in sources]
    if all(entry is not None and same_steps(entry, output.steps) for entry in steps):
        return CertifiedOp(op.index, kind, name, "moves integers")
    if len(sources) > 1:
        raise NotKnownError("it joins integers in other steps")
    if steps[0] is None:

        def rounded(rule: Arithmetic, numbers: np.ndarray, lanes: int) -> np.ndarray:
            if isinstance(rule, OnnxRuntime):
                return quantized(numbers, output.steps) - output.point
            return np.asarray(rule.quantized(numbers, output.scale))

        return certified(op, name, "thresholds", by_floats(rounded, output, [1], RULES))
    (every,) = every_integer([steps[0]])
    given = Quantized(every.astype(np.int64), steps[0])

    def requantized(rule: Arithmetic) -> np.ndarray:
        if isinstance(rule, OnnxRuntime):
            return quantized(given.centred.astype(np.float32) * given.scale, output.steps)
        return output.saturated(rule.requantized(given.centred, given.scale, output.scale))

    return certified(op, name, "all inputs", compared(requantized, [every], RULES))


def _of_one_integer(op: GraphOp, kind: str, values: OnnxValues) -> CertifiedOp:
    """Show that no result of a function is near a tie, so that all runtimes round it alike."""
    core = values.producer(op.inputs[0])
    assert core is not None
    (source,) = _sources(core.inputs[0], values)
    if source is None:
        raise NotKnownError(f"{kind} of floats")
    output, (every,) = values.output(op), every_integer([values.steps(source)])
    fed = OnnxValues(values.graph, {source: every})
    results = known(core, lambda: FLOATS[kind](core, fed)).astype(np.float64) / output.scale
    within = (results > output.levels[0] - 1) & (results < output.levels[-1])
    apart = np.abs(results - np.floor(results) - 0.5)
    near = np.isnan(results) | within & (apart < _NEAR_TIE * (len(output.levels) + 1))
    if near.any():
        raise NotKnownError(
            f"{kind} is computed in floats, and {int(near.sum())} of its {results.size:,} results "
            "are too near a tie to be equal on all runtimes"
        )
    return certified(op, op.outputs[0], "all inputs", (names([list(RULES)]), []))


def _sources(key: str, values: OnnxValues) -> list[str | None]:
    """Return the integers that a float tensor only moves; None for an input of floats.

    Raises:
        NotKnownError: It is computed in floats.
    """
    maker = values.producer(key)
    if maker is None:
        return [None]
    if maker.kind == "DequantizeLinear":
        return [maker.inputs[0]]
    if maker.kind not in MOVING:
        raise NotKnownError(f"{maker.kind} is computed in floats")
    data = [entry for entry in maker.inputs if entry and values.graph.tensors[entry].data is None]
    return [source for entry in data for source in _sources(entry, values)]
