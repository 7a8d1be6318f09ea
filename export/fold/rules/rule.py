"""What a rule is: how calls of one family take an affine, or pass it on."""

# ruff: noqa: D102 - the base class documents the methods
from __future__ import annotations

import abc
from typing import Any

from ..affine import Affine
from ..graph import Call
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
