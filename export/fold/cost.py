"""The cost function that the fold minimizes.

The cost is the number of operations that norms leave, then the number of parameters that they add.
An affine that remains is a multiplication, an addition or both. A copied layer is one operation;
its parameters are also limited by a separate budget. One addition is preferred to a channel more
where that channel takes longer (`one_more_is_slow`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .graph import AffineOp, MapOp


class Cost(NamedTuple):
    """Numbers of operations and parameters, compared in this order."""

    ops: int = 0
    parameters: int = 0

    def __add__(self, other: object) -> Cost:
        """Return the sum of two costs."""
        assert isinstance(other, Cost)
        return Cost(self.ops + other.ops, self.parameters + other.parameters)

    def __sub__(self, other: Cost) -> Cost:
        """Return the difference of two costs."""
        return Cost(self.ops - other.ops, self.parameters - other.parameters)


FREE = Cost()

# Kernels of CPUs compute the channels of a convolution in blocks of 8 or 16.
_BLOCK = 8
# Convolutions with fewer channels take so little time that an addition takes longer.
_NARROW = 16


def one_more_is_slow(channels: int) -> bool:
    """Return whether an addition takes less time than one more channel in two convolutions.

    A channel more than a multiple of the block is computed as a further block (docs/fold.md has
    measurements).
    """
    return channels >= _NARROW and channels % _BLOCK == 0


def cost_of(op: Any) -> Cost:
    """Return the cost of an op relative to the network without norms."""
    names = remaining_ops(op)
    if isinstance(op, AffineOp):
        return Cost(len(names), len(names) * op.affine.size)
    if isinstance(op, MapOp):
        return Cost(len(names), op.constant.size)
    return FREE


def remaining_ops(op: Any) -> tuple[str, ...]:
    """Return the operations that remain of a norm in an exported file."""
    if isinstance(op, AffineOp):
        return ("MUL",) * op.affine.scales + ("ADD",) * op.affine.shifts
    return ("ADD",) if isinstance(op, MapOp) else ()
