"""On which runtimes does an integer .tflite file give the same integers, whatever it is fed?

Every operator is compared under every known rule of rounding, for all inputs that there can be:

- sums (convolutions, dense layers): by the thresholds of each channel (`rounding.thresholds`);
- functions of one or two 8-bit integers: all 256 or 65,536 of them;
- means: every sum of so many integers.

If all operators agree, so does the file: by induction, since equal inputs give equal outputs. An
operator that is none of these is listed as undecided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp
from ..rounding.arithmetic import Arithmetic, Finish
from ..rounding.quantized import NotKnownError
from ..rounding.thresholds import differing_sums
from ..rounding.xnnpack import TFLITE_RULES
from .base import Values
from .linear_sums import LINEAR, LinearSums
from .tflite_ops import TFLITE_OPS, bits_of, prepared

_ELEMENTWISE = {
    "ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "RELU", "RELU6",
    "RELU_N1_TO_1", "RELU_0_TO_1", "LEAKY_RELU", "LOGISTIC", "TANH", "GELU", "EXP", "HARD_SWISH",
    "ABS", "QUANTIZE",
}  # fmt: skip
_MEANS = {"MEAN", "AVERAGE_POOL_2D"}
_MOST_MEANS = 1 << 24  # integers that the sums of a mean are made of


@dataclass(frozen=True)
class Difference:
    """Where one rule differs from XNNPACK's in one operator.

    Attributes:
        kernels: Whose kernels follow the other rule.
        channels: Channels with such a case; 0 where the operator has no channels.
        cases: Sums, or inputs, that become another integer.
        of: Sums or inputs that there are.
        channel: Channel of the example.
        example: One such sum, or input.
        xnnpack: Its integer under XNNPACK's rule.
        other: Its integer under the other.
    """

    kernels: str
    channels: int
    cases: int
    of: int
    channel: int
    example: tuple[int, ...]
    xnnpack: int
    other: int


@dataclass(frozen=True)
class CertifiedOp:
    """One operator of a file.

    Attributes:
        index: Its index in the file.
        kind: Its kind.
        name: Name of what it computes.
        method: How all inputs were covered: "thresholds", "all inputs", "all sums", "moves
            integers", "floats", or "" where nothing was decided.
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
    """Compare all rules of rounding on all inputs of every operator of a .tflite file."""
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
        raise NotKnownError("floats become integers: a tie may fall to either side")
    if op.kind in TFLITE_OPS and not TFLITE_OPS[op.kind].ruled:
        return CertifiedOp(op.index, op.kind, name, "moves integers")
    bits = bits_of(graph, op)
    if bits != 8:
        raise NotKnownError(f"integers of {bits} bits")
    if op.kind in LINEAR:
        sums = LinearSums.of(graph, op)
        found = _by_thresholds(sums)
        return _entry(op, name, "thresholds", found, channels=sums.ends.shape[1])
    if op.kind in _ELEMENTWISE:
        return _entry(op, name, "all inputs", _exhaustive(graph, op))
    if op.kind in _MEANS:
        return _entry(op, name, "all sums", _means(graph, op))
    raise NotKnownError("not a sum and no function of one or two integers")


Found = tuple[list[list[str]], list[Difference]]


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
    groups: list[list[Arithmetic]] = []
    for rule, array in known.items():
        for group in groups:
            if np.array_equal(known[group[0]], array):
                group.append(rule)
                break
        else:
            groups.append([rule])
    return [[rule.kernels for rule in group] for group in groups]


def _exhaustive(graph: ArtifactGraph, op: GraphOp) -> Found:
    """Compare the rules on every combination of the integers that an operator reads."""
    keys = list(dict.fromkeys(graph.activations(op)))
    if not 1 <= len(keys) <= 2:
        raise NotKnownError(f"{len(keys)} inputs")
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
        size = [1, 1, 256 if len(keys) == 2 else 1, 256]
        shape = [1, 1, -1, 1] if len(keys) == 2 and place == 0 else [1, 1, 1, -1]
        every.append(np.broadcast_to(integers.reshape(shape), size))
    finish = prepared(op, Values(graph, dict(zip(keys, every))))
    return _compared(finish, every)


def _means(graph: ArtifactGraph, op: GraphOp) -> Found:
    """Compare the rules on inputs that have every sum there can be."""
    key = op.inputs[0]
    shape = graph.tensors[key].shape
    steps = graph.tensors[key].quantization
    if op.kind != "MEAN" or len(shape) != 4 or steps is None or -1 in shape:
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
