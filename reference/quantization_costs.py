"""Measures the cost of each layer of an integer file: weights, steps of its range, and clipping.

One cause in one layer at a time is introduced, everything else stays exact, and the network is
evaluated from that layer on: the weights as the file rounds them; the layer's results rounded to
the file's steps, those beyond its range unchanged; the results beyond the range clipped. The powers
of such errors, each taken alone, add up to first order. So a cause with the power p among P of all
causes costs

    10 log10(P / (P - p))   decibels: the gain of the file without it
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..artifacts.graphs.base import ArtifactGraph
from ..artifacts.network import Network, Node
from .file_weights import match_weights
from .integer_noise import Step, input_steps, rounded_values, rounding_steps
from .merged_affines import with_merged_affines
from .network import evaluate_node, node_values
from .rounded_weights import RoundedWeights

CAUSES = ("weights", "steps", "clipping")

# Limit on the products of the measurement: some thirty seconds of one core.
_WORK = 20_000_000_000

Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Harm:
    """The effect of an error on the outputs.

    Attributes:
        power: Power of the error over the signal's, the mean of all outputs.
        decisions: Samples with another decision.
    """

    power: float
    decisions: int = 0


@dataclass(frozen=True)
class LayerCost:
    """The cost of one layer.

    Attributes:
        layer: The Keras layer; `input 'NAME'` for an input of the file.
        causes: `weights`, `steps` and `clipping` to the effect of each alone.
        channels: Largest channel of the layer's results over the median one; 1 for none.
        outliers: Greatest of the layer's results over the 99.9th percentile.
        clipped: Percentage of its results beyond its range.
        low: The least number of its range.
        high: The greatest.
    """

    layer: str
    causes: Mapping[str, Harm]
    channels: float = 1.0
    outliers: float = 1.0
    clipped: float = 0.0
    low: float = -math.inf
    high: float = math.inf

    @property
    def power(self) -> float:
        """Power of all its causes."""
        return sum(harm.power for harm in self.causes.values())

    @property
    def worst(self) -> str:
        """The greatest cause."""
        return max(self.causes, key=lambda cause: self.causes[cause].power)


@dataclass(frozen=True)
class Costs:
    """The costs of the layers of a file, the greatest first.

    Attributes:
        layers: Every layer with a cost.
        together: Effect of all causes at once.
        samples: Samples that were evaluated.
    """

    layers: tuple[LayerCost, ...]
    together: Harm
    samples: int = field(default=0)

    @property
    def power(self) -> float:
        """Power of all causes, each taken alone."""
        return sum(layer.power for layer in self.layers)

    def decibels(self, power: float) -> float:
        """Return the gain of a file without errors of some power, in decibels."""
        rest = self.power - power
        if power <= 0:
            return 0.0
        return 10 * math.log10(self.power / rest) if rest > 0 else math.inf


def measure_costs(
    network: Network, graph: ArtifactGraph, inputs: Values, deciding: Sequence[str] = ()
) -> Costs:
    """Measure the cost of each layer of a file.

    Args:
        network: The network that the file was made from; every layer can be evaluated.
        graph: The file.
        inputs: Keras input name to (N, …) typical samples.
        deciding: Outputs (N, classes) whose decisions are counted.
    """
    network = with_merged_affines(network, graph)
    matches = match_weights(network, graph)
    rounded = RoundedWeights.of(network, matches)
    fed = input_steps(graph, list(network.inputs), [inputs[name] for name in network.inputs])
    inputs = _some(network, inputs)
    trial = _Trial(network, inputs, deciding)
    steps = rounding_steps(network, graph, matches, inputs)
    steps = {place: steps[name] for name, place in rounded_values(network, steps).items()}
    found = [_layer_cost(trial, f"input '{name}'", {name: step}, {}) for name, step in fed.items()]
    for layer in dict.fromkeys(node.layer for node in network.nodes):
        nodes = [node for node in network.nodes if node.layer == layer]
        own = {node.name: steps[node.name] for node in nodes if node.name in steps}
        weights = {n.name: rounded.nodes[n.name] for n in nodes if n.name in rounded.nodes}
        if own or weights:
            found.append(_layer_cost(trial, layer, own, weights))
    every = {name: _both(step) for name, step in {**steps, **fed}.items()}
    together = trial.harm(every, rounded.nodes)
    layers = [entry for entry in found if entry.power > 0]
    layers.sort(key=lambda entry: -entry.power)
    return Costs(tuple(layers), together, trial.samples)


def _some(network: Network, inputs: Values) -> dict[str, np.ndarray]:
    """Return as many samples as the limit allows, evenly spaced."""
    count = len(next(iter(inputs.values())))
    layers = len({node.layer for node in network.nodes})
    work = sum(
        node.weights["kernel"].size * _places(node)
        for node in network.nodes
        if "kernel" in node.weights
    )
    # Three causes, each evaluated from its layer on, which is half the network on average.
    wanted = int(_WORK / max(1.5 * layers * work, 1))
    chosen = np.unique(np.linspace(0, count - 1, min(count, max(wanted, 4))).astype(int))
    return {name: array[chosen].astype(np.float32) for name, array in inputs.items()}


def _places(node: Node) -> int:
    return int(np.prod([size or 1 for size in node.shape[1:-1]])) if len(node.shape) > 2 else 1


def _stepped(step: Step) -> Callable[[np.ndarray], np.ndarray]:
    def apply(value: np.ndarray) -> np.ndarray:
        if not step.size > 0:
            return value
        inside = (value >= step.low) & (value <= step.high)
        return np.where(inside, np.rint(value / step.size) * step.size, value).astype(value.dtype)

    return apply


def _clipped(step: Step) -> Callable[[np.ndarray], np.ndarray]:
    return lambda value: np.clip(value, step.low, step.high).astype(value.dtype)


def _both(step: Step) -> Callable[[np.ndarray], np.ndarray]:
    first, second = _clipped(step), _stepped(step)
    return lambda value: second(first(value))


def _layer_cost(
    trial: _Trial, layer: str, steps: Mapping[str, Step], weights: Mapping[str, Node]
) -> LayerCost:
    causes = {
        "weights": trial.harm({}, weights),
        "steps": trial.harm({name: _stepped(step) for name, step in steps.items()}, {}),
        "clipping": trial.harm({name: _clipped(step) for name, step in steps.items()}, {}),
    }
    if not steps:
        return LayerCost(layer, causes)
    name, step = list(steps.items())[-1]
    value = trial.exact[name]
    size = np.abs(value)
    channels = size.reshape(-1, value.shape[-1]).max(axis=0) if value.ndim > 1 else size
    alive = channels[channels > 0]
    usual = float(np.quantile(size, 0.999)) if size.size else 0.0
    return LayerCost(
        layer,
        causes,
        channels=float(alive.max() / np.median(alive)) if alive.size else 1.0,
        outliers=float(size.max() / usual) if usual > 0 else 1.0,
        clipped=100 * float(np.mean((value < step.low) | (value > step.high))),
        low=step.low,
        high=step.high,
    )


class _Trial:
    """The exact values of a network, and the effect of errors on the outputs."""

    def __init__(self, network: Network, inputs: Values, deciding: Sequence[str]) -> None:
        self._network, self._deciding = network, tuple(deciding)
        with np.errstate(all="ignore"):
            self.exact = dict(node_values(network, inputs))
        self.samples = len(next(iter(inputs.values())))

    def harm(
        self,
        changes: Mapping[str, Callable[[np.ndarray], np.ndarray]],
        replaced: Mapping[str, Node],
    ) -> Harm:
        """Evaluate the network with some values changed and some nodes replaced."""
        changed: dict[str, np.ndarray] = {}
        if not changes and not replaced:
            return Harm(0.0)
        for name in self._network.inputs:
            if name in changes:
                changed[name] = changes[name](self.exact[name])
        with np.errstate(all="ignore"):
            for node in self._network.nodes:
                if node.name in replaced or any(name in changed for name in node.inputs):
                    read = [changed.get(name, self.exact[name]) for name in node.inputs]
                    changed[node.name] = evaluate_node(replaced.get(node.name, node), read)
                if node.name in changes:
                    before = changed.get(node.name, self.exact[node.name])
                    changed[node.name] = changes[node.name](before)
        return self._judged(changed)

    def _judged(self, changed: Values) -> Harm:
        powers, decisions = [], 0
        for output, value in self._network.outputs.items():
            truth = self.exact[value].astype(np.float64)
            found = changed.get(value, self.exact[value]).astype(np.float64)
            signal = float(np.sum(np.square(truth)))
            error = float(np.sum(np.square(np.where(np.isfinite(truth), found - truth, 0.0))))
            powers.append(error / signal if signal > 0 else 0.0)
            if output in self._deciding:
                decisions += int(np.sum(_decided(truth) != _decided(found)))
        return Harm(float(np.mean(powers)) if powers else 0.0, decisions)


def _decided(rows: np.ndarray) -> np.ndarray:
    """Return the decisions of (N, classes) scores or (N, 1) probabilities."""
    return rows[:, 0] > 0.5 if rows.shape[1] == 1 else rows.argmax(axis=1)
