"""The rule of linear layers, which absorb affines into their weights.

With ``y = W·x + b``:

    backward   s·y + t             = (s·W)·x + (s·b + t)
    forward    W·(s·x' + t) + b    = (W·s)·x' + (b + W·t)

Backward is always exact. Forward, ``W·t`` is one number per output channel only if every output
position reads the whole kernel, which zero padding prevents; see `Absorb.carry` and
`take_as_map` for that case.
"""

# ruff: noqa: D102 - the base class documents the methods
from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ..affine import Affine
from ..build import response
from ..graph import AffineOp, Call, Extra, MapOp
from ..linear import Constants, Linear
from ..linear_layers.base import along
from ..plan import Plan, Refusal, Rule


class Absorb(Rule):
    """A linear layer absorbs an affine on one of its channel axes."""

    def matches(self, op: Any) -> bool:
        return isinstance(op, Linear)

    def backward(self, plan: Plan, call: Call, affine: Affine) -> Refusal | None:
        op: Linear = plan.op(call)
        channels = op.kind.outputs(op.layer, call.output.rank)
        taken = _aligned(affine, channels, op.after)
        if taken is None:
            return _wrong_axis(call, affine, channels, "gives")
        after = taken if op.after is None else taken.after(op.after)
        plan.change(call, dataclasses.replace(op, after=after))
        return None

    def forward(self, plan: Plan, call: Call, slot: int, affine: Affine) -> Refusal | None:
        op: Linear = plan.op(call)
        value = call.inputs[slot]
        channels = op.kind.inputs(op.layer, value.rank)
        taken = _aligned(affine, channels, op.before)
        if taken is None:
            return _wrong_axis(call, affine, channels, "reads")
        if taken.shifts:
            border = op.kind.borders(op.layer, value.shape)
            if border:
                return Refusal(f"{call.name!r} cannot absorb the shift: {border}")
        before = taken if op.before is None else op.before.after(taken)
        plan.change(call, dataclasses.replace(op, before=before))
        return None

    def provide(self, plan: Plan, call: Call, wanted: Extra) -> Extra | Refusal:
        op: Linear = plan.op(call)
        channels = op.kind.outputs(op.layer, call.output.rank)
        if op.gives is not None or not _takes(op, channels, wanted):
            return super().provide(plan, call, wanted)
        gives = Constants(wanted.constant, wanted.blocks)
        plan.change(call, dataclasses.replace(op, gives=gives))
        return wanted

    def ignore(self, plan: Plan, call: Call, slot: int, extra: Extra) -> Refusal | None:
        op: Linear = plan.op(call)
        channels = op.kind.inputs(op.layer, call.inputs[slot].rank)
        if op.widened or not _takes(op, channels, extra):
            return super().ignore(plan, call, slot, extra)
        plan.change(call, dataclasses.replace(op, widened=extra.blocks))
        return None

    def carry(
        self, plan: Plan, call: Call, slot: int, affine: Affine, extra: Extra
    ) -> Refusal | None:
        """Absorb the shift as kernel rows that read the constant: ``sum_c W_c·t_c``.

        Zero padding affects those channels in the same way as the others, so the output is exact at
        every position. A row sums over the block of channels before it.
        """
        op: Linear = plan.op(call)
        if not extra.padded and self.forward(plan, call, slot, affine) is None:
            return self._widened(plan, call, slot, extra)
        channels = op.kind.inputs(op.layer, call.inputs[slot].rank)
        taken = _aligned(affine, channels, op.before)
        if taken is None:
            return _wrong_axis(call, affine, channels, "reads")
        refusal = self.forward(plan, call, slot, taken.scale_only)
        refusal = refusal or self._widened(plan, call, slot, extra)
        if refusal:
            return refusal
        # An affine that the layer absorbed earlier lies between its weights and this shift.
        shift = taken.shift if op.before is None else op.before.scale * taken.shift
        border = shift / extra.constant + (0.0 if op.border is None else op.border)
        plan.change(call, dataclasses.replace(plan.op(call), border=border))
        return None

    def _widened(self, plan: Plan, call: Call, slot: int, extra: Extra) -> Refusal | None:
        return None if plan.op(call).widened else self.ignore(plan, call, slot, extra)


def take_as_map(plan: Plan, call: Call, slot: int, seed: AffineOp) -> Refusal | None:
    """Plan that a linear layer absorbs a scale and a map after it adds the shift."""
    op = plan.op(call)
    if not isinstance(op, Linear) or None in call.inputs[slot].shape[1:]:
        return Refusal(
            f"{call.name!r} has an output without a fixed size, so no constant can be added to it"
        )
    if plan.graph.misdeclared:
        return Refusal(
            f"Keras declares another shape for the output of {plan.graph.misdeclared!r} than it "
            "computes, so the sizes behind it are not known"
        )
    if any(known is call for known, _ in plan.maps):
        return Refusal(f"{call.name!r} reads one tensor twice")
    refusal = plan.rule(call).forward(plan, call, slot, seed.affine.scale_only)
    if refusal:
        return refusal
    alone = dataclasses.replace(op, after=op.after and op.after.scale_only, gives=None)
    shape = tuple(int(size) for size in call.inputs[slot].shape[1:] if size is not None)
    shift = along(seed.affine.shift, seed.affine.axis - 1, len(shape))
    constant = response(alone, np.broadcast_to(shift, shape))
    plan.maps.append((call, MapOp(constant, seed.name, seed.norms)))
    return None


def _takes(op: Linear, channels: dict[int, int], extra: Extra) -> bool:
    """Return whether constant channels can be inserted into the channel groups of a layer."""
    groups, size = op.kind.groups(op.layer), channels.get(extra.axis, 0)
    return bool(groups and size) and not (extra.blocks % groups or size % extra.blocks)


def _aligned(affine: Affine, channels: dict[int, int], known: Affine | None) -> Affine | None:
    """Return the affine on an axis of the weights, or on that of an affine already absorbed."""
    if known is not None:
        channels = {known.axis: known.size}
    if channels.get(affine.axis) == affine.size:
        return affine
    for axis, size in channels.items():
        there = affine.on_axis(axis, size)
        if there is not None:
            return there
    return None


def _wrong_axis(call: Call, affine: Affine, channels: dict[int, int], verb: str) -> Refusal:
    axes = " or ".join(str(axis) for axis in channels) or "(none of its weights)"
    return Refusal(
        f"the norm is on axis {affine.axis}, {call.name!r} {verb} its channels on axis {axes}"
    )
