"""What a rule is: how calls of one family take an affine, or pass it on."""

# ruff: noqa: D102 - the base class documents the methods
from __future__ import annotations

import abc
from typing import Any

from ..affine import Affine
from ..graph import Call, Extra
from ..plan import Plan, Refusal


class Rule(abc.ABC):
    """How the calls of one family of operations answer a recoding. Stateless.

    Both answers are exact or a `Refusal`: None means that the plan now holds every change needed.
    """

    @abc.abstractmethod
    def matches(self, op: Any) -> bool:
        """Whether the rule speaks for calls of this op."""

    @abc.abstractmethod
    def backward(self, plan: Plan, call: Call, affine: Affine) -> Refusal | None:
        """Plan that the call computes ``affine(y)`` where it computed ``y``."""

    @abc.abstractmethod
    def forward(self, plan: Plan, call: Call, slot: int, affine: Affine) -> Refusal | None:
        """Plan that the call is given ``x'`` in a slot where it was given ``x = affine(x')``."""

    def provide(self, plan: Plan, call: Call, axis: int, fill: float) -> Extra | Refusal:
        """Plan that the call's output has one more channel, its last, that carries a constant.

        Args:
            plan: The plan.
            call: The call.
            axis: Channel axis of the output.
            fill: 1 for any constant but 0, 0 for 0.

        Returns:
            The channel, or the refusal.
        """
        return Refusal(f"{call.name!r} has no channel to spare for a constant")

    def ignore(self, plan: Plan, call: Call, slot: int, extra: Extra) -> Refusal | None:
        """Plan that the call is given one more channel in a slot, and computes what it did."""
        return Refusal(f"{call.name!r} cannot be given one more channel")

    def carry(
        self, plan: Plan, call: Call, slot: int, affine: Affine, extra: Extra
    ) -> Refusal | None:
        """Plan that the call is given ``x'`` where it was given ``affine(x')``, and a constant.

        Only a layer that pads with zeros has a use for the constant; others take the affine as
        ever.
        """
        if extra.padded and affine.shifts:
            return Refusal(f"{call.name!r} has no use for a shift that is not there at borders")
        refusal = self.forward(plan, call, slot, affine)
        return refusal or self.ignore(plan, call, slot, extra)


class Opaque(Rule):
    """Everything no other rule speaks for: it refuses."""

    def matches(self, op: Any) -> bool:
        return True

    def backward(self, plan: Plan, call: Call, affine: Affine) -> Refusal | None:
        if not call.inputs:
            return Refusal(f"{call.name!r} is an input of the network")
        return Refusal(f"no affine passes through {call.name!r} ({_type_of(call)})")

    def forward(self, plan: Plan, call: Call, slot: int, affine: Affine) -> Refusal | None:
        return Refusal(f"no affine passes through {call.name!r} ({_type_of(call)})")


def _type_of(call: Call) -> str:
    operation = getattr(call.op, "operation", None)
    return type(call.op if operation is None else operation).__name__
