"""The report: what became of every norm."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from .cost import remaining_ops
from .graph import AffineOp, Graph, MapOp
from .linear import Linear
from .passes import Outcome
from .plan import Refusal
from .recognize import Norm


@dataclass(frozen=True)
class NormRecord:
    """What became of one norm.

    Attributes:
        name: Name of its layer.
        layer_type: Name of its class.
        outcome: ``"folded"`` (nothing is left), ``"partly folded"`` (fewer operations are left than
            it had), ``"kept"`` (it stays as it was).
        into: The layers that absorbed it.
        reason: Why something is left; empty where nothing is.
        remaining_ops: The operations left of it in an exported file.
        range_growth: The greatest growth of the weight range of a layer that absorbed it, see
            `export.fold.ranges`; 1.0 where none grew.
        within_budget: False where only the copy budget stands in the way.
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
    """One record a norm, in the order of the network."""

    records: tuple[NormRecord, ...]

    @property
    def remaining_ops(self) -> int:
        """Number of operations that norms leave in an exported file."""
        return sum(len(record.remaining_ops) for record in self.records)

    @property
    def folded(self) -> int:
        """Number of norms of which nothing is left."""
        return sum(record.outcome == "folded" for record in self.records)

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
    growths: dict[str, float] = {}
    for call in graph.calls():
        if isinstance(call.op, (AffineOp, MapOp)):
            left[call.op.norms[0]] = remaining_ops(call.op)
        elif isinstance(call.op, Linear):
            growths[call.op.name] = 1.0
    into: dict[str, dict[str, None]] = {}
    for step in outcome.steps:
        for norm in step.norms:
            into.setdefault(norm, {}).update(dict.fromkeys(step.into))
    taken_back = set(rolled_back)
    return FoldReport(
        tuple(
            _record(
                norm,
                tuple(into.get(norm.name, ())),
                left.get(norm.name),
                outcome.refusals.get(norm.name, []),
                norm.name in taken_back,
            )
            for norm in norms
        )
    )


def _record(
    norm: Norm,
    into: tuple[str, ...],
    left: tuple[str, ...] | None,
    refusals: list[Refusal],
    taken_back: bool,
) -> NormRecord:
    if norm.refusal:
        return NormRecord(norm.name, norm.layer_type, "kept", (), norm.refusal, ("norm",), 1.0)
    if not left:
        return NormRecord(norm.name, norm.layer_type, "folded", into, "", (), 1.0)
    reason = _sentence(refusals)
    if taken_back:
        reason = "its fold changed the outputs and was taken back"
    return NormRecord(
        norm.name,
        norm.layer_type,
        "partly folded" if into else "kept",
        into,
        reason,
        left,
        1.0,
        not any(refusal.budget for refusal in refusals),
    )


def _sentence(refusals: list[Refusal]) -> str:
    sides = ("not into what comes before", "not into what follows")
    return "; ".join(
        f"{side}: {refusal.reason}" for side, refusal in zip(sides, refusals, strict=False)
    )
