"""The rules of layers that join branches: Concatenate, Add and similar, Maximum, Multiply.

Concatenate    A(concat(a, b)) = concat(A_a(a), A_b(b)), where A is split like the channels
Add, backward  s·(a + b) + t   = (s·a + t) + s·b
Add, forward   (s·a' + t) + b  = s·(a' + b') + t  with b = s·b', or without t if b = s·b' - t
Maximum        A(max(a, b))    = max(A(a), A(b))  for s >= 0
Multiply       s·(a * b)       = (s·a) * b
"""

# ruff: noqa: D102 - the base class documents the methods
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from keras import layers as kl

from ..affine import Affine, join
from ..graph import Call, Extra, Kept, Value
from ..keras_graph import kind_of
from ..plan import Plan, Refusal, Rule


class _Join(Rule):
    """Base class of rules for calls with several inputs; a call that reads one twice is refused."""

    layers: tuple[type, ...] = ()
    operators: tuple[str, ...] = ()

    def matches(self, op: Any) -> bool:
        if not isinstance(op, Kept):
            return False
        return type(op.operation) in self.layers or kind_of(op.operation) in self.operators

    def backward(self, plan: Plan, call: Call, affine: Affine) -> Refusal | None:
        return _twice(call) or self.join_backward(plan, call, affine)

    def forward(self, plan: Plan, call: Call, slot: int, affine: Affine) -> Refusal | None:
        return _twice(call) or self.join_forward(plan, call, slot, affine)

    def join_backward(self, plan: Plan, call: Call, affine: Affine) -> Refusal | None:
        raise NotImplementedError

    def join_forward(self, plan: Plan, call: Call, slot: int, affine: Affine) -> Refusal | None:
        raise NotImplementedError


class Concatenate(_Join):
    """Concatenate: an affine on its axis is split; on another axis it is the same for all."""

    layers = (kl.Concatenate,)
    operators = ("Concatenate",)

    def join_backward(self, plan: Plan, call: Call, affine: Affine) -> Refusal | None:
        parts = [affine] * len(call.inputs)
        if affine.axis == _axis(call):
            parts = affine.split([_size(value, affine.axis) for value in call.inputs])
        for value, part in zip(call.inputs, parts, strict=True):
            refusal = plan.backward(value, part, call)
            if refusal:
                return refusal
        return None

    def join_forward(self, plan: Plan, call: Call, slot: int, affine: Affine) -> Refusal | None:
        axis = _axis(call)
        if affine.axis != axis:
            return _same_for_all(plan, call, slot, affine)
        parts = [Affine.identity(axis, _size(value, axis)) for value in call.inputs]
        parts[slot] = affine
        return plan.forward(call.output, join(parts))


class Add(_Join):
    """Add, Subtract, Average: all branches have the same scale, and any one has the shift."""

    layers = (kl.Add, kl.Subtract, kl.Average)
    operators = ("Add", "Subtract")

    def join_backward(self, plan: Plan, call: Call, affine: Affine) -> Refusal | None:
        if not _alike(call):
            return _broadcasts(call)
        slots = range(len(call.inputs))
        carriers = _by_readers(call, slots) if affine.shifts else [0]
        return plan.first([partial(self._spread, plan, call, affine, slot) for slot in carriers])

    def _spread(self, plan: Plan, call: Call, affine: Affine, carrier: int) -> Refusal | None:
        """Scale every branch, and add the shift to one of them."""
        for slot, value in enumerate(call.inputs):
            part = affine.scale_only
            if slot == carrier:
                shift = affine.shift / self._weight(call, slot)
                part = replace(affine, shift=shift)
            refusal = plan.backward(value, part, call)
            if refusal:
                return refusal
        return None

    def join_forward(self, plan: Plan, call: Call, slot: int, affine: Affine) -> Refusal | None:
        if not _alike(call):
            return _broadcasts(call)
        out = replace(affine, shift=affine.shift * self._weight(call, slot))
        inverse = affine.scale_only.inverse()
        if inverse is None:
            return Refusal(
                f"{call.name!r} joins it with a branch that cannot be divided by a scale of 0"
            )
        others = [i for i in range(len(call.inputs)) if i != slot]

        def spread(carrier: int | None) -> Refusal | None:
            for i in others:
                part, left = inverse, out
                if i == carrier:
                    shift = inverse.scale * out.shift / self._weight(call, i)
                    part = replace(inverse, shift=shift)
                refusal = plan.backward(call.inputs[i], part, call)
                if refusal:
                    return refusal
            left = out if carrier is None else out.scale_only
            return plan.forward(call.output, left)

        carriers = [*_by_readers(call, others), None] if affine.shifts else [None]
        return plan.first([partial(spread, carrier) for carrier in carriers])

    def provide(self, plan: Plan, call: Call, wanted: Extra) -> Extra | Refusal:
        """Plan that the first branch provides the constant and the others 0."""
        if _twice(call) or not _alike(call):
            return super().provide(plan, call, wanted)
        total = 0.0
        for slot, value in enumerate(call.inputs):
            part = replace(wanted, constant=0.0) if slot else wanted
            extra = plan.provide(value, part, call)
            if isinstance(extra, Refusal):
                return extra
            total += self._weight(call, slot) * extra.constant
        return replace(wanted, constant=total)

    def ignore(self, plan: Plan, call: Call, slot: int, extra: Extra) -> Refusal | None:
        if _twice(call) or not _alike(call):
            return super().ignore(plan, call, slot, extra)
        total = self._weight(call, slot) * extra.constant
        for i, value in enumerate(call.inputs):
            if i != slot:
                other = plan.provide(value, Extra(extra.axis, 0.0, extra.blocks), call)
                if isinstance(other, Refusal):
                    return other
        return plan.ignore(call.output, replace(extra, constant=total))

    @staticmethod
    def _weight(call: Call, slot: int) -> float:
        """Return the factor of a branch in the sum."""
        operation = call.op.operation
        if isinstance(operation, kl.Average):
            return 1 / len(call.inputs)
        subtracts = isinstance(operation, kl.Subtract) or kind_of(operation) == "Subtract"
        return -1.0 if subtracts and slot == 1 else 1.0


