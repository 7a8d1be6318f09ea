"""Determines the runtimes on which an integer .tflite file gives equal integers for all inputs.

Every operator is compared under every known rounding rule, for all possible inputs:

- sums (convolutions, dense layers): by the thresholds of each channel (`rounding.thresholds`);
- functions of one integer, or of two 8-bit integers: all inputs, at most 65,536;
- products of two 16-bit integers: by the thresholds of the exact product;
- means: every possible sum of the integers;
- conversions of floats to integers: by thresholds among all finite float32 numbers;
- operators that several rules compute by the same function: equal for all inputs.

If the rules agree in all operators, they agree in the file, by induction, since equal inputs give
equal outputs. Any other operator is listed as undecided.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp
from ..rounding.arithmetic import Arithmetic
from ..rounding.quantized import NotKnownError
from ..rounding.xnnpack import tflite_rules
from .base import Values
from .certificate import (
    Certificate,
    CertifiedOp,
    Found,
    Rules,
    by_examples,
    by_floats,
    by_function,
    by_products,
    by_thresholds,
    certified,
    compared,
    every_integer,
    names,
    random_rows,
    sums_of_means,
)
from .linear_sums import LINEAR, LinearSums
from .tflite_arithmetic import output_of
from .tflite_ops import TFLITE_OPS, bits_of, prepared

_ELEMENTWISE = {
    "ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "RELU", "RELU6",
    "RELU_N1_TO_1", "RELU_0_TO_1", "LEAKY_RELU", "LOGISTIC", "TANH", "GELU", "EXP", "HARD_SWISH",
    "ABS", "QUANTIZE",
}  # fmt: skip
# Operators that all runtimes compute by one rule, as measured. AVERAGE_POOL_2D takes a half away
# from zero: for every sum of 4 to 64 integers of 8 bits, and 40,000 sums of integers of 16 bits, on
# LiteRT (XNNPACK, built-in and reference kernels) and TFLite Micro.
_ONE_RULE = {"AVERAGE_POOL_2D", "HARD_SWISH", "MAXIMUM", "MINIMUM"}
_MOST_THRESHOLDS = 1 << 23
_MOST_INPUTS = 1 << 24  # integers that an operator with a constant operand is fed


def certify_tflite(graph: ArtifactGraph) -> Certificate:
    """Compare all rounding rules on all inputs of every operator of a .tflite file."""
    rules = tflite_rules(graph)
    ops = tuple(_certified(graph, op, rules) for op in graph.ops)
    return Certificate(ops, tuple(rule.kernels for rule in rules))


def _certified(graph: ArtifactGraph, op: GraphOp, rules: Rules) -> CertifiedOp:
    name = graph.tensors[op.outputs[0]].name if op.outputs else ""
    try:
        return _decided(graph, op, name, rules)
    except NotKnownError as reason:
        return CertifiedOp(op.index, op.kind, name, "", why=str(reason))


def _decided(graph: ArtifactGraph, op: GraphOp, name: str, rules: Rules) -> CertifiedOp:
    activations = list(dict.fromkeys(graph.activations(op)))
    steps = [graph.tensors[key].quantization for key in (*activations, *op.outputs)]
    integer = [entry for entry in steps if entry is not None]
    if op.kind == "DEQUANTIZE" or not integer:
        return CertifiedOp(op.index, op.kind, name, "floats")
    if op.kind == "QUANTIZE" and len(integer) == 1:
        return certified(op, name, "thresholds", _from_floats(graph, op, rules))
    bits = bits_of(graph, op)
    if op.kind in TFLITE_OPS and not TFLITE_OPS[op.kind].ruled:
        method = "one rule" if op.kind in _ONE_RULE else "moves integers"
        return CertifiedOp(op.index, op.kind, name, method)
    if op.kind in LINEAR and bits in (8, 16):
        sums = LinearSums.of(graph, op)
        channels = sums.ends.shape[1]
        groups = by_function(sums.rescaling, rules)
        if len(groups) == 1:
            return certified(op, name, "functions", (names(groups), []), channels)
        if channels << bits > _MOST_THRESHOLDS:
            raise NotKnownError(f"{channels} channels of {bits} bits have too many thresholds")
        return certified(op, name, "thresholds", by_thresholds(sums, rules), channels)
    if op.kind == "SOFTMAX" or (bits == 16 and op.kind in ("ADD", "SUB")):
        return certified(op, name, "functions", _by_examples(graph, op, rules))
    if op.kind == "MUL" and bits == 16 and len(activations) == 2:
        values = Values(graph, {})
        factors = values.steps(activations[0]), values.steps(activations[1])
        found = by_products(factors, output_of(op, values), rules)
        return certified(op, name, "thresholds", found)
    if op.kind in _ELEMENTWISE:
        return certified(op, name, "all inputs", _exhaustive(graph, op, rules))
    if bits != 8:
        raise NotKnownError(f"integers of {bits} bits")
    if op.kind == "MEAN":
        return certified(op, name, "all sums", _means(graph, op, rules))
    raise NotKnownError("not a sum and no function of one or two integers")


def _by_examples(graph: ArtifactGraph, op: GraphOp, rules: Rules) -> Found:
    """Group the rules by their functions, and find inputs on which these differ."""
    wide = bits_of(graph, op) == 16
    groups = by_function(lambda rule: _functions(rule, op.kind, wide), rules)
    if len(groups) == 1:
        return names(groups), []
    values, keys = Values(graph, {}), list(dict.fromkeys(graph.activations(op)))
    fed = {
        key: random_rows(values.steps(key), graph.tensors[key].shape[-1], seed)
        for seed, key in enumerate(keys)
    }
    return by_examples(groups, prepared(op, Values(graph, fed)), list(fed.values()))


def _functions(rule: Arithmetic, kind: str, wide: bool) -> Any:
    """Return the functions by which a rule computes a softmax or a sum of 16-bit integers."""
    if kind == "SOFTMAX":
        return None if wide else type(rule).shares  # one table for all where it is wide
    served = type(rule.of_bits(16))
    return served.added, getattr(served, "times", None)


def _from_floats(graph: ArtifactGraph, op: GraphOp, rules: Rules) -> Found:
    output = output_of(op, Values(graph, {}))
    size = int(np.prod([max(length, 1) for length in graph.tensors[op.inputs[0]].shape[1:]]))
    together = [*([8] if size >= 8 else []), *([1] if size % 8 else [])]

    def rounded(rule: Arithmetic, numbers: np.ndarray, lanes: int) -> np.ndarray:
        given = np.repeat(numbers[:, None], lanes, axis=1)
        return np.asarray(rule.quantized(given, output.scale))[:, 0]

    return by_floats(rounded, output, together, rules)


def _exhaustive(graph: ArtifactGraph, op: GraphOp, rules: Rules) -> Found:
    """Compare the rules on every combination of the integers that an operator reads."""
    keys = list(dict.fromkeys(graph.activations(op)))
    wide = bits_of(graph, op) > 8
    if not 1 <= len(keys) <= (1 if wide else 2):
        raise NotKnownError(f"{len(keys)} inputs{' of 16 bits' if wide else ''}")
    values = Values(graph, {})
    constants = [values.constant(key) for key in op.inputs if key and key not in keys]
    every = every_integer([values.steps(key) for key in keys])
    several = [constant for constant in constants if constant.size != 1]
    if several:  # every integer with every constant
        if len(keys) > 1 or len(several) > 1 or every[0].size * several[0].size > _MOST_INPUTS:
            raise NotKnownError("a constant operand of several numbers")
        every = [every[0].reshape(-1, *[1] * several[0].ndim)]
    return compared(prepared(op, Values(graph, dict(zip(keys, every)))), every, rules)


def _means(graph: ArtifactGraph, op: GraphOp, rules: Rules) -> Found:
    """Compare the rules on inputs that have every sum there can be."""
    key = op.inputs[0]
    shape, values = graph.tensors[key].shape, Values(graph, {})
    if len(shape) != 4 or -1 in shape:
        raise NotKnownError("a mean of another form")
    axes = values.constant(op.inputs[1]).reshape(-1)
    if sorted(int(axis) % 4 for axis in axes) != [1, 2]:
        raise NotKnownError("a mean over other axes")
    totals, fed = sums_of_means(values.steps(key), shape[1] * shape[2])
    fed = fed.reshape(len(totals), 1, shape[1], shape[2], 1)
    finish = prepared(op, Values(graph, {key: fed}))
    return compared(lambda rule: np.asarray(finish(rule)).reshape(-1), [totals], rules)
