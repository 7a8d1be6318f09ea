"""On which runtimes does an integer .tflite file give the same integers, whatever it is fed?

Every operator is compared under every known rule of rounding, for all inputs that there can be:

- sums (convolutions, dense layers): by the thresholds of each channel (`rounding.thresholds`);
- functions of one or two 8-bit integers: all 256 or 65,536 of them;
- means: every sum of so many integers.

If all operators agree, so does the file: by induction, since equal inputs give equal outputs. An
operator that is none of these is listed as undecided.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp
from ..operators import OPERATORS
from ..operators.linear import Linear
from ..rounding.arithmetic import Arithmetic
from ..rounding.quantized import Ints, NotKnownError, Output, Scales
from ..rounding.thresholds import differing_sums, thresholds
from ..rounding.xnnpack import TFLITE_RULES
from .base import Values
from .tflite_arithmetic import output_of
from .tflite_ops import TFLITE_OPS, prepared

# Operators by how their sums are made: key of `OPERATORS`, place of data and bias, kernel's axis
# of output channels.
_LINEAR = {
    "CONV_2D": ("conv", 0, 2, 0),
    "DEPTHWISE_CONV_2D": ("depthwise_conv", 0, 2, 3),
    "FULLY_CONNECTED": ("dense", 0, 2, 0),
    "TRANSPOSE_CONV": ("conv_transpose", 2, 3, 0),
}
_ELEMENTWISE = {
    "ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "RELU", "RELU6",
    "RELU_N1_TO_1", "RELU_0_TO_1", "LEAKY_RELU", "LOGISTIC", "TANH", "GELU", "EXP", "HARD_SWISH",
    "ABS", "QUANTIZE",
}  # fmt: skip
_MEANS = {"MEAN", "AVERAGE_POOL_2D"}
# Units in the last place that a scale may move by: a relative change of 2e-6 at most, which is a
# two-thousandth of a step of the largest weight.
FARTHEST = 16
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
    """What is known of a file on all inputs.

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
    bits = 8 * max((entry.dtype.itemsize for entry in integer), default=0)
    if op.kind == "DEQUANTIZE" or not integer:
        return CertifiedOp(op.index, op.kind, name, "floats")
    if op.kind == "QUANTIZE" and len(integer) == 1:
        raise NotKnownError("floats become integers: a tie may fall to either side")
    if op.kind in TFLITE_OPS and not TFLITE_OPS[op.kind].ruled:
        return CertifiedOp(op.index, op.kind, name, "moves integers")
    if bits != 8:
        raise NotKnownError(f"integers of {bits} bits")
    if op.kind in _LINEAR:
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


@dataclass(frozen=True)
class LinearSums:
    """How the exact sums of a linear operator become its integers.

    Attributes:
        operator: Key of `OPERATORS`.
        x: Scale of the data.
        w: Scales of the kernel, one or one a channel.
        output: Steps of the output, with the limits of a fused activation.
        ends: (2, C) least and greatest sum of each channel that any input reaches.
    """

    operator: str
    x: Scales
    w: Scales
    output: Output
    ends: Ints

    @classmethod
    def of(cls, graph: ArtifactGraph, op: GraphOp) -> LinearSums:
        """Read an operator.

        Raises:
            NotKnownError: Its weights are computed.
        """
        operator, data, bias_at, axis = _LINEAR[op.kind]
        values = Values(graph, {})
        kernel = values.kernel(op.inputs[1])
        rows = np.moveaxis(kernel.integers, axis, -1)
        rows = rows.reshape(-1, rows.shape[-1])
        steps = values.steps(op.inputs[data])
        limits, point = np.iinfo(steps.dtype), int(steps.zero_points[0])
        low, high = float(limits.min) - point, float(limits.max) - point
        ends = np.array(
            [
                np.where(rows > 0, rows * low, rows * high).sum(axis=0),
                np.where(rows > 0, rows * high, rows * low).sum(axis=0),
            ]
        )
        bias = values.bias("".join(op.inputs[bias_at : bias_at + 1]))
        if bias:
            ends = ends + bias["bias"].integers
        ends = ends.astype(np.int64)
        scale = steps.scales.astype(np.float32)
        return cls(operator, scale, kernel.scale, output_of(op, values), ends)

    def channels(self, chosen: Ints) -> LinearSums:
        """Return some channels of an operator that has a scale for each."""
        return replace(self, w=self.w[chosen], ends=self.ends[:, chosen])

    def rounded(self, rule: Arithmetic, sums: Ints, w: Scales | None = None) -> Ints:
        """Return what a rule makes of sums (L, C), less the zero point and not clipped yet."""
        operator = OPERATORS[self.operator]
        assert isinstance(operator, Linear)
        rescaling = operator.rescaling(rule.of_bits(8), 8)
        found: Ints = rescaling(sums, self.x, self.w if w is None else w, self.output.scale)
        return found

    def thresholds(self, rule: Arithmetic, w: Scales | None = None) -> Ints:
        """Return a rule's thresholds (L, C), of a kernel with other scales where they are given."""
        scales = self.w if w is None else w
        ratio = self.x.astype(np.float64) * scales / self.output.scale
        point = self.output.point
        limits = self.output.saturated(np.array([-(1 << 20), 1 << 20])) - point
        levels = np.arange(limits[0] + 1, limits[1] + 1)
        ratio = np.broadcast_to(ratio, self.ends.shape[1:])
        return thresholds(lambda sums: self.rounded(rule, sums, w), ratio, self.ends, levels)


