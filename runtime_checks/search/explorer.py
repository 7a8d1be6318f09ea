"""Searches along gradients for the inputs on which a target differs most from float64 truth.

A fault that affects only inputs unlike any golden sample goes unnoticed: the weight of a unit that
is never active, a clip above every value so far. Two kinds of steps search for such inputs, both
along gradients of the folded network (`gradients`) and within the range of the data:

- *reach* drives one unit of the network, a channel of a layer, beyond the values that the golden
  set drives it to; inactive units come first. The aim is neuron boundary coverage (Ma et al.,
  DeepGauge, 2018; Pei et al., DeepXplore, 2017).
- *climb* starts from the worst inputs so far and follows the gradient of the truth's outputs along
  the error that the target made there: the target's own gradient is not available, but a file
  that nearly computes the network has nearly the same slopes. These are the signed steps of
  projected gradient descent (Madry et al., 2018), as DIVA (Hao et al., 2022) takes them between a
  model and its quantized twin. Every second step is random.

Every proposed input is run on the target and ranked by its actual error, as a multiple of the noise
that the arithmetic explains for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...artifacts.golden_set import Arrays, GoldenSet
from ...artifacts.network import Network, Node
from ...artifacts.sample_kinds import TYPICAL, representative
from ...errors import UserError
from ...reference.gradients import Values, evaluated, gradients
from .probe import Objective, Probe

# Inputs proposed and run at a time.
_BATCH = 4
# Number of signed steps that drive a unit, the first step as a share of the data's range, and the
# factor by which each step is shorter than the previous one.
_STEPS, _FIRST, _SHORTER = 4, 0.25, 0.75
# Units tried for each input that may be run: most cannot be driven beyond the values seen so far.
_TRIED = 2
# Number of worst inputs to climb from, and the least step before one is abandoned.
_CLIMBERS, _LEAST = 4, 2.0**-10

_DRIVEN = ("conv", "depthwise_conv", "conv_transpose", "dense", "einsum", "affine", "add")

Box = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class _Unit:
    """A channel of a layer, and the sign in which it is driven.

    Attributes:
        start: The real or random sample with its greatest value.
        seen: Its greatest value on the golden set.
    """

    node: Node
    channel: int
    sign: float
    start: int
    seen: float


@dataclass(frozen=True)
class Found:
    """Result of a search.

    Attributes:
        start: Greatest ratio of the real and random golden samples, or all where there are none.
        worst: The worst inputs of all that were run, worst first.
        runs: How many were run.
    """

    start: float
    worst: Probe
    runs: int


def explore(
    objective: Objective,
    golden: GoldenSet,
    *,
    runs: int,
    keep: int,
    seed: int,
    reaching: float = 0.5,
) -> Found:
    """Search for the inputs on which a target's error is largest.

    Args:
        objective: The target.
        golden: The golden set, from which the search starts.
        runs: Inputs that may be run on the target besides the golden ones.
        keep: How many of the worst are returned.
        seed: Seed of the random generator.
        reaching: Share of the runs that drive units; the others climb.

    Raises:
        UserError: The model has no float input, or an operation has no gradient.
    """
    known = golden.select(np.flatnonzero(representative(golden.kind)))
    seen = objective(known.inputs)
    moving = [name for name, array in known.inputs.items() if array.dtype.kind == "f"]
    if not moving:
        raise UserError(
            "A search changes float inputs, but the model has none. Leave out --search."
        )
    explorer = _Explorer(objective, known, seen, moving, np.random.default_rng(seed))
    for proposed in explorer.reach(round(reaching * runs)):
        explorer.run(proposed)
    while explorer.runs < runs:
        explorer.run(explorer.climb(min(_BATCH, runs - explorer.runs)))
    return Found(float(explorer.usual.ratio.max()), explorer.found.worst(keep), explorer.runs)


class _Explorer:
    """Proposes inputs, runs them, and remembers the worst."""

    def __init__(
        self,
        objective: Objective,
        golden: GoldenSet,
        seen: Probe,
        moving: Sequence[str],
        generator: np.random.Generator,
    ) -> None:
        self.objective, self.network = objective, objective.network
        self.generator = generator
        self.box: Box = _box(golden, moving)
        typical = np.isin(golden.kind, TYPICAL)
        self.usual = seen.take(np.flatnonzero(typical)) if typical.any() else seen
        self.climbers = self.usual.worst(_CLIMBERS)
        self.steps = np.full(len(self.climbers.ratio), _FIRST)
        self.turn = 0
        self.found: Probe = seen.take(np.array([], int))
        self.runs = 0
        self.seen = seen

    def run(self, inputs: Arrays) -> None:
        """Run inputs; the worst so far are climbed from."""
        made = self.objective(inputs)
        self.runs += len(made.ratio)
        self.found = self.found.joined(made)
        for index in range(len(made.ratio)):
            least = int(np.argmin(self.climbers.ratio))
            if made.ratio[index] > self.climbers.ratio[least]:
                self._replace(least, made.take(np.array([index])))

    def _replace(self, place: int, made: Probe) -> None:
        """Replace a climber by an input; it starts with a long step."""
        others = np.flatnonzero(np.arange(len(self.climbers.ratio)) != place)
        self.climbers = self.climbers.take(others).joined(made)
        self.steps = np.append(self.steps[others], _FIRST)

    def climb(self, count: int) -> Arrays:
        """Propose a step from some climbers along their errors; each step is shorter."""
        size = len(self.climbers.ratio)
        chosen = np.array([(self.turn + i) % size for i in range(count)])
        self.turn += count
        probe = self.climbers.take(chosen)
        values = evaluated(self.network, probe.inputs)
        by = {self.network.outputs[name]: _direction(error) for name, error in probe.errors.items()}
        slopes = gradients(self.network, values, by)
        # Every second step is random: where rounding dominates, gradients say little.
        odd = np.arange(self.turn - count, self.turn) // size % 2 == 1
        slopes = {name: np.where(_column(odd, g), 0.0, g) for name, g in slopes.items()}
        proposed = self._moved(probe.inputs, slopes, self.steps[chosen])
        self.steps[chosen] /= 2
        self.steps[self.steps < _LEAST] = _FIRST
        return proposed

    def _moved(self, inputs: Arrays, slopes: Arrays, steps: np.ndarray) -> Arrays:
        """Return inputs after a signed step up some slopes, within the data's range.

        Where a slope is zero, as after an inactive relu, the step is random.
        """
        moved = dict(inputs)
        for name, (low, high) in self.box.items():
            slope = slopes[name]
            chance = self.generator.choice([-1.0, 1.0], slope.shape)
            flat = np.asarray(~slope.reshape(len(slope), -1).any(axis=1))
            sign = np.where(_column(flat, slope), chance, np.sign(slope))
            step = _column(steps, slope) * (high - low)
            moved[name] = np.clip(inputs[name] + step * sign, low, high).astype(inputs[name].dtype)
        return moved

    def reach(self, count: int) -> Iterator[Arrays]:
        """Yield a number of inputs that drive a unit beyond its values on the golden set.

        Inputs that stay below are not run.
        """
        units = self._units()[: _TRIED * count]
        for start in range(0, len(units), _BATCH):
            if count <= 0:
                return
            driven, beyond = self._driven(units[start : start + _BATCH])
            chosen = np.flatnonzero(beyond)[:count]
            count -= len(chosen)
            if len(chosen):
                yield {name: array[chosen] for name, array in driven.items()}

    def _units(self) -> list[_Unit]:
        """Return every unit: inactive ones, then the others, the most promising first."""
        usual = evaluated(self.network, self.usual.inputs)
        everything = evaluated(self.network, self.seen.inputs)
        halved = _halved(self.network)
        asleep: list[_Unit] = []
        awake: list[tuple[float, int, _Unit]] = []
        for node in self.network.nodes:
            if node.op not in _DRIVEN or usual[node.name].ndim < 2:
                continue
            drive = _by_channel(node, usual[node.name])
            known = _by_channel(node, everything[node.name])
            for sign in (1.0,) if node.name in halved else (1.0, -1.0):
                starts = (sign * drive).max(axis=2).argmax(axis=0)
                most = (sign * known).max(axis=(0, 2))
                # How far the golden set exceeds the usual samples, in units of their spread: the
                # less, the likelier a step leads beyond it.
                spread = drive.std(axis=(0, 2)) + np.finfo(float).tiny
                ahead = (most - (sign * drive).max(axis=(0, 2))) / spread
                for channel, (start, limit) in enumerate(zip(starts, most)):
                    unit = _Unit(node, channel, sign, int(start), float(limit))
                    if limit <= 0:
                        asleep.append(unit)
                    else:
                        awake.append((float(ahead[channel]), len(awake), unit))
        return asleep + [unit for *_, unit in sorted(awake, key=lambda entry: entry[:2])]

    def _driven(self, units: Sequence[_Unit]) -> tuple[Arrays, np.ndarray]:
        """Return an input for each unit, and whether it drives the unit beyond its known values."""
        inputs: Arrays = self.usual.take(np.array([unit.start for unit in units])).inputs
        step = np.full(len(units), _FIRST)
        for remaining in reversed(range(_STEPS + 1)):
            values = evaluated(self.network, inputs)
            drives = [
                unit.sign * _channels_first(unit.node, values[unit.node.name])[row, unit.channel]
                for row, unit in enumerate(units)
            ]
            if not remaining:
                break
            by: Values = {}
            for row, (unit, drive) in enumerate(zip(units, drives)):
                weight = by.setdefault(unit.node.name, np.zeros_like(values[unit.node.name]))
                place = (int(i) for i in np.unravel_index(int(drive.argmax()), drive.shape))
                _channels_first(unit.node, weight)[(row, unit.channel, *place)] = unit.sign
            inputs = self._moved(inputs, gradients(self.network, values, by), step)
            step = step * _SHORTER
        return inputs, np.array([d.max() > u.seen for d, u in zip(drives, units)])


def _usual(golden: GoldenSet) -> list[str]:
    """Return the kinds that stand for the data: the first of the typical ones, or all."""
    known = set(map(str, golden.kind))
    first = next((kind for kind in TYPICAL if kind in known), None)
    return sorted(known) if first is None else [first]


def _box(golden: GoldenSet, moving: Sequence[str]) -> Box:
    """Return the range of the data, input by input."""
    usual = np.isin(golden.kind, _usual(golden))
    return {
        name: (float(golden.inputs[name][usual].min()), float(golden.inputs[name][usual].max()))
        for name in moving
    }


def _halved(network: Network) -> set[str]:
    """Return the values whose readers all drop the negative half (relu)."""
    return {
        name
        for name, found in network.users().items()
        if all(node.op == "relu" and not node.attributes.get("negative_slope") for node in found)
    }


def _by_channel(node: Node, value: np.ndarray) -> np.ndarray:
    """Return a value as (n, channels, places)."""
    moved = _channels_first(node, value)
    return moved.reshape(moved.shape[0], moved.shape[1], -1)


def _channels_first(node: Node, value: np.ndarray) -> np.ndarray:
    """Return a view of a value with its channels on the second axis."""
    first = node.attributes.get("data_format") == "channels_first"
    return value if first else np.moveaxis(value, -1, 1)


def _direction(error: np.ndarray) -> np.ndarray:
    """Return errors scaled to the length one, sample by sample."""
    flat = error.reshape(len(error), -1)
    size = np.abs(flat).max(axis=1, keepdims=True)
    scaled = flat / np.where(size > 0, size, 1.0)
    norm = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.asarray((scaled / np.where(norm > 0, norm, 1.0)).reshape(error.shape))


def _column(vector: np.ndarray, array: np.ndarray) -> np.ndarray:
    """Return (n,) in a shape that broadcasts along the samples of an array."""
    return vector.reshape(-1, *[1] * (array.ndim - 1))
