"""Identifies the rounding rule that a runtime follows, by comparing each op with each rule.

The runtime's rule is the one that matches its integers to the bit on most ops. An op that matches
another rule is correct as well: delegates leave some ops to other kernels, which round in their own
way. An op that matches no rule is at fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp
from ...artifacts.precisions import UNIT_ROUNDOFF
from ...reference.integer import onnx_ops, tflite_ops
from ...reference.integer.base import IntegerOp, Values
from ...reference.integer.onnx_moving import MOVING
from ...reference.integer.tflite_moving import MOVING_OPS
from ...reference.operators.activations import ULPS
from ...reference.rounding.arithmetic import Arithmetic
from ...reference.rounding.onnx_rules import ONNX_RULES
from ...reference.rounding.quantized import NotKnownError
from ...reference.rounding.xnnpack import tflite_rules

_READERS = {"tflite": tflite_ops.integer_ops, "onnx": onnx_ops.integer_ops}
_RULES: dict[str, Callable[[ArtifactGraph], tuple[Arithmetic, ...]]] = {
    "tflite": tflite_rules,
    "onnx": lambda graph: ONNX_RULES,
}

# Steps by which two correct rules may differ, by the bytes of an integer. A known rule of 16 bits
# is up to a step and a half from the exact result: its multiplier has 15 bits.
_MOST_APART = {1: 1, 2: 2}

# Ops whose results do not depend on rounding: they are compared but not listed.
_MOVING = frozenset({*MOVING_OPS, *MOVING})


@dataclass(frozen=True)
class IntegerCheck:
    """One integer op compared with the nearest rule.

    Attributes:
        op: The op of the file that writes the integers.
        core: The op that computes them.
        rule: The rule; None if all rules agree.
        elements: Elements compared.
        differing: Elements that differ from the rule's.
        at: Index of the first differing element, samples first.
        got: The runtime's number there.
        expected: The rule's.
        farthest: Greatest difference from the rule's.
        most_apart: Greatest difference of two correct rules, in steps.
        ignored: Name of the input whose zero point the op ignores; empty if that is not the reason.
    """

    op: GraphOp
    core: GraphOp
    rule: Arithmetic | None
    elements: int
    differing: int = 0
    at: tuple[int, ...] = ()
    got: float = 0.0
    expected: float = 0.0
    farthest: float = 0.0
    most_apart: int = 1
    ignored: str = ""


@dataclass(frozen=True)
class IntegerReport:
    """Every integer op of a file on a runtime.

    Attributes:
        checks: The ops, in the order they run.
        bounded: Kinds of ops without a known rule, or computed in floats between integers.
        by_unknown_rule: Ops that match no rule, but differ from one by no more than correct rules
            differ from each other, if the runtime may follow an unknown rule.
    """

    checks: tuple[IntegerCheck, ...]
    bounded: tuple[str, ...] = ()
    by_unknown_rule: tuple[IntegerCheck, ...] = ()

    def with_unknown_rule(self) -> IntegerReport:
        """Return the report on a runtime that may round by a rule that is not known."""
        near = tuple(check for check in self.wrong if check.farthest <= check.most_apart)
        rest = tuple(check for check in self.checks if check not in near)
        return replace(self, checks=rest, by_unknown_rule=near)

    @property
    def wrong(self) -> list[IntegerCheck]:
        """The ops that match no rule."""
        return [check for check in self.checks if check.differing]

    @property
    def sentence(self) -> str:
        """Describe which rules were recognised, on how many ops and elements."""
        right = [check for check in self.checks if not check.differing]
        parts = []
        for rule in _by_frequency(right):
            chosen = [check for check in right if check.rule is rule]
            says = rule.says if rule else "the same by every rule"
            kinds = ", ".join(dict.fromkeys(check.core.kind for check in chosen))
            elements = sum(check.elements for check in chosen)
            ops = "op" if len(chosen) == 1 else "ops"
            parts.append(
                f"{says}: 0 differences in {len(chosen)} {ops} ({kinds}), {elements:,} elements"
            )
        if self.by_unknown_rule:
            kinds = ", ".join(dict.fromkeys(check.core.kind for check in self.by_unknown_rule))
            count = len(self.by_unknown_rule)
            ops = "1 op" if count == 1 else f"{count} ops"
            farthest = max(check.farthest for check in self.by_unknown_rule)
            steps = "a step" if farthest <= 1 else f"{farthest:.0f} steps"
            parts.append(f"no known rule, but within {steps} of one: {ops} ({kinds})")
        if self.bounded:
            parts.append(f"held to their bounds instead: {', '.join(self.bounded)}")
        return f"integer arithmetic: {'; '.join(parts)}"


def recognise(
    graph: ArtifactGraph, file_format: str, tensors: Mapping[str, np.ndarray]
) -> IntegerReport | None:
    """Compare every integer op with the rules.

    Args:
        graph: The file; its weights must have been found to be the network's.
        file_format: "tflite" or "onnx".
        tensors: Key to (P, …): what the runtime computed for each of P samples.

    Returns:
        The report; None if no op of the file computes with 8 bits that the runtime shows.
    """
    rules = _RULES[file_format](graph)
    values = Values(graph, tensors)
    found = [
        (op, differing)
        for op in _READERS[file_format](values)
        if (differing := _differing(op, rules, graph))
    ]
    if not found:
        return None
    # The runtime's own rule first: the one that is exact on most ops.
    exact = Counter(
        rule
        for op, differing in found
        if op.ruled
        for rule, count in differing.items()
        if not count
    )
    ranked = sorted(rules, key=lambda rule: -exact[rule])
    checks = tuple(_check(op, differing, ranked, values, file_format) for op, differing in found)
    compared = {op.core.index for op, _ in found} | {op.op.index for op, _ in found}
    rest = [op for op in graph.ops if op.kind not in _MOVING and op.index not in compared]
    kinds = dict.fromkeys(op.kind for op in rest if _of_integers(op, graph))
    return IntegerReport(checks, tuple(kinds))


def _of_integers(op: GraphOp, graph: ArtifactGraph) -> bool:
    """Return whether an op's results are integers of 8 or 16 bits, or floats quantized to them."""
    if op.kind in ("QuantizeLinear", "DequantizeLinear"):
        return False
    return any(
        graph.tensors[key].quantization is not None
        or any(after.kind == "QuantizeLinear" for after in graph.consumers(key))
        for key in op.outputs
    )


