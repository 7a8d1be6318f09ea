"""A plan: how one affine would travel, worked out completely before anything is changed.

To *recode* a value is to let it carry ``v'`` instead of ``v``, with one affine between the two:

- backward, ``v' = E(v)``: the call that produces v must produce E(v) instead, and every other call
  that reads v must undo it;
- forward, ``v = D(v')``: whoever asks has seen to the producer, and every call that reads v must
  apply D itself.

Rules say how one call does either: it takes the affine into its weights, or asks the same of the
values beside it. So a plan spreads from the norm until all of it is absorbed, or one call refuses.
No weight is read while planning.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .affine import Affine
from .graph import AffineOp, Call, Extra, Graph, MapOp, Value
from .linear import Linear

# How many steps one plan may take: it bounds the search, so that the fold is linear in the number
# of layers. The longest that a network of keras.applications needs is far below.
REACH = 400


@dataclass(frozen=True)
class Refusal:
    """Why an affine cannot go where it was asked to.

    Attributes:
        reason: A clause that completes "... because": lower case, no full stop.
        budget: Whether it could be done if the budget were larger.
    """

    reason: str
    budget: bool = False


@dataclass(frozen=True)
class Copy:
    """A second call of a linear layer that absorbs what the first cannot."""

    call: Call
    reader: Call
    op: Linear


class Plan:
    """The changes one fold would make; holds them until `commit`."""

    def __init__(self, graph: Graph, rules: tuple[Rule, ...], copy_budget: int) -> None:
        self.graph = graph
        self.rules = rules
        self.copy_budget = copy_budget
        self.ops: dict[Call, Any] = {}
        self.recoded: dict[Value, tuple[str, Affine]] = {}
        self.extras: dict[Value, Extra] = {}
        self.copies: list[Copy] = []
        self.maps: list[tuple[Call, MapOp]] = []
        self.steps = 0

    def op(self, call: Call) -> Any:
        """Return what a call computes as things are planned."""
        return self.ops.get(call, call.op)

    def change(self, call: Call, op: Any) -> None:
        """Plan another op for a call."""
        self.ops[call] = op

    def backward(self, value: Value, affine: Affine, reader: Call) -> Refusal | None:
        """Plan that ``value`` carries ``affine(value)``.

        Args:
            value: The value to recode.
            affine: E, what it is to be mapped by.
            reader: The call that asks; it has seen to itself.

        Returns:
            None if it can be done, else the refusal; the plan is then spoilt, see `attempt`.
        """
        if affine.is_identity:
            return None
        known = self._enter(value, "backward", affine)
        if known is not None:
            return None if known is _DONE else known
        producer = value.producer

        def recode() -> Refusal | None:
            for call, slot in value.uses:
                if call is not reader:
                    refusal = self._undo(call, slot, affine)
                    if refusal:
                        return Refusal(
                            f"{producer.name!r} also feeds {call.name!r}, and {refusal.reason}",
                            refusal.budget,
                        )
            return self.rule(producer).backward(self, producer, affine)

        if len(value.uses) == 1:
            return recode()
        refusal = self.attempt(recode)
        return refusal and self._copy(value, affine, reader, refusal)

    def forward(self, value: Value, affine: Affine) -> Refusal | None:
        """Plan that ``value`` carries a ``v'`` with ``value = affine(v')``.

        Args:
            value: The value to recode; who asks has seen to its producer.
            affine: D, what its readers must apply.

        Returns:
            None if it can be done, else the refusal.
        """
        if affine.is_identity:
            return None
        known = self._enter(value, "forward", affine)
        if known is not None:
            return None if known is _DONE else known
        for call, slot in value.uses:
            refusal = self.rule(call).forward(self, call, slot, affine)
            if refusal:
                return refusal
        return None

    def provide(self, value: Value, wanted: Extra, reader: Call) -> Extra | Refusal:
        """Plan that ``value`` has more channels, which carry a constant.

        Args:
            value: The value to widen.
            wanted: The channels; a constant of 1 stands for any but 0.
            reader: The call that asks; every other call that reads the value ignores the channels.

        Returns:
            The channels, or the refusal.
        """
        known = self.extra(value)
        if known is not None:
            fits = (known.axis, known.blocks) == (wanted.axis, wanted.blocks)
            if fits and bool(known.constant) == bool(wanted.constant):
                return known
            return Refusal("it already has another constant channel")
        refusal = self._step(value)
        if refusal:
            return refusal
        extra = self.rule(value.producer).provide(self, value.producer, wanted)
        if isinstance(extra, Refusal):
            return extra
        self.extras[value] = extra
        for call, slot in value.uses:
            if call is not reader:
                refusal = self.rule(call).ignore(self, call, slot, extra)
                if refusal:
                    return Refusal(
                        f"{value.producer.name!r} also feeds {call.name!r}, and {refusal.reason}"
                    )
        return extra

    def ignore(self, value: Value, extra: Extra) -> Refusal | None:
        """Plan that ``value`` has more channels, which nobody uses."""
        if self.extra(value) is not None:
            return None
        refusal = self._step(value)
        self.extras[value] = extra
        for call, slot in value.uses:
            refusal = refusal or self.rule(call).ignore(self, call, slot, extra)
        return refusal

    def carry(self, value: Value, affine: Affine, extra: Extra) -> Refusal | None:
        """Plan that ``value`` is ``affine(v')`` and that ``v'`` has more, constant channels.

        Whoever reads it may take the shift from those channels, so that zero padding reaches both
        alike.
        """
        known = self._enter(value, "forward", affine)
        if known is not None:
            return known
        self.extras[value] = extra
        for call, slot in value.uses:
            refusal = self.rule(call).carry(self, call, slot, affine, extra)
            if refusal:
                return refusal
        return None

    def extra(self, value: Value) -> Extra | None:
        """Return the constant channels of a value as things are planned."""
        return self.extras.get(value, value.extra)

    def first(self, ways: Iterable[Callable[[], Refusal | None]]) -> Refusal | None:
        """Take the first way that succeeds; return the first refusal when none does."""
        refusals = []
        for way in ways:
            refusal = self.attempt(way)
            if refusal is None:
                return None
            refusals.append(refusal)
        return refusals[0]

    def attempt(self, way: Callable[[], Refusal | None]) -> Refusal | None:
        """Try a way; when it refuses, forget all it planned."""
        before = (dict(self.ops), dict(self.recoded), dict(self.extras), list(self.copies))
        refusal = way()
        if refusal is not None:
            self.ops, self.recoded, self.extras, self.copies = before
        return refusal

    def absorbers(self, seeds: list[Call]) -> list[str]:
        """Return the names of the linear layers that take something in.

        Where none does, those of the norms that ``seeds`` were merged with.
        """
        copied = [copy.call.op.name for copy in self.copies]
        linear = [call.op.name for call in self.ops if isinstance(call.op, Linear)]
        merged = [call.op.name for call in self.ops if call not in seeds]
        return list(dict.fromkeys([*linear, *copied] or merged))

    def commit(self) -> None:
        """Make the planned changes in the graph."""
        for copy in self.copies:
            original = copy.call
            twin = Call(copy.op, list(original.inputs), original.args, original.kwargs)
            value = original.output
            self.graph.add(twin, [(value.shape, value.dtype)])
            for call, slot in [use for use in value.uses if use[0] is copy.reader]:
                value.uses.remove((call, slot))
                call.inputs[slot] = twin.output
                twin.output.uses.append((call, slot))
        for call, op in self.ops.items():
            call.op = op
        for value, extra in self.extras.items():
            value.extra = extra
        for call, op in self.maps:
            self.graph.insert_after(call.output, op)

    def _enter(self, value: Value, direction: str, affine: Affine) -> Refusal | None:
        """Note that a value is recoded; it can be so only once, in one way."""
        refusal = self._step(value)
        if refusal:
            return refusal
        if value in self.recoded:
            if _agree(self.recoded[value], (direction, affine)):
                return _DONE
            return Refusal(f"the output of {value.producer.name!r} would need two different maps")
        self.recoded[value] = (direction, affine)
        return None

    def _step(self, value: Value) -> Refusal | None:
        """Count a step; nothing may change what the network returns."""
        self.steps += 1
        if self.steps > REACH:
            return Refusal(f"the search stopped after {REACH} steps")
        if value.is_output:
            return Refusal(f"the output of {value.producer.name!r} is an output of the network")
        return None

    def _undo(self, call: Call, slot: int, affine: Affine) -> Refusal | None:
        """Let a call that wants the value as it was undo a backward recoding."""
        op = self.op(call)
        if isinstance(op, AffineOp) and op.affine.matches(affine):
            identity = Affine.identity(affine.axis, affine.size)
            self.change(call, dataclasses.replace(op, affine=identity))
            return None
        inverse = affine.inverse()
        if inverse is None:
            return Refusal("undoing the fold there would lose precision")
        return self.rule(call).forward(self, call, slot, inverse)

    def _copy(self, value: Value, affine: Affine, reader: Call, refusal: Refusal) -> Refusal | None:
        """Let a copy of the producer carry the affine for the one reader that wants it."""
        producer = value.producer
        op = self.op(producer)
        if not isinstance(op, Linear):
            return refusal
        copied = op.size + sum(copy.op.size for copy in self.copies)
        if copied > self.copy_budget:
            return Refusal(
                f"{refusal.reason}; a copy of {producer.name!r} would add {op.size} parameters, "
                f"the budget has {self.copy_budget}",
                budget=True,
            )

        def copy() -> Refusal | None:
            # The rule writes into the plan what the producer would become; that is the copy's op.
            refused = self.rule(producer).backward(self, producer, affine)
            if refused:
                return refused
            self.copies.append(Copy(producer, reader, self.op(producer)))
            self.ops.pop(producer, None)
            if op is not producer.op:
                self.ops[producer] = op
            return None

        return self.attempt(copy)

    def rule(self, call: Call) -> Rule:
        """Return the rule that answers for a call."""
        op = self.op(call)
        return next(rule for rule in self.rules if rule.matches(op))


_DONE = Refusal("")


def _agree(known: tuple[str, Affine], asked: tuple[str, Affine]) -> bool:
    """Whether two recodings of one value say the same."""
    if known[0] == asked[0]:
        return known[1].matches(asked[1])
    inverse = asked[1].inverse()
    return inverse is not None and known[1].matches(inverse)


class Rule(abc.ABC):
    """How the calls of one family of operations take an affine, or pass it on. Stateless.

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

    def provide(self, plan: Plan, call: Call, wanted: Extra) -> Extra | Refusal:
        """Plan that the call's output has more channels, which carry a constant.

        Args:
            plan: The plan.
            call: The call.
            wanted: The channels of the output; a constant of 1 stands for any but 0.

        Returns:
            The channels, or the refusal.
        """
        return Refusal(f"{call.name!r} cannot provide a constant channel")

    def ignore(self, plan: Plan, call: Call, slot: int, extra: Extra) -> Refusal | None:
        """Plan that the call is given more channels in a slot, and computes what it did."""
        return Refusal(f"{call.name!r} cannot ignore an additional channel")

    def carry(
        self, plan: Plan, call: Call, slot: int, affine: Affine, extra: Extra
    ) -> Refusal | None:
        """Plan that the call is given ``x'`` where it was given ``affine(x')``, and a constant.

        Only a layer that pads with zeros has a use for the constant; others take the affine as
        ever.
        """
        if extra.padded and affine.shifts:
            return Refusal(f"{call.name!r} cannot apply a shift that is missing at the borders")
        refusal = self.forward(plan, call, slot, affine)
        return refusal or self.ignore(plan, call, slot, extra)
