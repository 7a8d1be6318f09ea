"""The fold report: the outcome of every norm."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from .cost import remaining_ops
from .graph import AffineOp, Graph, MapOp
from .passes import Outcome
from .plan import Refusal
from .ranges import range_growths
from .recognize import INPUT_NORM, Norm


@dataclass(frozen=True)
class NormRecord:
    """The outcome of one norm.

    Attributes:
        name: Name of its layer.
        layer_type: Name of its class.
        outcome: ``"folded"`` (no operations remain), ``"partly folded"`` (fewer operations remain
            than it had), ``"kept"`` (unchanged).
        into: The layers that absorbed it, or the norm that it was merged with.
        reason: Reason why it is not folded completely; otherwise empty.
        remaining_ops: The operations that remain of it in an exported file.
        range_growth: Among the layers that absorbed it, the greatest growth of the ratio of peak to
            root mean square of an output channel's weights, which reduces the accuracy of int8.
            1.0 if there is none.
        within_budget: False if only the copy budget prevents the fold.
    """

    name: str
    layer_type: str
    outcome: str
    into: tuple[str, ...]
    reason: str
    remaining_ops: tuple[str, ...]
    range_growth: float
    within_budget: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, numbers and strings."""
        return {**asdict(self), "into": list(self.into), "remaining_ops": list(self.remaining_ops)}


@dataclass(frozen=True)
class FoldReport:
    """One record per norm, in the order of the network."""

    records: tuple[NormRecord, ...]

    @property
    def remaining_ops(self) -> int:
        """Number of operations that norms leave in an exported file."""
        return sum(len(record.remaining_ops) for record in self.records)

    @property
    def input_norms(self) -> tuple[str, ...]:
        """Names of the norms that are kept because they read an input."""
        return tuple(record.name for record in self.records if record.reason == INPUT_NORM)

    @property
    def folded(self) -> int:
        """Number of norms that are folded completely."""
        return sum(record.outcome == "folded" for record in self.records)

    @property
    def summary(self) -> str:
        """How many norms fold, and what they leave, in one sentence."""
        if not self.records:
            return "The network has no norms."
        extra = {0: "no extra operations remain", 1: "1 extra operation remains"}.get(
            self.remaining_ops, f"{self.remaining_ops} extra operations remain"
        )
        return f"{self.folded} of {len(self.records)} norms fold completely; {extra}."

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, numbers and strings."""
        return {
            "norms": len(self.records),
            "folded": self.folded,
            "remaining_ops": self.remaining_ops,
            "records": [record.to_json() for record in self.records],
        }


def make_report(
    graph: Graph, norms: Iterable[Norm], outcome: Outcome, rolled_back: Iterable[str] = ()
) -> FoldReport:
    """Collect the records of a folded graph."""
    left: dict[str, tuple[str, ...]] = {}
    for call in graph.calls():
        if isinstance(call.op, (AffineOp, MapOp)):
            left[call.op.norms[0]] = remaining_ops(call.op)
    growths = range_growths(graph)
    into: dict[str, dict[str, None]] = {}
    for step in outcome.steps:
        for name in step.norms:
            into.setdefault(name, {}).update(dict.fromkeys(step.into))
    taken_back = set(rolled_back)
    records = []
    for norm in norms:
        layers = tuple(into.get(norm.name, ()))
        ops = ("norm",) if norm.refusal else left.get(norm.name, ())
        refusals = outcome.refusals.get(norm.name, [])
        records.append(
            NormRecord(
                name=norm.name,
                layer_type=norm.layer_type,
                outcome="folded" if not ops else "partly folded" if layers else "kept",
                into=layers,
                reason=_reason(norm, refusals, norm.name in taken_back) if ops else "",
                remaining_ops=ops,
                range_growth=max((growths.get(layer, 1.0) for layer in layers), default=1.0),
                within_budget=not (ops and any(refusal.budget for refusal in refusals)),
            )
        )
    return FoldReport(tuple(records))


def _reason(norm: Norm, refusals: list[Refusal], taken_back: bool) -> str:
    """Return the reason why a norm is not folded completely."""
    if norm.refusal:
        return norm.refusal
    if taken_back:
        return "its fold changed the outputs, so it was undone"
    sides = ("not into what comes before", "not into what follows")
    clauses = zip(sides, refusals, strict=False)
    return "; ".join(f"{side}: {refusal.reason}" for side, refusal in clauses)
