"""The records of a certificate, and the comparison of rounding rules on all inputs of an operator.

A rule is an `Arithmetic`; the first of several is the one that the others are compared with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ...artifacts.graphs.base import GraphOp, Quantization
from ..rounding.arithmetic import Arithmetic, Finish
from ..rounding.quantized import Ints, NotKnownError, Output
from ..rounding.thresholds import differing_sums, thresholds

Rules = Sequence[Arithmetic]
Found = tuple[list[list[str]], list["Difference"]]
Groups = list[list[Arithmetic]]
_TRIED = 1 << 16  # number of random inputs in the search for a difference between two functions
_TOGETHER = 64  # products that are factorized at a time
_GREATEST_FLOAT = 0x7F7FFFFF  # bits of float32's greatest finite number


@dataclass(frozen=True)
class Difference:
    """The difference between one rule and the first in one operator.

    Attributes:
        kernels: The kernels that follow the other rule.
        channels: Number of channels with a difference; 0 if the operator has no channels.
        cases: Number of sums, or inputs, with a different result; for products of two 16-bit
            integers, of all integers in their range.
        of: Number of possible sums or inputs.
        channel: Channel of the example.
        example: One sum or input with a different result.
        first: Its result under the first rule.
        other: Its result under the other rule.
    """

    kernels: str
    channels: int
    cases: int
    of: int
    channel: int
    example: tuple[float, ...]
    first: int
    other: int


@dataclass(frozen=True)
class CertifiedOp:
    """One operator of a file.

    Attributes:
        index: Its index in the file.
        kind: Its kind.
        name: Name of what it computes.
        method: How all inputs were covered: "thresholds", "all inputs", "all sums", "one rule",
            "functions" (rules with one function agree; others differ in an example, and cases are
            counted among random inputs), "moves integers", "floats", or "" where nothing was
            decided.
        channels: Its output channels, of an operator with thresholds.
        groups: The rules, by name, in groups that agree on all inputs; the largest first.
        differences: One entry for each rule that differs from the first.
        why: Why nothing was decided.
    """

    index: int
    kind: str
    name: str
    method: str
    channels: int = 0
    groups: tuple[tuple[str, ...], ...] = ()
    differences: tuple[Difference, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Certificate:
    """The results of a comparison of all rules on all inputs of a file.

    Attributes:
        ops: Every operator.
        rules: All rules, by the kernels that follow them.
    """

    ops: tuple[CertifiedOp, ...]
    rules: tuple[str, ...]

    @property
    def undecided(self) -> tuple[CertifiedOp, ...]:
        """The operators that could not be decided for all inputs."""
        return tuple(op for op in self.ops if not op.method)

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The rules in groups that agree in every decided operator."""
        found: list[list[str]] = []
        for rule in self.rules:
            for group in found:
                if all(_together(op, rule, group[0]) for op in self.ops):
                    group.append(rule)
                    break
            else:
                found.append([rule])
        return tuple(tuple(group) for group in found)


def _together(op: CertifiedOp, one: str, other: str) -> bool:
    return not op.groups or any(one in group and other in group for group in op.groups)


def certified(op: GraphOp, name: str, method: str, found: Found, channels: int = 0) -> CertifiedOp:
    """Return an operator with the results of a comparison."""
    groups = sorted((tuple(group) for group in found[0]), key=lambda g: (-len(g), g))
    return CertifiedOp(op.index, op.kind, name, method, channels, tuple(groups), tuple(found[1]))


class Sums(Protocol):
    """The exact sums (L, C) of an operator, and their rounding."""

    @property
    def output(self) -> Output:
        """Steps of the output."""

    @property
    def ends(self) -> Ints:
        """(2, C) least and greatest sum of each channel."""

    def rounded(self, rule: Arithmetic, sums: Ints) -> Ints:
        """Round sums by a rule."""

    def thresholds(self, rule: Arithmetic) -> Ints:
        """Return a rule's thresholds."""


def by_thresholds(sums: Sums, rules: Rules) -> Found:
    """Compare rules on every sum that an operator can have, by their thresholds."""
    known = {rule: sums.thresholds(rule) for rule in rules}
    first, *others = rules
    differences = []
    of = int((sums.ends[1] - sums.ends[0] + 1).sum())
    for rule in others:
        if np.array_equal(known[rule], known[first]):
            continue
        cases = differing_sums(known[first], known[rule])
        place = np.unravel_index(int(np.argmax(known[first] != known[rule])), known[rule].shape)
        channel = int(place[1])
        example = int(min(known[first][place], known[rule][place]))
        sum_ = np.full((1, sums.ends.shape[1]), example)
        both = [
            int(sums.output.saturated(sums.rounded(r, sum_))[0, channel]) for r in (first, rule)
        ]
        differences.append(
            Difference(
                rule.kernels,
                int((cases > 0).sum()),
                int(cases.sum()),
                of,
                channel,
                (example,),
                *both,
            )
        )
    return grouped(known), differences