def _differing(
    op: IntegerOp, rules: tuple[Arithmetic, ...], graph: ArtifactGraph
) -> dict[Arithmetic, int]:
    """Return how many elements differ from each rule's; equal rules are merged.

    A rule that does not support the op, or returns another shape, is omitted.
    """
    found = {}
    for rule in rules if op.ruled else rules[:1]:
        try:
            expected = op.finish(rule)
        except NotKnownError:
            continue
        if expected.shape == op.got.shape:
            found[rule] = int(np.count_nonzero(_unequal(op, rule, expected, graph)))
    return found


def _unequal(
    op: IntegerOp, rule: Arithmetic, expected: np.ndarray, graph: ArtifactGraph
) -> np.ndarray:
    """Return where a runtime's numbers differ from a rule's.

    A function or a sum computed in float32 may be rounded to either side next to a tie. Kernels
    compute the real number of an integer as scale · (q - zero_point) or as
    scale · q - scale · zero_point, in float32: two results of three roundings each. Any integer may
    stand for NaN, such as 0 / 0.
    """
    if op.core.kind != "DEQUANTIZE":
        unequal = np.asarray(expected != op.got) & ~_next_to_ties(op, expected, graph)
        if op.floats is not None and op.floats.shape == op.got.shape:
            unequal &= ~np.isnan(op.floats)
        elif op.floats is None and unequal.any():  # a table of float32 results, rounded
            least, greatest = (op.finish(rule.turned(side * ULPS)) for side in (-1, 1))
            unequal &= (op.got < least) | (op.got > greatest)
        return unequal
    steps = graph.tensors[op.core.inputs[0]].quantization
    if steps is None:
        return np.asarray(expected != op.got)
    limits = np.iinfo(steps.dtype)
    integers = np.abs(steps.zero_points).max() + max(-limits.min, limits.max)
    slack = 3 * 2.0**-24 * float(np.max(steps.scales)) * float(integers)
    return ~((np.abs(expected - op.got) <= slack) | (expected == op.got))


def _next_to_ties(op: IntegerOp, expected: np.ndarray, graph: ArtifactGraph) -> np.ndarray | bool:
    """Return where both integers are nearest to a number within the error of a float kernel."""
    steps = graph.tensors[op.op.outputs[0]].quantization
    if op.floats is None or steps is None or op.floats.shape != op.got.shape:
        return False
    scale, size = float(steps.scales[0]), float(np.abs(op.floats).max(initial=0.0))
    real = op.floats.astype(np.float64) / scale + int(steps.zero_points[0])
    farther = np.maximum(np.abs(real - op.got), np.abs(real - expected))
    return np.asarray(farther <= 0.5 + ULPS * UNIT_ROUNDOFF["float32"] * size / scale)


def _check(
    op: IntegerOp,
    differing: Mapping[Arithmetic, int],
    ranked: list[Arithmetic],
    values: Values,
    file_format: str,
) -> IntegerCheck:
    """Return the verdict on one op by the rule nearest to it, the runtime's own if several are."""
    rule = min(differing, key=lambda r: (differing[r], ranked.index(r)))
    named = rule if op.ruled else None
    if not differing[rule]:
        return IntegerCheck(op.op, op.core, named, op.got.size)
    expected = op.finish(rule)
    place = np.unravel_index(
        int(np.argmax(_unequal(op, rule, expected, values.graph))), op.got.shape
    )
    return IntegerCheck(
        op.op,
        op.core,
        named,
        op.got.size,
        differing[rule],
        tuple(int(index) for index in place),
        float(op.got[place]),
        float(expected[place]),
        float(np.abs(expected.astype(np.float64) - op.got).max()),
        _MOST_APART.get(op.got.dtype.itemsize, 1),
        _ignored(op, values, file_format),
    )


def _ignored(op: IntegerOp, values: Values, file_format: str) -> str:
    """Return the name of an input without whose zero point a rule gives an op's integers."""
    graph = values.graph
    for key in graph.activations(op.core):
        tensor = graph.tensors[key]
        steps = tensor.quantization
        if steps is None or not steps.zero_points.any():
            continue
        bare = replace(steps, zero_points=np.zeros_like(steps.zero_points))
        other = replace(graph, tensors={**graph.tensors, key: replace(tensor, quantization=bare)})
        for candidate in _READERS[file_format](Values(other, values.known)):
            same = candidate.op.index == op.op.index
            if same and 0 in _differing(candidate, _RULES[file_format](other), other).values():
                return tensor.name
    return ""


def _by_frequency(checks: list[IntegerCheck]) -> Iterator[Arithmetic | None]:
    """Yield the rules, the most frequent first; ops that match every rule last."""
    counted = Counter(check.rule for check in checks if check.rule is not None)
    yield from (rule for rule, _ in counted.most_common())
    if any(check.rule is None for check in checks):
        yield None
