"""Determines the runtimes on which an integer .tflite file gives equal integers for all inputs.

Every operator is compared under every known rounding rule, for all possible inputs:

- sums (convolutions, dense layers): by the thresholds of each channel (`rounding.thresholds`);
- functions of one integer, or of two 8-bit integers: all inputs, at most 65,536;
- means: every possible sum of the integers;
- conversions of floats to integers: by thresholds among all finite float32 numbers;
- operators that several rules compute by the same function: equal for all inputs.

If the rules agree in all operators, they agree in the file, by induction, since equal inputs give
equal outputs. Any other operator is listed as undecided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp
from ..rounding.arithmetic import Arithmetic, Finish
from ..rounding.quantized import NotKnownError
from ..rounding.thresholds import differing_sums
from ..rounding.xnnpack import TFLITE_RULES
from .base import Values
from .linear_sums import LINEAR, LinearSums
from .tflite_arithmetic import output_of
from .tflite_ops import TFLITE_OPS, bits_of, prepared

_ELEMENTWISE = {
    "ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "RELU", "RELU6",
    "RELU_N1_TO_1", "RELU_0_TO_1", "LEAKY_RELU", "LOGISTIC", "TANH", "GELU", "EXP", "HARD_SWISH",
    "ABS", "QUANTIZE",
}  # fmt: skip
# Operators that all runtimes compute by one rule, as measured: AVERAGE_POOL_2D takes a half away
# from zero on LiteRT (XNNPACK, built-in and reference kernels), TFLite Micro and tflite-runtime.
_ONE_RULE = {"AVERAGE_POOL_2D", "HARD_SWISH", "MAXIMUM", "MINIMUM"}
_GREATEST_FLOAT = 0x7F7FFFFF  # bits of float32's greatest finite number
_MOST_THRESHOLDS = 1 << 23
_TRIED = 1 << 16  # number of random inputs in the search for a difference between two functions
_MOST_MEANS = 1 << 24  # integers that the sums of a mean are made of


@dataclass(frozen=True)
class Difference:
    """Where one rule differs from XNNPACK's in one operator.

    Attributes:
        kernels: The kernels that follow the other rule.
        channels: Number of channels with a difference; 0 if the operator has no channels.
        cases: Number of sums, or inputs, with a different result.
        of: Number of possible sums or inputs.
        channel: Channel of the example.
        example: One sum or input with a different result.
        xnnpack: Its result under XNNPACK's rule.
        other: Its result under the other rule.
    """

    kernels: str
    channels: int
    cases: int
    of: int
    channel: int
    example: tuple[float, ...]
    xnnpack: int
    other: int


@dataclass(frozen=True)
class CertifiedOp:
    """One operator of a file.

    Attributes:
        index: Its index in the file.
        kind: Its kind.
        name: Name of what it computes.
        method: How all inputs were covered: "thresholds", "all inputs", "all sums", "one rule",
            "functions" (rules with one function agree; others differ in an example, and cases are
            counted among random inputs), "moves integers", "floats", or "" where nothing was
            decided.
        channels: Its output channels, of an operator with thresholds.
        groups: The rules, by name, in groups that agree on all inputs; the largest first.
        differences: One entry for each rule that differs from XNNPACK's.
        why: Why nothing was decided.
    """

    index: int
    kind: str
    name: str
    method: str
    channels: int = 0
    groups: tuple[tuple[str, ...], ...] = ()
    differences: tuple[Difference, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Certificate:
    """The results of a comparison of all rules on all inputs of a file.

    Attributes:
        ops: Every operator.
        rules: All rules, by the kernels that follow them.
    """

    ops: tuple[CertifiedOp, ...]
    rules: tuple[str, ...] = field(default=tuple(rule.kernels for rule in TFLITE_RULES))

    @property
    def undecided(self) -> tuple[CertifiedOp, ...]:
        """The operators that could not be decided for all inputs."""
        return tuple(op for op in self.ops if not op.method)

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The rules in groups that agree in every decided operator."""
        found: list[list[str]] = []
        for rule in self.rules:
            for group in found:
                if all(_together(op, rule, group[0]) for op in self.ops):
                    group.append(rule)
                    break
            else:
                found.append([rule])
        return tuple(tuple(group) for group in found)


def _together(op: CertifiedOp, one: str, other: str) -> bool:
    return not op.groups or any(one in group and other in group for group in op.groups)