def grouped(known: Mapping[Arithmetic, np.ndarray]) -> list[list[str]]:
    """Return the kernels of rules in groups whose arrays are equal."""
    groups: Groups = []
    for rule, array in known.items():
        for group in groups:
            if np.array_equal(known[group[0]], array):
                group.append(rule)
                break
        else:
            groups.append([rule])
    return names(groups)


def by_function(function: Callable[[Arithmetic], Any], rules: Rules) -> Groups:
    """Return the rules in groups that compute by the same function."""
    groups: dict[Any, list[Arithmetic]] = {}
    for rule in rules:
        found = function(rule)
        groups.setdefault(getattr(found, "__func__", found), []).append(rule)
    return list(groups.values())


def names(groups: Groups) -> list[list[str]]:
    """Return the kernels of rules in groups."""
    return [[rule.kernels for rule in group] for group in groups]


def by_floats(
    rounded: Callable[[Arithmetic, np.ndarray, int], np.ndarray],
    output: Output,
    together: Sequence[int],
    rules: Rules,
) -> Found:
    """Compare rules that quantize float32 numbers on all finite ones, by their thresholds.

    Args:
        rounded: Rounds numbers by a rule, as if so many were rounded together.
        output: Steps of the integers.
        together: How many numbers a kernel takes at a time: some take eight by one formula and the
            rest by another.
        rules: The rules.
    """
    levels = output.levels
    known = {}
    for rule in rules:
        found = []
        for lanes in together:
            low = np.full(len(levels), -_GREATEST_FLOAT - 1)
            high = np.full(len(levels), _GREATEST_FLOAT + 1)
            while (high - low > 1).any():
                middle = (low + high) // 2
                bounded = np.clip(middle, -_GREATEST_FLOAT, _GREATEST_FLOAT)
                reached = rounded(rule, _as_floats(bounded), lanes)
                high = np.where(reached >= levels, middle, high)
                low = np.where(reached >= levels, low, middle)
            found.append(high)
        known[rule] = np.array(found).T
    first, *others = rules
    differences = []
    for rule in others:
        if np.array_equal(known[rule], known[first]):
            continue
        cases = int(differing_sums(known[first], known[rule]).max())
        place = np.unravel_index(int(np.argmax(known[first] != known[rule])), known[rule].shape)
        number = np.minimum(known[first][place], known[rule][place])[None]
        lanes = together[int(place[1])]
        number = _as_floats(number)
        both = [int(output.saturated(rounded(r, number, lanes))[0]) for r in (first, rule)]
        example = (float(number[0]),)
        of = 2 * _GREATEST_FLOAT + 1
        differences.append(Difference(rule.kernels, 0, cases, of, 0, example, *both))
    return grouped(known), differences


def _as_floats(numbers: np.ndarray) -> np.ndarray:
    """Return the float32 numbers with the given positions in ascending order, counted from zero."""
    sizes = np.abs(numbers).astype(np.uint32).view(np.float32)
    return np.where(numbers < 0, -sizes, sizes)


def by_examples(groups: Groups, finish: Finish, fed: Sequence[Ints]) -> Found:
    """Show that groups of rules, each with one function, differ on some of the given inputs.

    Args:
        groups: The rules.
        finish: Returns the results (P, …) of a rule.
        fed: The inputs (P, …).

    Raises:
        NotKnownError: Two functions agree on all inputs, which proves nothing.
    """
    known = [np.asarray(finish(group[0])).reshape(len(fed[0]), -1) for group in groups]
    differences = []
    for group, results in zip(groups[1:], known[1:]):
        unequal = known[0] != results
        if not unequal.any():
            raise NotKnownError(
                f"{groups[0][0].kernels} and {group[0].kernels} compute different functions, which "
                f"agree on {len(fed[0]):,} random inputs"
            )
        row, place = np.unravel_index(int(np.argmax(unequal)), unequal.shape)
        example = tuple(int(n) for array in fed for n in array[row].reshape(-1))
        both = int(known[0][row, place]), int(results[row, place])
        cases = int(unequal.any(axis=1).sum())
        differences += [
            Difference(rule.kernels, 0, cases, len(fed[0]), 0, example, *both) for rule in group
        ]
    return names(groups), differences


