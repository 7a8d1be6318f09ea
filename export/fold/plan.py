"""A plan: all changes needed to move one affine, determined before any of them is made.

To *recode* a value is to replace ``v`` by ``v'``, which differs from it by an affine:

- backward, ``v' = E(v)``: the call that produces v must produce E(v) instead, and all other calls
  that read v must apply the inverse;
- forward, ``v = D(v')``: the caller changes the producer, and all calls that read v must apply D.

A rule defines how a call does this: it absorbs the affine into its weights, or recodes its own
inputs or outputs. Thus a plan propagates from the norm until the affine is absorbed everywhere, or
a call refuses. Planning reads no weights.
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

# Greatest number of steps of a plan. It bounds the search, so that the fold is linear in the number
# of layers; the networks of keras.applications need far fewer.
REACH = 400


@dataclass(frozen=True)
class Refusal:
    """The reason why an affine cannot be moved.

    Attributes:
        reason: A clause that completes "... because": lower case, no full stop.
        budget: Whether it would be possible with a larger copy budget.
    """

    reason: str
    budget: bool = False


@dataclass(frozen=True)
class Copy:
    """A copy of a linear layer that absorbs an affine for one reader.

    Attributes:
        call: The call of the original layer.
        reader: The call that reads the copy.
        op: The op of the copy.
    """

    call: Call
    reader: Call
    op: Linear


class Plan:
    """The changes of one fold, which `commit` makes."""

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
        """Return the planned op of a call."""
        return self.ops.get(call, call.op)

    def change(self, call: Call, op: Any) -> None:
        """Plan to replace the op of a call."""
        self.ops[call] = op

    def backward(self, value: Value, affine: Affine, reader: Call) -> Refusal | None:
        """Plan to replace ``value`` by ``affine(value)``.

        Args:
            value: The value to recode.
            affine: The map E.
            reader: The call that requests it and expects the new value.

        Returns:
            None if it is possible, else the refusal; the plan is then invalid, see `attempt`.
        """
        if affine.is_identity:
            return self._as_it_was(value)
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
        """Plan to replace ``value`` by ``v'`` with ``value = affine(v')``.

        Args:
            value: The value to recode; the caller changes its producer.
            affine: The map D, which its readers must apply.

        Returns:
            None if it is possible, else the refusal.
        """
        if affine.is_identity:
            return self._as_it_was(value)
        known = self._enter(value, "forward", affine)
        if known is not None:
            return None if known is _DONE else known
        for call, slot in value.uses:
            refusal = self.rule(call).forward(self, call, slot, affine)
            if refusal:
                return refusal
        return None

    def provide(self, value: Value, wanted: Extra, reader: Call) -> Extra | Refusal:
        """Plan to add constant channels to ``value``.

        Args:
            value: The value to widen.
            wanted: The channels; a constant of 1 means any constant other than 0.
            reader: The call that requests them; all other readers ignore the channels.

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
        """Plan that ``value`` has additional channels that no reader uses."""
        if self.extra(value) is not None:
            return None
        refusal = self._step(value)
        self.extras[value] = extra
        for call, slot in value.uses:
            refusal = refusal or self.rule(call).ignore(self, call, slot, extra)
        return refusal

    def carry(self, value: Value, affine: Affine, extra: Extra) -> Refusal | None:
        """Plan to replace ``value`` by ``v'`` with ``value = affine(v')`` and constant channels.

        Readers may add the shift by reading those channels, which zero padding affects in the same
        way as the others.
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
        """Return the planned constant channels of a value."""
        return self.extras.get(value, value.extra)

    def first(self, ways: Iterable[Callable[[], Refusal | None]]) -> Refusal | None:
        """Use the first way that succeeds; if none does, return the first refusal."""
        refusals = []
        for way in ways:
            refusal = self.attempt(way)
            if refusal is None:
                return None
            refusals.append(refusal)
        return refusals[0]

    def attempt(self, way: Callable[[], Refusal | None]) -> Refusal | None:
        """Try a way; if it is refused, restore the plan."""
        before = (dict(self.ops), dict(self.recoded), dict(self.extras), list(self.copies))
        refusal = way()
        if refusal is not None:
            self.ops, self.recoded, self.extras, self.copies = before
        return refusal

    def absorbers(self, seeds: list[Call]) -> list[str]:
        """Return the names of the linear layers that absorb something.

        If there are none, return those of the norms that ``seeds`` are merged with.
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
        """Record that a value is recoded, which is possible only once."""
        refusal = self._step(value)
        if refusal:
            return refusal
        if value in self.recoded:
            agrees = _agree(self.recoded[value], (direction, affine))
            return _DONE if agrees else _two_maps(value)
        self.recoded[value] = (direction, affine)
        return None

    def _as_it_was(self, value: Value) -> Refusal | None:
        """Refuse if a value that must stay as it was is recoded already."""
        return _two_maps(value) if value in self.recoded else None

    def _step(self, value: Value) -> Refusal | None:
        """Count a step; refuse to change an output of the network."""
        self.steps += 1
        if self.steps > REACH:
            return Refusal(f"the search stopped after {REACH} steps")
        if value.is_output:
            return Refusal(f"the output of {value.producer.name!r} is an output of the network")
        return None

    def _undo(self, call: Call, slot: int, affine: Affine) -> Refusal | None:
        """Plan that a call which needs the original value inverts a backward recoding."""
        op = self.op(call)
        if isinstance(op, AffineOp) and op.affine.matches(affine):
            identity = Affine.identity(affine.axis, affine.size)
            self.change(call, dataclasses.replace(op, affine=identity))
            return None
        inverse = affine.inverse()
        if inverse is None:
            return Refusal("inverting the affine there would lose precision")
        return self.rule(call).forward(self, call, slot, inverse)

    def _copy(self, value: Value, affine: Affine, reader: Call, refusal: Refusal) -> Refusal | None:
        """Plan a copy of the producer that absorbs the affine for one reader."""
        producer = value.producer
        op = self.op(producer)
        if not isinstance(op, Linear):
            return refusal
        copied = op.size + sum(copy.op.size for copy in self.copies)
        if copied > self.copy_budget:
            return Refusal(
                f"{refusal.reason}; a copy of {producer.name!r} would add {op.size} parameters, "
                f"and copy_budget allows {self.copy_budget}",
                budget=True,
            )

        def copy() -> Refusal | None:
            # The rule plans the new op of the producer, which becomes the op of the copy.
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
        """Return the rule that applies to a call."""
        op = self.op(call)
        return next(rule for rule in self.rules if rule.matches(op))