def certify_graph(graph: ArtifactGraph) -> Certificate:
    """Compare all rounding rules on all inputs of every operator of a .tflite file."""
    return Certificate(tuple(_certified(graph, op) for op in graph.ops))


def _certified(graph: ArtifactGraph, op: GraphOp) -> CertifiedOp:
    name = graph.tensors[op.outputs[0]].name if op.outputs else ""
    try:
        return _decided(graph, op, name)
    except NotKnownError as reason:
        return CertifiedOp(op.index, op.kind, name, "", why=str(reason))


def _decided(graph: ArtifactGraph, op: GraphOp, name: str) -> CertifiedOp:
    steps = [graph.tensors[key].quantization for key in (*graph.activations(op), *op.outputs)]
    integer = [entry for entry in steps if entry is not None]
    if op.kind == "DEQUANTIZE" or not integer:
        return CertifiedOp(op.index, op.kind, name, "floats")
    if op.kind == "QUANTIZE" and len(integer) == 1:
        return _entry(op, name, "thresholds", _from_floats(graph, op))
    bits = bits_of(graph, op)
    if op.kind == "AVERAGE_POOL_2D" and bits != 8:
        raise NotKnownError(f"its rounding of {bits} bits was not measured")
    if op.kind in TFLITE_OPS and not TFLITE_OPS[op.kind].ruled:
        method = "one rule" if op.kind in _ONE_RULE else "moves integers"
        return CertifiedOp(op.index, op.kind, name, method)
    if op.kind in LINEAR and bits in (8, 16):
        sums = LinearSums.of(graph, op)
        channels = sums.ends.shape[1]
        groups = _by_function(sums.rescaling)
        if len(groups) == 1:
            return _entry(op, name, "functions", (_names(groups), []), channels)
        if channels << bits > _MOST_THRESHOLDS:
            raise NotKnownError(f"{channels} channels of {bits} bits have too many thresholds")
        return _entry(op, name, "thresholds", _by_thresholds(sums), channels)
    if op.kind == "SOFTMAX" or (bits == 16 and op.kind in ("ADD", "SUB")):
        return _entry(op, name, "functions", _by_examples(graph, op))
    if op.kind in _ELEMENTWISE:
        return _entry(op, name, "all inputs", _exhaustive(graph, op))
    if bits != 8:
        raise NotKnownError(f"integers of {bits} bits")
    if op.kind == "MEAN":
        return _entry(op, name, "all sums", _means(graph, op))
    raise NotKnownError("not a sum and no function of one or two integers")


Found = tuple[list[list[str]], list[Difference]]
Groups = list[list[Arithmetic]]


def _entry(op: GraphOp, name: str, method: str, found: Found, channels: int = 0) -> CertifiedOp:
    groups = sorted((tuple(group) for group in found[0]), key=lambda g: (-len(g), g))
    return CertifiedOp(op.index, op.kind, name, method, channels, tuple(groups), tuple(found[1]))


def _by_thresholds(sums: LinearSums) -> Found:
    known = {rule: sums.thresholds(rule) for rule in TFLITE_RULES}
    first, *others = TFLITE_RULES
    differences = []
    of = int((sums.ends[1] - sums.ends[0] + 1).sum())
    for rule in others:
        if np.array_equal(known[rule], known[first]):
            continue
        cases = differing_sums(known[first], known[rule])
        place = np.unravel_index(int(np.argmax(known[first] != known[rule])), known[rule].shape)
        channel = int(place[1])
        example = int(min(known[first][place], known[rule][place]))
        sum_ = np.full((1, sums.ends.shape[1]), example)
        both = [
            int(sums.output.saturated(sums.rounded(r, sum_))[0, channel]) for r in (first, rule)
        ]
        differences.append(
            Difference(
                rule.kernels,
                int((cases > 0).sum()),
                int(cases.sum()),
                of,
                channel,
                (example,),
                *both,
            )
        )
    return _grouped(known), differences


def _grouped(known: Mapping[Arithmetic, np.ndarray]) -> list[list[str]]:
    """Return the kernels of rules in groups whose arrays are equal."""
    groups: Groups = []
    for rule, array in known.items():
        for group in groups:
            if np.array_equal(known[group[0]], array):
                group.append(rule)
                break
        else:
            groups.append([rule])
    return _names(groups)