def random_rows(steps: Quantization, size: int, seed: int) -> Ints:
    """Return random rows (P, 1, size), from nearly equal numbers to numbers far apart."""
    generator, limits = np.random.default_rng(seed), np.iinfo(steps.dtype)
    reach = limits.max - limits.min
    spread = np.exp(generator.uniform(0, np.log(reach), (_TRIED, 1, 1)))
    below = generator.uniform(0, 1, (_TRIED, 1, size)) * spread
    return np.asarray(limits.max - below).astype(steps.dtype)


def by_products(factors: tuple[Quantization, Quantization], output: Output, rules: Rules) -> Found:
    """Compare rules on every product of two 16-bit integers, by their thresholds.

    Args:
        factors: Steps of the two integers.
        output: Steps of the result.
        rules: The rules.
    """
    one, other, y = (np.float32(steps.scales[0]) for steps in (*factors, output.steps))
    ratio = float(one * other / y)  # near enough to begin a search with
    ranges = [_range(steps) for steps in factors]
    corners = [int(a) * int(b) for a in ranges[0][[0, -1]] for b in ranges[1][[0, -1]]]
    ends = np.array([[min(corners)], [max(corners)]], np.int64)

    def rounded(rule: Arithmetic, products: Ints) -> Ints:
        return rule.of_bits(output.bits).multiplied(products, one, other, y)

    known = {
        rule: thresholds(functools.partial(rounded, rule), np.array([ratio]), ends, output.levels)
        for rule in rules
    }
    first, *others = rules
    differences = []
    for rule in others:
        cases = int(differing_sums(known[first], known[rule])[0])
        product = _reached(known[first][:, 0], known[rule][:, 0], ranges) if cases else None
        if product is None:  # the rules differ on numbers only that are no products
            known[rule] = known[first]
            continue
        both = [int(output.saturated(rounded(r, product))[0]) for r in (first, rule)]
        of = int(ends[1, 0] - ends[0, 0]) + 1
        differences.append(Difference(rule.kernels, 0, cases, of, 0, (int(product[0]),), *both))
    return grouped(known), differences


def _range(steps: Quantization) -> Ints:
    """Return every integer minus the zero point, ascending."""
    limits = np.iinfo(steps.dtype)
    return np.arange(limits.min, limits.max + 1) - int(steps.zero_points[0])


def _reached(one: Ints, other: Ints, ranges: Sequence[Ints]) -> Ints | None:
    """Return a product (1,) that two rules round differently; None if there is none.

    Args:
        one: (L,) thresholds of one rule.
        other: (L,) thresholds of the other.
        ranges: The possible values of both factors, each without gaps.
    """
    low, high = np.minimum(one, other), np.maximum(one, other)
    chosen = low < high
    spans = [np.arange(*span) for span in zip(low[chosen], high[chosen])]
    products = np.concatenate(spans)
    factors = ranges[0][ranges[0] != 0][:, None]
    for start in range(0, len(products), _TOGETHER):
        some = products[None, start : start + _TOGETHER]
        rest = some // factors
        within = (rest >= ranges[1][0]) & (rest <= ranges[1][-1])
        hits = ((rest * factors == some) & within).any(axis=0)
        if hits.any():
            return np.asarray(some[0, hits][:1])
    return None


def every_integer(operands: Sequence[Quantization]) -> list[Ints]:
    """Return every combination of one or two integers, as (1, 1, 1, N) or (1, 1, N, N)."""
    every = []
    for place, steps in enumerate(operands):
        limits = np.iinfo(steps.dtype)
        integers = np.arange(limits.min, limits.max + 1).astype(steps.dtype)
        shape = [1, 1, -1, 1] if len(operands) == 2 and place == 0 else [1, 1, 1, -1]
        rows = len(integers) if len(operands) == 2 else 1
        every.append(np.broadcast_to(integers.reshape(shape), [1, 1, rows, len(integers)]))
    return every


def compared(finish: Finish, inputs: Sequence[np.ndarray], rules: Rules) -> Found:
    """Group rules by their results on the same inputs."""
    known = {rule: np.asarray(finish(rule)) for rule in rules}
    first, *others = rules
    differences = []
    for rule in others:
        unequal = known[rule] != known[first]
        if not unequal.any():
            continue
        place = np.unravel_index(int(np.argmax(unequal)), unequal.shape)
        example = tuple(int(np.broadcast_to(array, unequal.shape)[place]) for array in inputs)
        both = int(known[first][place]), int(known[rule][place])
        differences.append(
            Difference(rule.kernels, 0, int(unequal.sum()), unequal.size, 0, example, *both)
        )
    return grouped(known), differences
