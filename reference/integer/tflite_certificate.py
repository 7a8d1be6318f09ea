"""Determines the runtimes on which an integer .tflite file gives equal integers for all inputs.

Every operator is compared under every known rounding rule, for all possible inputs:

- sums (convolutions, dense layers): by the thresholds of each channel (`rounding.thresholds`);
- functions of one integer, or of two 8-bit integers: all inputs, at most 65,536;
- products of two 16-bit integers: by the thresholds of the exact product;
- means and products of two computed matrices: by thresholds of the exact sum;
- conversions of floats to integers: by thresholds among all finite float32 numbers;
- operators that several rules compute by the same function: equal for all inputs.

If the rules agree in all operators, they agree in the file, by induction, since equal inputs give
equal outputs. Any other operator is listed as undecided.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp, GraphTensor, Quantization
from ..rounding.arithmetic import Arithmetic
from ..rounding.quantized import NotKnownError
from ..rounding.xnnpack import TFLITE_RULES, tflite_rules
from .base import Values
from .certificate import (
    Certificate,
    CertifiedOp,
    Found,
    Groups,
    Rules,
    Sums,
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
)
from .linear_sums import LINEAR, LinearSums, MeanSums
from .tflite_arithmetic import output_of
from .tflite_moving import MOVING_OPS
from .tflite_ops import TFLITE_OPS, bits_of, prepared

_ELEMENTWISE = {
    "ADD", "SUB", "MUL", "SQUARED_DIFFERENCE", "RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1",
    "LEAKY_RELU", "PRELU", "LOGISTIC", "TANH", "GELU", "EXP", "LOG", "RSQRT", "ABS", "QUANTIZE",
    "EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL",
}  # fmt: skip
# Operators that choose among the integers they read; others without a rule compute by one function
# on all runtimes, as measured. AVERAGE_POOL_2D takes a half away from zero: for every sum of 4 to
# 64 integers of 8 bits, and 40,000 sums of integers of 16 bits, on LiteRT (XNNPACK, built-in and
# reference kernels) and TFLite Micro.
_CHOOSING = {
    "MAX_POOL_2D", "MAXIMUM", "MINIMUM", "REDUCE_MAX", "REDUCE_MIN", "SELECT", "SELECT_V2",
    "ARG_MAX", "ARG_MIN", "TOPK_V2", *MOVING_OPS,
}  # fmt: skip
# Relations that compare 16-bit integers as they are.
_ORDERED = {"GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL"}
# Operators of 16 bits that depend on a rule's product with a multiplier of their own.
_OF_TIMES = {"SQUARED_DIFFERENCE", "EQUAL", "NOT_EQUAL"}
_MOST_THRESHOLDS = 1 << 23
_MOST_INPUTS = 1 << 24  # integers that an operator with a constant operand is fed
_MOST_RANDOM = 1 << 20  # random integers that an operator is fed


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
        _require_known(graph, op)
        method = "moves integers" if op.kind in _CHOOSING else "one rule"
        return CertifiedOp(op.index, op.kind, name, method)
    if op.kind in _ORDERED and bits == 16:
        return CertifiedOp(op.index, op.kind, name, "one rule")
    sums = _sums(graph, op)
    if isinstance(sums, LinearSums):
        channels = sums.ends.shape[1]
        groups = by_function(sums.rescaling, rules)
        if len(groups) == 1:
            return certified(op, name, "functions", (names(groups), []), channels)
        if channels << bits > _MOST_THRESHOLDS:
            raise NotKnownError(f"{channels} channels of {bits} bits have too many thresholds")
        return certified(op, name, "thresholds", by_thresholds(sums, rules), channels)
    if sums is not None:
        return certified(op, name, "all sums", by_thresholds(sums, rules))
    if (function := _function(op.kind, bits)) is not None:
        found = _by_examples(graph, op, by_function(function, rules))
        return certified(op, name, "functions", found)
    if op.kind == "MUL" and bits == 16 and len(activations) == 2:
        values = Values(graph, {})
        factors = values.steps(activations[0]), values.steps(activations[1])
        found = by_products(factors, output_of(op, values), rules)
        return certified(op, name, "thresholds", found)
    if op.kind in _ELEMENTWISE:
        return certified(op, name, "all inputs", _exhaustive(graph, op, rules))
    raise NotKnownError("not a sum and no function of one or two integers")


def _require_known(graph: ArtifactGraph, op: GraphOp) -> None:
    """Raise `NotKnownError` if an operator has a form that is not known, such as other steps."""
    fed = {key: _filled(graph.tensors[key]) for key in graph.activations(op)}
    prepared(op, Values(graph, fed))(TFLITE_RULES[0])


def _filled(tensor: GraphTensor) -> np.ndarray:
    """Return one sample of a tensor, of ones."""
    steps = tensor.quantization
    point = 0 if steps is None or steps.zero_points.size != 1 else int(steps.zero_points[0])
    limits = np.iinfo(tensor.dtype) if np.dtype(tensor.dtype).kind in "iu" else None
    one = 1 if limits is None else min(point + 1, limits.max)
    return np.full((1, *(max(size, 1) for size in tensor.shape)), one, tensor.dtype)


def _sums(graph: ArtifactGraph, op: GraphOp) -> Sums | None:
    """Return the exact sums of an operator; None if it is no sum of all integers it reads."""
    values = Values(graph, {})
    if op.kind in LINEAR:
        return LinearSums.of(graph, op)
    if op.kind == "BATCH_MATMUL":
        keys = op.inputs[:2]
        if any(graph.tensors[key].data is not None for key in keys):
            raise NotKnownError("a product with a constant matrix")
        first = graph.tensors[keys[0]].shape
        count = first[-2 if op.attributes.get("adjX") else -1]
        factors = values.steps(keys[0]), values.steps(keys[1])
        return LinearSums.of_matrices(factors, count, output_of(op, values))
    if op.kind == "MEAN":
        shape, steps = graph.tensors[op.inputs[0]].shape, values.steps(op.inputs[0])
        axes = {int(axis) % len(shape) for axis in values.constant(op.inputs[1]).reshape(-1)}
        count = int(np.prod([shape[axis] for axis in axes]))
        if count < 1:
            raise NotKnownError("a mean of an unknown number of integers")
        places = len(shape) == 4 and axes == {1, 2} and bool(op.attributes.get("keepDims"))
        return MeanSums(count, steps, output_of(op, values), places)
    return None


def _function(kind: str, bits: int) -> Callable[[Arithmetic], Any] | None:
    """Return the functions of a rule that a kind of operator depends on; None if it is unknown."""
    if kind == "SOFTMAX":  # one table for all where it is wide
        return lambda rule: None if bits == 16 else type(rule).shares
    if kind == "RESIZE_BILINEAR":
        return lambda rule: type(rule.of_bits(bits)).resized
    if kind in ("ADD", "SUB") and bits == 16:
        combined = "total" if kind == "ADD" else "added"
        return lambda rule: (getattr(_served(rule), combined), _served(rule).times)
    if kind == "L2_NORMALIZATION" or (bits == 16 and kind in _OF_TIMES):
        return lambda rule: _served(rule).times
    return None


def _served(rule: Arithmetic) -> type[Arithmetic]:
    """Return the kernels that compute what XNNPACK leaves to TFLite."""
    return type(rule.of_bits(16))


def _by_examples(graph: ArtifactGraph, op: GraphOp, groups: Groups) -> Found:
    """Find inputs on which rules with different functions differ."""
    if len(groups) == 1:
        return names(groups), []
    values, keys = Values(graph, {}), list(dict.fromkeys(graph.activations(op)))
    fed = {}
    for seed, key in enumerate(keys):
        steps, shape = values.steps(key), graph.tensors[key].shape
        if op.kind == "SOFTMAX":
            fed[key] = random_rows(steps, shape[-1], seed)
        else:
            sizes = {"RESIZE_BILINEAR": (*shape[1:3], 1), "ADD": shape[1:]}
            size = sizes.get(op.kind, shape[-1:])
            fed[key] = _random(steps, size, seed)
    return by_examples(groups, prepared(op, Values(graph, fed)), list(fed.values()))


def _random(steps: Quantization, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return random integers (P, 1, *shape)."""
    limits, generator = np.iinfo(steps.dtype), np.random.default_rng(seed)
    count = min(1 << 16, max(1, _MOST_RANDOM // int(np.prod(shape))))
    return generator.integers(limits.min, limits.max + 1, (count, 1, *shape), steps.dtype)


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
    bits = bits_of(graph, op)
    if bits > 16 or not 1 <= len(keys) <= (1 if bits == 16 else 2):
        raise NotKnownError(f"{len(keys)} inputs of {bits} bits")
    values = Values(graph, {})
    constants = [values.constant(key) for key in op.inputs if key and key not in keys]
    every = every_integer([values.steps(key) for key in keys])
    several = [constant for constant in constants if constant.size != 1]
    if several:  # every integer with every constant
        if len(keys) > 1 or len(several) > 1 or every[0].size * several[0].size > _MOST_INPUTS:
            raise NotKnownError("a constant operand of several numbers")
        every = [every[0].reshape(-1, *[1] * several[0].ndim)]
    return compared(prepared(op, Values(graph, dict(zip(keys, every)))), every, rules)
