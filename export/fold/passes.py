"""The passes of the fold: the rules, their order, and when to stop."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from .affine import LARGEST, Affine
from .cost import FREE, Cost, cost_of, one_more_is_slow
from .graph import AffineOp, Call, Extra, Graph, Value
from .linear import Linear
from .plan import REACH, Plan, Refusal, Rule
from .rules import absorb, activations, branch, commute, merge, opaque

# The first rule that matches a call applies to it. Only the last one overlaps with others.
RULES: tuple[Rule, ...] = (
    # Linear layers absorb affines; they are the most frequent, so they are first.
    absorb.Absorb(),
    merge.Merge(),
    activations.Activation(),
    commute.SameAxis(),
    commute.Spatial(),
    commute.MaxPool(),
    commute.ZeroPad(),
    commute.GlobalPool(),
    commute.GlobalMaxPool(),
    commute.Reshape(),
    commute.Permute(),
    commute.Repeat(),
    branch.Concatenate(),
    branch.Add(),
    branch.Maximum(),
    branch.Multiply(),
    # It matches everything, so it is last.
    opaque.Opaque(),
)


@dataclass(frozen=True)
class Way:
    """One decomposition of an affine: ``A = forward ∘ stays ∘ backward``.

    A part that is the identity is None.
    """

    backward: Affine | None = None
    stays: Affine | None = None
    forward: Affine | None = None


def ways(affine: Affine) -> Iterator[Way]:
    """Yield the decompositions of an affine to try; the first of equal cost is chosen.

    Besides ``y = s·x + t``, they use ``y = s·(x + q) + r``: q = t/s and r = 0, but where s = 0,
    q = 0 and r = t.
    """
    # Backward first: it is exact for every padding, and the layers that follow are not changed.
    yield Way(backward=affine)
    yield Way(forward=affine)
    scale, shift = affine.scale_only, affine.shift_only
    with np.errstate(all="ignore"):
        ahead = np.where(affine.scale == 0, 0.0, affine.shift / affine.scale)
    if not (np.abs(ahead) <= LARGEST).all():
        return
    inner = dataclasses.replace(affine, scale=np.ones_like(ahead), shift=ahead)
    outer = dataclasses.replace(affine, shift=np.where(affine.scale == 0, affine.shift, 0.0))
    if affine.scales and affine.shifts:
        yield Way(backward=inner, forward=outer)
        yield Way(backward=scale, forward=shift)
        # One operation remains. An ADD fuses with the relu after it, so it is preferred to a MUL.
        yield Way(stays=inner, forward=outer)
        yield Way(stays=shift, backward=scale)
        yield Way(stays=scale, forward=shift)
        yield Way(stays=outer, backward=inner)


@dataclass
class Step:
    """One fold, as recorded for the report and the roll-back.

    Attributes:
        norms: The norms whose affine was moved.
        into: The linear layers that absorbed it, or the norms that it was merged with.
    """

    norms: tuple[str, ...]
    into: list[str]


@dataclass
class Outcome:
    """The result of the passes.

    Attributes:
        steps: The folds, in order.
        refusals: For each norm that is not folded completely, the reasons.
    """

    steps: list[Step] = field(default_factory=list)
    refusals: dict[str, list[Refusal]] = field(default_factory=dict)


def run(
    graph: Graph,
    *,
    copy_budget: int = 0,
    most_steps: int | None = None,
    banned: frozenset[tuple[str, ...]] = frozenset(),
    widen: bool = True,
) -> Outcome:
    """Fold until the cost does not decrease any further.

    Args:
        graph: A recognized graph; changed in place.
        copy_budget: Number of parameters that copies of layers may add.
        most_steps: Greatest number of folds, used by the roll-back to find a wrong one.
        banned: Norms that must not be folded, in the form of `Step.norms`.
        widen: Whether a shift before a padded layer may be converted to a channel of ones or a
            constant map.

    Returns:
        The folds and the refusals.
    """
    outcome = Outcome()
    passes = _Passes(graph, outcome, copy_budget, most_steps, banned)
    while passes.sweep(best_plan):
        pass
    if not widen:
        return outcome
    # After all moves, since no affine can be moved past a value with an additional channel.
    passes.sweep(border_plan)
    # Last, since it costs more parameters than any other plan.
    passes.sweep(map_plan)
    return outcome


Planner = Callable[[Graph, list[Call], int], tuple[Plan | None, list[Refusal]]]


@dataclass
class _Passes:
    """One run of the passes over a graph, with the remaining budget and the result so far."""

    graph: Graph
    outcome: Outcome
    copy_budget: int
    most_steps: int | None
    banned: frozenset[tuple[str, ...]]

    def sweep(self, planner: Planner) -> bool:
        """Process all affines once; return whether any of them was folded."""
        before = len(self.outcome.steps)
        for group in _groups(self.graph):
            # The calls of one norm are folded together, so that shared layers stay shared; if that
            # is not possible, each is folded separately.
            attempts = [group] if len(group) == 1 else [group, *([call] for call in group)]
            for seeds in attempts:
                # A fold since the calls were grouped may have changed one of them.
                if all(call.op is seeds[0].op for call in seeds):
                    self.fold(planner, seeds)
        _drop_identities(self.graph, self.graph.calls())
        return len(self.outcome.steps) > before

    def fold(self, planner: Planner, seeds: list[Call]) -> None:
        """Fold the affine of some calls of one norm, if that reduces the cost."""
        steps = self.outcome.steps
        op: AffineOp = seeds[0].op
        if self.most_steps is not None and len(steps) >= self.most_steps:
            return
        if op.stays or op.norms in self.banned:
            return
        if any(call.op.affine.is_identity for call in seeds):
            return
        plan, refusals = planner(self.graph, seeds, self.copy_budget)
        self.outcome.refusals.setdefault(op.name, refusals)
        if plan is None:
            return
        steps.append(Step(op.norms, plan.absorbers(seeds)))
        self.copy_budget -= sum(copy.op.size for copy in plan.copies)
        plan.commit()
        # At once: an affine that comes next could move to this place, which would be no progress.
        _drop_identities(self.graph, seeds)


def border_plan(
    graph: Graph, seeds: list[Call], copy_budget: int
) -> tuple[Plan | None, list[Refusal]]:
    """Find a plan in which zero-padded layers read a shift from a channel of ones.

    The layer before the norm gets an additional output channel that is 1 everywhere, or one per
    group if grouped convolutions follow. A layer that pads its input with zeros also pads that
    channel, so a kernel row that reads it adds the shift everywhere except in the padding.
    """
    affine: Affine = seeds[0].op.affine
    blocks = _groups_behind(seeds)
    if blocks == affine.size > 1:
        reason = "the layers after it read each channel separately, so none can read a constant"
        return None, [Refusal(reason)]
    if one_more_is_slow(affine.size):
        reason = f"{affine.size + 1} channels would take longer than {affine.size} and an addition"
        return None, [Refusal(reason)]
    refusals = []
    for way in (Way(forward=affine), Way(stays=affine.scale_only, forward=affine.shift_only)):
        plan = Plan(graph, RULES, copy_budget)
        refusal = _take_from_ones(plan, seeds, way, blocks)
        if refusal is not None:
            refusals.append(refusal)
        elif plan_cost(plan) < FREE:
            return plan, refusals
    return None, refusals


def _take_from_ones(plan: Plan, seeds: list[Call], way: Way, blocks: int) -> Refusal | None:
    assert way.forward is not None
    for call in seeds:
        if call in plan.ops:
            return Refusal(f"the calls of {call.op.name!r} follow one another")
        affine: Affine = call.op.affine
        left = way.stays or Affine.identity(affine.axis, affine.size)
        plan.change(call, dataclasses.replace(call.op, affine=left))
        extra = plan.rule(call).provide(plan, call, Extra(affine.axis, 1.0, blocks))
        if isinstance(extra, Refusal):
            return extra
        refusal = plan.carry(call.output, way.forward, extra)
        if refusal:
            return refusal
    return None


def _groups_behind(seeds: list[Call]) -> int:
    """Return the number of channel blocks that the linear layers after a norm need."""
    groups = 1
    waiting, seen = [call.output for call in seeds], set(seeds)
    while waiting and len(seen) < REACH:
        for user, _ in waiting.pop().uses:
            if user in seen:
                continue
            seen.add(user)
            if isinstance(user.op, Linear):
                groups = math.lcm(groups, user.op.kind.groups(user.op.layer) or 1)
            else:
                waiting += user.outputs
    return groups


def map_plan(
    graph: Graph, seeds: list[Call], copy_budget: int
) -> tuple[Plan | None, list[Refusal]]:
    """Find a plan that adds the effect of a shift after a zero-padded layer, as a constant map.

    ``W*pad(s·x + t) = (W·s)*pad(x) + W*pad(t)``: the last term is a constant with the shape of the
    output, uniform except at the borders. One operation remains instead of a multiplication and an
    addition.
    """
    plan = Plan(graph, RULES, copy_budget)
    for call in seeds:
        op: AffineOp = call.op
        identity = Affine.identity(op.affine.axis, op.affine.size)
        plan.change(call, dataclasses.replace(op, affine=identity))
        for user, slot in call.output.uses:
            refusal = absorb.take_as_map(plan, user, slot, op)
            if refusal:
                return None, [refusal]
        if call.output.is_output or call.output.extra is not None:
            return None, []
    return (plan, []) if plan_cost(plan) < FREE else (None, [])


def best_plan(
    graph: Graph, seeds: list[Call], copy_budget: int
) -> tuple[Plan | None, list[Refusal]]:
    """Find the cheapest plan for the calls of one norm, with the same decomposition for all.

    Returns:
        The plan, or None if no plan reduces the cost; and the reasons why the whole affine cannot
        be moved backward and forward.
    """
    best, best_cost = None, FREE
    refusals: list[Refusal] = []
    for way in ways(seeds[0].op.affine):
        plan = Plan(graph, RULES, copy_budget)
        refusal = _take(plan, seeds, way)
        if refusal is not None:
            refusals.append(refusal)
            continue
        cost = plan_cost(plan)
        if cost >= FREE:
            refusals.append(Refusal("that would leave no fewer operations"))
        elif cost < best_cost:
            best, best_cost = plan, cost
        if best is not None and not any(cost_of(best.op(call)).ops for call in seeds):
            break
    return best, refusals[:2]


def _take(plan: Plan, seeds: list[Call], way: Way) -> Refusal | None:
    for call in seeds:
        identity = Affine.identity(call.op.affine.axis, call.op.affine.size)
        plan.change(call, dataclasses.replace(call.op, affine=way.stays or identity))
    for call in seeds:
        refusal = None
        # A call's own affine is not the one that the fold of another call asks of it.
        if way.backward is not None:
            refusal = _met(plan, call.inputs[0])
            refusal = refusal or plan.backward(call.inputs[0], way.backward, call)
        if refusal is None and way.forward is not None:
            refusal = _met(plan, call.output) or plan.forward(call.output, way.forward)
        if refusal is not None:
            return refusal
    return None


def _met(plan: Plan, value: Value) -> Refusal | None:
    """Refuse a value that the fold of another call of the same norm has recoded."""
    if value not in plan.recoded:
        return None
    return Refusal(f"the calls of the norm meet at the output of {value.producer.name!r}")


def plan_cost(plan: Plan) -> Cost:
    """Return the change of the network's cost if the plan is executed."""
    total = FREE
    for call, op in plan.ops.items():
        total = total + (cost_of(op) - cost_of(call.op))
    for copy in plan.copies:
        total = total + Cost(1, copy.op.size)
    for _, op in plan.maps:
        total = total + cost_of(op)
    return total


def _groups(graph: Graph) -> list[list[Call]]:
    """Return the affines of the network in order, with the calls of one norm grouped."""
    groups: dict[int, list[Call]] = {}
    for call in graph.calls():
        if isinstance(call.op, AffineOp):
            groups.setdefault(id(call.op), []).append(call)
    return list(groups.values())


def _drop_identities(graph: Graph, calls: list[Call]) -> None:
    for call in calls:
        if isinstance(call.op, AffineOp) and call.op.affine.is_identity:
            graph.remove(call)
