"""Which rule of rounding does a runtime follow? Each op by each rule; what is left must be zero.

A runtime is known by the rule that gives its integers to the bit on most ops. An op that another
rule gives to the bit is no fault either: delegates leave ops to the kernels behind them, and those
round in their own way. An op that no rule gives is at fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp
from ...reference.integer import onnx_ops, tflite_ops
from ...reference.integer.base import IntegerOp, Values
from ...reference.integer.onnx_floats import MOVING
from ...reference.integer.tflite_moving import MOVING_OPS
from ...reference.rounding.arithmetic import Arithmetic
from ...reference.rounding.onnx_rules import ONNX_RULES
from ...reference.rounding.quantized import NotKnownError
from ...reference.rounding.xnnpack import TFLITE_RULES

_READERS = {"tflite": tflite_ops.integer_ops, "onnx": onnx_ops.integer_ops}
_RULES = {"tflite": TFLITE_RULES, "onnx": ONNX_RULES}

# Ops whose result no rounding decides: they are compared as well, and not worth a word.
_MOVING = frozenset({*MOVING_OPS, *MOVING})


@dataclass(frozen=True)
class IntegerCheck:
    """One integer op against the rule that comes nearest to it.

    Attributes:
        op: The op of the file that writes the integers.
        core: The op that computes them.
        rule: The rule; None where all rules agree.
        elements: Elements compared.
        differing: Elements that differ from the rule's.
        at: Place of the first that differs, samples first.
        got: The runtime's number there.
        expected: The rule's.
    """

    op: GraphOp
    core: GraphOp
    rule: Arithmetic | None
    elements: int
    differing: int = 0
    at: tuple[int, ...] = ()
    got: float = 0.0
    expected: float = 0.0


@dataclass(frozen=True)
class IntegerReport:
    """Every integer op of a file on a runtime.

    Attributes:
        checks: The ops, in the order they run.
        bounded: Kinds of ops that round otherwise: by no rule known here, or in floats between
            integers.
    """

    checks: tuple[IntegerCheck, ...]
    bounded: tuple[str, ...] = ()

    @property
    def wrong(self) -> list[IntegerCheck]:
        """The ops that no rule gives."""
        return [check for check in self.checks if check.differing]

    @property
    def sentence(self) -> str:
        """Say which rules were recognised, on how many ops and elements."""
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
        The report; None where no op of the file computes with 8 bits that the runtime shows.
    """
    rules = _RULES[file_format]
    values = Values(graph, tensors)
    found = [
        (op, differing)
        for op in _READERS[file_format](values)
        if (differing := _differing(op, rules))
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
    checks = tuple(_check(op, differing, ranked) for op, differing in found)
    compared = {op.core.index for op, _ in found} | {op.op.index for op, _ in found}
    rest = [op for op in graph.ops if op.kind not in _MOVING and op.index not in compared]
    kinds = dict.fromkeys(op.kind for op in rest if _of_integers(op, graph))
    return IntegerReport(checks, tuple(kinds))


def _of_integers(op: GraphOp, graph: ArtifactGraph) -> bool:
    """Return whether an op gives integers of 8 or 16 bits, or floats that are turned into such."""
    if op.kind in ("QuantizeLinear", "DequantizeLinear"):
        return False
    return any(
        graph.tensors[key].quantization is not None
        or any(after.kind == "QuantizeLinear" for after in graph.consumers(key))
        for key in op.outputs
    )


def _differing(op: IntegerOp, rules: tuple[Arithmetic, ...]) -> dict[Arithmetic, int]:
    """Return how many elements differ from each rule's; one rule stands for all that agree.

    A rule that does not know the op, or gives another shape, is left out.
    """
    found = {}
    for rule in rules if op.ruled else rules[:1]:
        try:
            expected = op.finish(rule)
        except NotKnownError:
            continue
        if expected.shape == op.got.shape:
            found[rule] = int(np.count_nonzero(expected != op.got))
    return found


def _check(
    op: IntegerOp, differing: Mapping[Arithmetic, int], ranked: list[Arithmetic]
) -> IntegerCheck:
    """Return the verdict on one op by the rule nearest to it, the runtime's own if several are."""
    rule = min(differing, key=lambda r: (differing[r], ranked.index(r)))
    named = rule if op.ruled else None
    if not differing[rule]:
        return IntegerCheck(op.op, op.core, named, op.got.size)
    expected = op.finish(rule)
    place = np.unravel_index(int(np.argmax(expected != op.got)), op.got.shape)
    return IntegerCheck(
        op.op,
        op.core,
        named,
        op.got.size,
        differing[rule],
        tuple(int(index) for index in place),
        float(op.got[place]),
        float(expected[place]),
    )


def _by_frequency(checks: list[IntegerCheck]) -> Iterator[Arithmetic | None]:
    """Yield the rules from the most frequent to the least; ops without a choice of rule last."""
    counted = Counter(check.rule for check in checks if check.rule is not None)
    yield from (rule for rule, _ in counted.most_common())
    if any(check.rule is None for check in checks):
        yield None