def _by_thresholds(sums: LinearSums) -> Found:
    known = {rule: sums.thresholds(rule) for rule in TFLITE_RULES}
    first, *others = TFLITE_RULES
    groups = [[first.kernels]]
    firsts = [first]
    differences = []
    of = int((sums.ends[1] - sums.ends[0] + 1).sum())
    for rule in others:
        for group, representative in zip(groups, firsts):
            if np.array_equal(known[rule], known[representative]):
                group.append(rule.kernels)
                break
        else:
            groups.append([rule.kernels])
            firsts.append(rule)
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
    return groups, differences


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
        shape = [1, 1, 1, 1]
        shape[place + 2] = -1
        size = [1, 1, 256 if len(keys) == 2 else 1, 256]
        shape = [1, 1, -1, 1] if len(keys) == 2 and place == 0 else [1, 1, 1, -1]
        every.append(np.broadcast_to(integers.reshape(shape), size))
    finish = prepared(op, Values(graph, dict(zip(keys, every))))
    names = dict(zip(keys, every))
    return _compared(lambda rule: np.asarray(finish(rule)), [names[key] for key in keys])


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


def _compared(result: object, inputs: list[np.ndarray]) -> Found:
    """Group the rules by their results on the same inputs."""
    assert callable(result)
    known = {rule: result(rule) for rule in TFLITE_RULES}
    first, *others = TFLITE_RULES
    groups: list[list[Arithmetic]] = [[first]]
    differences = []
    for rule in others:
        same = [group for group in groups if np.array_equal(known[group[0]], known[rule])]
        if same:
            same[0].append(rule)
        else:
            groups.append([rule])
        unequal = known[rule] != known[first]
        if not unequal.any():
            continue
        place = np.unravel_index(int(np.argmax(unequal)), unequal.shape)
        example = tuple(int(np.broadcast_to(array, unequal.shape)[place]) for array in inputs)
        both = int(known[first][place]), int(known[rule][place])
        differences.append(
            Difference(rule.kernels, 0, int(unequal.sum()), unequal.size, 0, example, *both)
        )
    return [[rule.kernels for rule in group] for group in groups], differences


def portable_scales(sums: LinearSums) -> tuple[Scales, Ints]:
    """Return scales of a kernel under which XNNPACK's rule and single rounding agree.

    A scale stays where they agree already. Else it moves by one unit in the last place, down or up,
    then by two, up to `FARTHEST`, until they do; of those with differing sums left the fewest wins.

    Args:
        sums: The operator.

    Returns:
        The scales, and how many sums of each channel still differ.
    """
    chosen, left = sums.w.copy(), disputed_sums(sums, sums.w)
    single = sums.w.size == 1  # one scale serves all channels
    for distance in range(1, FARTHEST + 1):
        for direction in (-distance, distance):
            if not left.any():
                return chosen, left
            moved = (sums.w.view(np.int32) + np.int32(direction)).view(np.float32)
            if single:
                found = disputed_sums(sums, moved)
                if found.sum() < left.sum():
                    chosen, left = moved, found
                continue
            active = np.flatnonzero(left)
            # One scale alone would be taken for that of a whole kernel, which some rules round
            # otherwise: a single channel comes twice.
            pair = np.resize(active, max(len(active), 2))
            found = disputed_sums(sums.channels(pair), moved[pair])[: len(active)]
            better = found < left[active]
            chosen[active[better]] = moved[active[better]]
            left[active[better]] = found[better]
    return chosen, left


def disputed_sums(sums: LinearSums, w: Scales) -> Ints:
    """Return on how many sums of each channel XNNPACK's rule and single rounding differ."""
    xnnpack, single = TFLITE_RULES[0], TFLITE_RULES[-1]
    return differing_sums(sums.thresholds(xnnpack, w), sums.thresholds(single, w))


def linear_ops(graph: ArtifactGraph) -> Iterator[tuple[GraphOp, LinearSums]]:
    """Yield the linear operators of a .tflite file whose outputs are integers of 8 bits."""
    for op in graph.ops:
        steps = graph.tensors[op.outputs[0]].quantization if op.outputs else None
        if op.kind not in _LINEAR or steps is None or steps.dtype.itemsize != 1:
            continue
        try:
            yield op, LinearSums.of(graph, op)
        except NotKnownError:
            continue
