"""Measures the quantization error that each layer of an integer file causes.

There are three causes in each layer: rounding the weights as the file does, rounding the results to
the file's steps (also those up to one step outside the range, such as 1 in the 256 steps from 0 to
255/256 of a softmax; results further outside stay unchanged), and clipping the latter to the range.
One cause in one layer is introduced at a time; everything else stays exact, and the network is
evaluated from that layer on. To first order the powers of these errors add up. A cause with power
p, of the total power P of all causes, therefore costs

    10 log10(P / (P - p))   decibels,

which is the gain in signal-to-noise ratio of the file without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..artifacts.graphs.base import ArtifactGraph
from ..artifacts.network import Network, Node
from .file_weights import match_weights
from .integer_noise import Step, input_steps, output_steps, rounded_values, rounding_steps
from .merged_affines import with_merged_affines
from .network import evaluate_node, node_values
from .rounded_weights import RoundedWeights

CAUSES = ("weights", "steps", "clipping")

# Ratios beyond which a cause is named. One step serves all channels: a channel of a tenth of the
# largest has 25 of 255 steps left. Where one value in a thousand is a third of the greatest, a
# narrower range clips little and has a step a third as wide.
UNLIKE_CHANNELS = 10.0
OUTLIERS = 3.0

# Operators whose channels can be scaled, since a factor passes through them or their weights.
_SCALED = (
    "affine",
    "average_pool",
    "clip",
    "conv",
    "conv_transpose",
    "dense",
    "depthwise_conv",
    "global_average_pool",
    "global_max_pool",
    "leaky_relu",
    "max_pool",
    "prelu",
    "reduce_max",
    "reduce_mean",
    "relu",
)

# Limit on the number of multiplications, about thirty seconds on one core.
_WORK = 20_000_000_000

Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Effect:
    """The effect of an error on the outputs.

    Attributes:
        power: Power of the error divided by that of the signal, averaged over the outputs.
        decisions: Number of samples whose decision changes.
    """

    power: float
    decisions: int = 0


@dataclass(frozen=True)
class LayerCost:
    """The cost of one layer.

    Attributes:
        layer: The Keras layer; `input 'NAME'` for an input of the file.
        causes: The effect of each cause alone, by name: `weights`, `steps` and `clipping`.
        channels: Maximum of the layer's largest channel divided by that of the median channel; 1
            without channels, and if they cannot be scaled, as those of an output.
        outliers: Greatest absolute result of the layer divided by the 99.9th percentile.
        clipped: Percentage of its results outside its range.
        low: Lower end of its range.
        high: Upper end of its range.
        steps: Number of steps in its range; 0 if its results are not rounded, or it has no range.
    """

    layer: str
    causes: Mapping[str, Effect]
    channels: float = 1.0
    outliers: float = 1.0
    clipped: float = 0.0
    low: float = -math.inf
    high: float = math.inf
    steps: int = 0

    @property
    def power(self) -> float:
        """Sum of the powers of its causes."""
        return sum(effect.power for effect in self.causes.values())

    @property
    def worst(self) -> str:
        """The cause with the greatest power."""
        return max(self.causes, key=lambda cause: self.causes[cause].power)

    @property
    def too_coarse(self) -> str:
        """A clause that says how many steps its values need, if rounding to steps costs most."""
        needed = f"more than {self.steps:,} steps" if self.steps else "smaller steps"
        return f"its values need {needed}"


@dataclass(frozen=True)
class Costs:
    """The costs of the layers of a file, the greatest first.

    Attributes:
        layers: Every layer with a cost.
        together: Effect of all causes at once.
        samples: Number of samples that were evaluated.
    """

    layers: tuple[LayerCost, ...]
    together: Effect
    samples: int = field(default=0)

    @property
    def power(self) -> float:
        """Sum of the powers of all causes, each measured alone."""
        return sum(layer.power for layer in self.layers)

    def decibels(self, power: float) -> float:
        """Return the gain in decibels if errors of the given power are removed."""
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
    rounded = RoundedWeights.of(network, matches, graph)
    input_rounding = input_steps(
        graph, list(network.inputs), [inputs[name] for name in network.inputs]
    )
    inputs = _evaluated_samples(network, inputs)
    experiment = _Experiment(network, inputs, deciding)
    steps = rounding_steps(network, graph, matches, inputs)
    steps = {place: steps[name] for name, place in rounded_values(network, steps).items()}
    steps.update({name: s for name, s in output_steps(graph, network).items() if name in steps})
    found = [
        _layer_cost(experiment, f"input '{name}'", {name: step}, {})
        for name, step in input_rounding.items()
    ]
    for layer in dict.fromkeys(node.layer for node in network.nodes):
        nodes = [node for node in network.nodes if node.layer == layer]
        own = {node.name: steps[node.name] for node in nodes if node.name in steps}
        weights = {n.name: rounded.nodes[n.name] for n in nodes if n.name in rounded.nodes}
        if own or weights:
            found.append(_layer_cost(experiment, layer, own, weights))
    every = {
        name: _rounding_and_clipping(step) for name, step in {**steps, **input_rounding}.items()
    }
    together = experiment.effect(every, rounded.nodes)
    layers = [entry for entry in found if entry.power > 0]
    layers.sort(key=lambda entry: -entry.power)
    return Costs(tuple(layers), together, experiment.samples)


def _evaluated_samples(network: Network, inputs: Values) -> dict[str, np.ndarray]:
    """Return as many evenly spaced samples as the limit allows."""
    count = len(next(iter(inputs.values())))
    layers = len({node.layer for node in network.nodes})
    work = sum(
        node.weights["kernel"].size * _places(node)
        for node in network.nodes
        if "kernel" in node.weights
    )
    # Each of three causes is evaluated from its layer on: half of the network on average.
    wanted = int(_WORK / max(1.5 * layers * work, 1))
    chosen = np.unique(np.linspace(0, count - 1, min(count, max(wanted, 4))).astype(int))
    return {name: array[chosen].astype(np.float32) for name, array in inputs.items()}


def _places(node: Node) -> int:
    return int(np.prod([size or 1 for size in node.shape[1:-1]])) if len(node.shape) > 2 else 1


def _rounding_to(step: Step) -> Callable[[np.ndarray], np.ndarray]:
    def apply(value: np.ndarray) -> np.ndarray:
        if not step.size > 0:
            return value
        rounded = np.clip(np.rint(value / step.size) * step.size, step.low, step.high)
        return np.where(_is_beyond(value, step), value, rounded).astype(value.dtype)

    return apply


def _clipping_to(step: Step) -> Callable[[np.ndarray], np.ndarray]:
    def apply(value: np.ndarray) -> np.ndarray:
        clipped = np.clip(value, step.low, step.high)
        return np.where(_is_beyond(value, step), clipped, value).astype(value.dtype)

    return apply


def _is_beyond(value: np.ndarray, step: Step) -> np.ndarray:
    """Return which values are outside a range by more than one step."""
    return (value < step.low - step.size) | (value > step.high + step.size)


def _rounding_and_clipping(step: Step) -> Callable[[np.ndarray], np.ndarray]:
    first, second = _clipping_to(step), _rounding_to(step)
    return lambda value: second(first(value))


def _layer_cost(
    experiment: _Experiment, layer: str, steps: Mapping[str, Step], weights: Mapping[str, Node]
) -> LayerCost:
    causes = {
        "weights": experiment.effect({}, weights),
        "steps": experiment.effect({name: _rounding_to(step) for name, step in steps.items()}, {}),
        "clipping": experiment.effect(
            {name: _clipping_to(step) for name, step in steps.items()}, {}
        ),
    }
    if not steps:
        return LayerCost(layer, causes)
    name, step = list(steps.items())[-1]
    value = experiment.exact[name]
    size = np.abs(value)
    usual = float(np.quantile(size, 0.999)) if size.size else 0.0
    return LayerCost(
        layer,
        causes,
        channels=_unlikeness(size) if experiment.can_be_scaled(name) else 1.0,
        outliers=float(size.max() / usual) if usual > 0 else 1.0,
        clipped=100 * float(np.mean(_is_beyond(value, step))),
        low=step.low,
        high=step.high,
        steps=_count(step),
    )


def _unlikeness(size: np.ndarray) -> float:
    """Return the maximum of the largest channel divided by that of the median channel."""
    channels = size.reshape(-1, size.shape[-1]).max(axis=0) if size.ndim > 1 else size
    alive = channels[channels > 0]
    return float(alive.max() / np.median(alive)) if alive.size else 1.0


def _count(step: Step) -> int:
    span = step.high - step.low
    return round(span / step.size) if step.size > 0 and math.isfinite(span) else 0


class _Experiment:
    """The exact values of a network, and the effect of errors on the outputs."""

    def __init__(self, network: Network, inputs: Values, deciding: Sequence[str]) -> None:
        self._network, self._deciding = network, tuple(deciding)
        with np.errstate(all="ignore"):
            self.exact = dict(node_values(network, inputs))
        self.samples = len(next(iter(inputs.values())))

    def can_be_scaled(self, name: str) -> bool:
        """Return whether factors of a value's channels can be undone in its readers."""
        nodes = {node.name: node for node in self._network.nodes}
        is_output = name in self._network.outputs.values()
        return name in nodes and nodes[name].op in _SCALED and not is_output

    def effect(
        self,
        changes: Mapping[str, Callable[[np.ndarray], np.ndarray]],
        replaced: Mapping[str, Node],
    ) -> Effect:
        """Evaluate the network with some values changed and some nodes replaced."""
        changed: dict[str, np.ndarray] = {}
        if not changes and not replaced:
            return Effect(0.0)
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
        return self._effect_of(changed)

    def _effect_of(self, changed: Values) -> Effect:
        powers, decisions = [], 0
        for output, value in self._network.outputs.items():
            truth = self.exact[value].astype(np.float64)
            found = changed.get(value, self.exact[value]).astype(np.float64)
            signal = float(np.sum(np.square(truth)))
            error = float(np.sum(np.square(np.where(np.isfinite(truth), found - truth, 0.0))))
            powers.append(error / signal if signal > 0 else 0.0)
            if output in self._deciding:
                decisions += int(np.sum(_decisions(truth) != _decisions(found)))
        return Effect(float(np.mean(powers)) if powers else 0.0, decisions)


def _decisions(rows: np.ndarray) -> np.ndarray:
    """Return the decisions of (N, classes) scores or (N, 1) probabilities."""
    return rows[:, 0] > 0.5 if rows.shape[1] == 1 else rows.argmax(axis=1)
