"""What a network costs: the one measure by which the fold chooses.

Fewest operations that the norms leave, then fewest parameters they add. An affine that stays is a
multiplication, an addition or both; a copied layer is one more operation, and its parameters count
against a budget of their own before its cost is even asked.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .graph import AffineOp, MapOp


class Cost(NamedTuple):
    """Operations, then parameters: compared in this order."""

    ops: int = 0
    parameters: int = 0

    def __add__(self, other: object) -> Cost:
        """Add up two costs."""
        assert isinstance(other, Cost)
        return Cost(self.ops + other.ops, self.parameters + other.parameters)

    def __sub__(self, other: Cost) -> Cost:
        """Return what one costs more than the other."""
        return Cost(self.ops - other.ops, self.parameters - other.parameters)


FREE = Cost()


def cost_of(op: Any) -> Cost:
    """Return what an op costs beyond the network without norms."""
    names = remaining_ops(op)
    if isinstance(op, AffineOp):
        return Cost(len(names), len(names) * op.affine.size)
    if isinstance(op, MapOp):
        return Cost(len(names), op.constant.size)
    return FREE


def remaining_ops(op: Any) -> tuple[str, ...]:
    """Name the operations a norm's rest will be in an exported file."""
    if isinstance(op, AffineOp):
        return ("MUL",) * op.affine.scales + ("ADD",) * op.affine.shifts
    return ("ADD",) if isinstance(op, MapOp) else ()