def _by_function(function: Callable[[Arithmetic], Any]) -> Groups:
    """Return the rules in groups that compute by the same function."""
    groups: dict[Any, list[Arithmetic]] = {}
    for rule in TFLITE_RULES:
        found = function(rule)
        groups.setdefault(getattr(found, "__func__", found), []).append(rule)
    return list(groups.values())


def _names(groups: Groups) -> list[list[str]]:
    return [[rule.kernels for rule in group] for group in groups]


def _by_examples(graph: ArtifactGraph, op: GraphOp) -> Found:
    """Group the rules by their functions, and find inputs on which these differ.

    Raises:
        NotKnownError: Two functions agree on all inputs tried, which proves nothing.
    """
    wide = bits_of(graph, op) == 16
    groups = _by_function(lambda rule: _functions(rule, op.kind, wide))
    if len(groups) == 1:
        return _names(groups), []
    keys = list(dict.fromkeys(graph.activations(op)))
    fed = {key: _random(graph, key, seed) for seed, key in enumerate(keys)}
    finish = prepared(op, Values(graph, fed))
    known = [np.asarray(finish(group[0])).reshape(_TRIED, -1) for group in groups]
    differences = []
    for group, results in zip(groups[1:], known[1:]):
        unequal = known[0] != results
        if not unequal.any():
            raise NotKnownError(
                f"{groups[0][0].kernels} and {group[0].kernels} compute different functions, which "
                f"agree on {_TRIED:,} random inputs"
            )
        row, place = np.unravel_index(int(np.argmax(unequal)), unequal.shape)
        example = tuple(int(n) for array in fed.values() for n in array[row].reshape(-1))
        both = int(known[0][row, place]), int(results[row, place])
        cases = int(unequal.any(axis=1).sum())
        differences += [
            Difference(rule.kernels, 0, cases, _TRIED, 0, example, *both) for rule in group
        ]
    return _names(groups), differences


def _functions(rule: Arithmetic, kind: str, wide: bool) -> Any:
    """Return the functions by which a rule computes a softmax or a sum of 16-bit integers."""
    if kind == "SOFTMAX":
        return None if wide else type(rule).shares  # one table for all where it is wide
    served = type(rule.of_bits(16))
    return served.added, getattr(served, "times", None)


def _random(graph: ArtifactGraph, key: str, seed: int) -> np.ndarray:
    """Return random inputs, from ones with nearly equal numbers to ones with numbers far apart."""
    steps, shape = graph.tensors[key].quantization, graph.tensors[key].shape
    if steps is None:
        raise NotKnownError("an input of floats")
    generator, limits = np.random.default_rng(seed), np.iinfo(steps.dtype)
    reach = limits.max - limits.min
    spread = np.exp(generator.uniform(0, np.log(reach), (_TRIED, 1, 1)))
    below = generator.uniform(0, 1, (_TRIED, 1, shape[-1])) * spread
    return np.asarray(limits.max - below).astype(steps.dtype)


def _from_floats(graph: ArtifactGraph, op: GraphOp) -> Found:
    """Compare the rules on all finite float32 numbers, by their thresholds.

    Some kernels take eight numbers at a time by one formula and the rest by another.
    """
    output = output_of(op, Values(graph, {}))
    levels = output.levels
    size = int(np.prod([max(length, 1) for length in graph.tensors[op.inputs[0]].shape[1:]]))
    together = [*([8] if size >= 8 else []), *([1] if size % 8 else [])]

    def rounded(rule: Arithmetic, numbers: np.ndarray, lanes: int) -> np.ndarray:
        given = np.repeat(_as_floats(numbers)[:, None], lanes, axis=1)
        with np.errstate(over="ignore"):
            return np.asarray(rule.quantized(given, output.scale))[:, 0]

    known = {}
    for rule in TFLITE_RULES:
        found = []
        for lanes in together:
            low = np.full(len(levels), -_GREATEST_FLOAT - 1)
            high = np.full(len(levels), _GREATEST_FLOAT + 1)
            while (high - low > 1).any():
                middle = (low + high) // 2
                reached = rounded(rule, np.clip(middle, -_GREATEST_FLOAT, _GREATEST_FLOAT), lanes)
                high = np.where(reached >= levels, middle, high)
                low = np.where(reached >= levels, low, middle)
            found.append(high)
        known[rule] = np.array(found).T
    first, *others = TFLITE_RULES
    differences = []
    for rule in others:
        if np.array_equal(known[rule], known[first]):
            continue
        cases = int(differing_sums(known[first], known[rule]).max())
        place = np.unravel_index(int(np.argmax(known[first] != known[rule])), known[rule].shape)
        number = np.minimum(known[first][place], known[rule][place])[None]
        lanes = together[int(place[1])]
        both = [int(output.saturated(rounded(r, number, lanes))[0]) for r in (first, rule)]
        example = (float(_as_floats(number)[0]),)
        of = 2 * _GREATEST_FLOAT + 1
        differences.append(Difference(rule.kernels, 0, cases, of, 0, example, *both))
    return _grouped(known), differences


