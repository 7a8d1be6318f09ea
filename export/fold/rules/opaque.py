"""The last rule, which refuses operations that no other rule covers."""

# ruff: noqa: D102 - the base class documents the methods
from __future__ import annotations

from typing import Any

from ..affine import Affine
from ..graph import Call
from ..plan import Plan, Refusal, Rule


class Opaque(Rule):
    """All operations that no other rule covers."""

    def matches(self, op: Any) -> bool:
        return True

    def backward(self, plan: Plan, call: Call, affine: Affine) -> Refusal | None:
        if not call.inputs:
            return Refusal(f"{call.name!r} is an input of the network")
        return Refusal(f"{call.name!r} ({_type_of(call)}) is not linear")

    def forward(self, plan: Plan, call: Call, slot: int, affine: Affine) -> Refusal | None:
        return Refusal(f"{call.name!r} ({_type_of(call)}) is not linear")


def _type_of(call: Call) -> str:
    operation = getattr(call.op, "operation", None)
    return type(call.op if operation is None else operation).__name__