_DONE = Refusal("")


def _two_maps(value: Value) -> Refusal:
    return Refusal(f"the output of {value.producer.name!r} would need two different maps")


def _agree(known: tuple[str, Affine], asked: tuple[str, Affine]) -> bool:
    """Return whether two recodings of one value are equivalent."""
    if known[0] == asked[0]:
        return known[1].matches(asked[1])
    inverse = asked[1].inverse()
    return inverse is not None and known[1].matches(inverse)


class Rule(abc.ABC):
    """Defines how calls of one family of operations absorb an affine or pass it on. Stateless.

    Each method returns None if the plan now contains all changes that are needed, which are exact,
    or a `Refusal`.
    """

    @abc.abstractmethod
    def matches(self, op: Any) -> bool:
        """Return whether the rule applies to calls of this op."""

    @abc.abstractmethod
    def backward(self, plan: Plan, call: Call, affine: Affine) -> Refusal | None:
        """Plan that the call computes ``affine(y)`` instead of ``y``."""

    @abc.abstractmethod
    def forward(self, plan: Plan, call: Call, slot: int, affine: Affine) -> Refusal | None:
        """Plan that an input of the call is ``x'`` instead of ``x = affine(x')``."""

    def provide(self, plan: Plan, call: Call, wanted: Extra) -> Extra | Refusal:
        """Plan to add constant channels to the output of the call.

        Args:
            plan: The plan.
            call: The call.
            wanted: The channels of the output; a constant of 1 means any constant other than 0.

        Returns:
            The channels, or the refusal.
        """
        return Refusal(f"{call.name!r} cannot provide a constant channel")

    def ignore(self, plan: Plan, call: Call, slot: int, extra: Extra) -> Refusal | None:
        """Plan that an input of the call has additional channels, which it ignores."""
        return Refusal(f"{call.name!r} cannot ignore an additional channel")

    def carry(
        self, plan: Plan, call: Call, slot: int, affine: Affine, extra: Extra
    ) -> Refusal | None:
        """Plan that an input of the call is ``x'`` instead of ``affine(x')``, with a constant.

        Only layers that pad with zeros use the constant channels; others absorb the affine as
        usual.
        """
        if extra.padded and affine.shifts:
            return Refusal(f"{call.name!r} cannot apply a shift that is missing at the borders")
        refusal = self.forward(plan, call, slot, affine)
        return refusal or self.ignore(plan, call, slot, extra)