def _as_floats(numbers: np.ndarray) -> np.ndarray:
    """Return the float32 numbers with the given positions in ascending order, counted from zero."""
    sizes = np.abs(numbers).astype(np.uint32).view(np.float32)
    return np.where(numbers < 0, -sizes, sizes)


def _exhaustive(graph: ArtifactGraph, op: GraphOp) -> Found:
    """Compare the rules on every combination of the integers that an operator reads."""
    keys = list(dict.fromkeys(graph.activations(op)))
    wide = bits_of(graph, op) > 8
    if not 1 <= len(keys) <= (1 if wide else 2):
        raise NotKnownError(f"{len(keys)} inputs{' of 16 bits' if wide else ''}")
    others = [key for key in op.inputs if key and key not in keys]
    constants = [Values(graph, {}).constant(key) for key in others]
    if any(constant.size != 1 for constant in constants):
        raise NotKnownError("a constant operand of several numbers")
    every = []
    for place, key in enumerate(keys):
        steps = graph.tensors[key].quantization
        if steps is None:
            raise NotKnownError("an input of floats")
        limits = np.iinfo(steps.dtype)
        integers = np.arange(limits.min, limits.max + 1).astype(steps.dtype)
        size = [1, 1, 256 if len(keys) == 2 else 1, len(integers)]
        shape = [1, 1, -1, 1] if len(keys) == 2 and place == 0 else [1, 1, 1, -1]
        every.append(np.broadcast_to(integers.reshape(shape), size))
    finish = prepared(op, Values(graph, dict(zip(keys, every))))
    return _compared(finish, every)


def _means(graph: ArtifactGraph, op: GraphOp) -> Found:
    """Compare the rules on inputs that have every sum there can be."""
    key = op.inputs[0]
    shape = graph.tensors[key].shape
    steps = graph.tensors[key].quantization
    if len(shape) != 4 or steps is None or -1 in shape:
        raise NotKnownError("a mean of another form")
    axes = Values(graph, {}).constant(op.inputs[1]).reshape(-1)
    if sorted(int(axis) % 4 for axis in axes) != [1, 2]:
        raise NotKnownError("a mean over other axes")
    count = shape[1] * shape[2]
    limits = np.iinfo(steps.dtype)
    totals = np.arange(int(limits.min) * count, int(limits.max) * count + 1)
    if totals.size * count > _MOST_MEANS:
        raise NotKnownError(f"a mean of {count} integers has {totals.size} sums")
    base, rest = np.divmod(totals, count)
    fed = base[:, None] + (np.arange(count)[None] < rest[:, None])
    fed = fed.reshape(len(totals), 1, shape[1], shape[2], 1).astype(steps.dtype)
    finish = prepared(op, Values(graph, {key: fed}))
    return _compared(lambda rule: np.asarray(finish(rule)).reshape(-1), [totals])


def _compared(finish: Finish, inputs: list[np.ndarray]) -> Found:
    """Group the rules by their results on the same inputs."""
    known = {rule: np.asarray(finish(rule)) for rule in TFLITE_RULES}
    first, *others = TFLITE_RULES
    differences = []
    for rule in others:
        unequal = known[rule] != known[first]
        if not unequal.any():
            continue
        place = np.unravel_index(int(np.argmax(unequal)), unequal.shape)
        example = tuple(int(np.broadcast_to(array, unequal.shape)[place]) for array in inputs)
        both = int(known[first][place]), int(known[rule][place])
        differences.append(
            Difference(rule.kernels, 0, int(unequal.sum()), unequal.size, 0, example, *both)
        )
    return _grouped(known), differences
