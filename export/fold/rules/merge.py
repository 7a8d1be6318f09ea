"""The rule that merges two consecutive affines into one.

With the affine ``y = A(x)`` in the network:

    backward   E(y)          = (E ∘ A)(x)
    forward    A(D(x'))      = (A ∘ D)(x')
"""

# ruff: noqa: D102 - the base class documents the methods
from __future__ import annotations

import dataclasses
from typing import Any

from ..affine import Affine, join
from ..graph import AffineOp, Call, Extra
from ..plan import Plan, Refusal, Rule


class Merge(Rule):
    """An affine absorbs another one on the same axis."""

    def matches(self, op: Any) -> bool:
        return isinstance(op, AffineOp)

    def backward(self, plan: Plan, call: Call, affine: Affine) -> Refusal | None:
        mine = plan.op(call).affine
        there = affine.on_axis(mine.axis, mine.size)
        if there is not None:
            return self._become(plan, call, there.after(mine))
        mine = mine.on_axis(affine.axis, affine.size)
        return self._become(plan, call, affine.after(mine)) if mine else _other_axis(call, affine)

    def forward(self, plan: Plan, call: Call, slot: int, affine: Affine) -> Refusal | None:
        mine = plan.op(call).affine
        here = affine.on_axis(mine.axis, mine.size)
        if here is not None:
            return self._become(plan, call, mine.after(here, known=True))
        mine = mine.on_axis(affine.axis, affine.size)
        if mine is None:
            return _other_axis(call, affine)
        return self._become(plan, call, mine.after(affine, known=True))

    def provide(self, plan: Plan, call: Call, wanted: Extra) -> Extra | Refusal:
        if plan.op(call).affine.axis != wanted.axis:
            return super().provide(plan, call, wanted)
        extra = plan.provide(call.inputs[0], wanted, call)
        if not isinstance(extra, Refusal):
            self._widen(plan, call, extra.blocks)
        return extra

    def ignore(self, plan: Plan, call: Call, slot: int, extra: Extra) -> Refusal | None:
        if plan.op(call).affine.axis != extra.axis:
            return super().ignore(plan, call, slot, extra)
        self._widen(plan, call, extra.blocks)
        return plan.ignore(call.output, extra)

    def _widen(self, plan: Plan, call: Call, blocks: int) -> None:
        """Extend the affine by the identity on constant channels."""
        affine = plan.op(call).affine
        parts = affine.split([affine.size // blocks] * blocks)
        one = Affine.identity(affine.axis, 1)
        self._become(plan, call, join([part for block in parts for part in (block, one)]))

    @staticmethod
    def _become(plan: Plan, call: Call, affine: Affine) -> None:
        plan.change(call, dataclasses.replace(plan.op(call), affine=affine))


def _other_axis(call: Call, affine: Affine) -> Refusal:
    return Refusal(f"{call.name!r} has its channels on another axis than {affine.axis}")