class Maximum(_Join):
    """Maximum and Minimum: the same affine on all branches, without negative scales."""

    layers = (kl.Maximum, kl.Minimum)
    operators = ("Maximum", "Minimum")

    def join_backward(self, plan: Plan, call: Call, affine: Affine) -> Refusal | None:
        refusal = self._refuses(call, affine)
        for value in call.inputs:
            refusal = refusal or plan.backward(value, affine, call)
        return refusal

    def join_forward(self, plan: Plan, call: Call, slot: int, affine: Affine) -> Refusal | None:
        return self._refuses(call, affine) or _same_for_all(plan, call, slot, affine)

    @staticmethod
    def _refuses(call: Call, affine: Affine) -> Refusal | None:
        if not _alike(call):
            return _broadcasts(call)
        if (affine.scale < 0).any():
            return Refusal(
                f"{call.name!r} compares values, and only positive scales preserve the order"
            )
        return None


class Multiply(_Join):
    """Multiply: any one branch has the scale; a shift cannot move through."""

    layers = (kl.Multiply,)
    operators = ("Multiply",)

    def join_backward(self, plan: Plan, call: Call, affine: Affine) -> Refusal | None:
        if affine.shifts:
            return Refusal(f"a shift cannot be moved through the product {call.name!r}")
        ways = [
            partial(plan.backward, value, affine, call)
            for value in call.inputs
            if value.rank == call.output.rank
            and value.shape[affine.axis] == call.output.shape[affine.axis]
        ]
        return plan.first(ways) if ways else _broadcasts(call)

    def join_forward(self, plan: Plan, call: Call, slot: int, affine: Affine) -> Refusal | None:
        if affine.shifts:
            return Refusal(f"a shift cannot be moved through the product {call.name!r}")
        if call.output in plan.recoded:  # two scales would multiply
            return Refusal(f"another factor of {call.name!r} is scaled, too")
        value = call.inputs[slot]
        wide = call.output.shape[affine.axis] if value.rank == call.output.rank else None
        there = affine.on_axis(affine.axis, wide)
        return plan.forward(call.output, there) if there else _broadcasts(call)


def _by_readers(call: Call, slots: Iterable[int]) -> list[int]:
    """Order branches by their number of readers, since the other readers must invert a shift."""
    return sorted(slots, key=lambda slot: len(call.inputs[slot].uses))


def _same_for_all(plan: Plan, call: Call, slot: int, affine: Affine) -> Refusal | None:
    """Apply the recoding of one branch to all others, and pass it on."""
    inverse = affine.inverse()
    if inverse is None:
        return Refusal(
            f"{call.name!r} joins it with a branch that would lose precision by inverting it"
        )
    for i, value in enumerate(call.inputs):
        if i != slot:
            refusal = plan.backward(value, inverse, call)
            if refusal:
                return refusal
    return plan.forward(call.output, affine)


def _twice(call: Call) -> Refusal | None:
    if len(set(call.inputs)) == len(call.inputs):
        return None
    return Refusal(f"{call.name!r} reads one tensor twice")


def _alike(call: Call) -> bool:
    """Return whether all inputs have the shape of the output, so that nothing is broadcast."""
    return len(call.inputs) > 1 and all(v.shape == call.output.shape for v in call.inputs)


def _broadcasts(call: Call) -> Refusal:
    if len(call.inputs) == 1:
        return Refusal(f"{call.name!r} has a constant operand")
    return Refusal(f"{call.name!r} broadcasts, so its inputs have different channels")


def _axis(call: Call) -> int:
    return int(np.mod(call.op.operation.axis, call.output.rank))


def _size(value: Value, axis: int) -> int:
    size = value.shape[axis]
    assert size is not None, "an affine on this axis has a length, so its parts do"
    return size
