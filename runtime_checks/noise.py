"""How noisy should float32 be here? A first-order probabilistic model of rounding.

Every operation adds to its result the error of its roundings, taken as independent and uniform, and
passes on the errors of its inputs by its slope. What comes out is the root mean square error that a
float32 runtime can be expected to make on each sample, whatever kernels it has: the sums are taken
one product after the other, which no blocked kernel exceeds. One evaluation of the reference cannot
say that: it is a single draw, and may be right by luck. (Higham and Mary, A New Approach to
Probabilistic Rounding Error Analysis, 2019, is the theory behind it.)

The model costs about three evaluations of the network, so it is run once, at export, and its result
is kept in the golden set as `noise:NAME`. A large network is evaluated on some of the samples only;
the others are given the largest noise of those.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .bounds import UNIT_ROUNDOFF
from .network import Network, Node

# Multiplications that the model may spend, about ten seconds of one core, and the samples that it
# evaluates in any case.
_WORK = 4_000_000_000
_LEAST = 4


def expected_noise(
    network: Network, inputs: Mapping[str, np.ndarray], *, batch: int = 8
) -> dict[str, np.ndarray]:
    """Return the root mean square error that float32 arithmetic is expected to make.

    Args:
        network: The folded network.
        inputs: Its input names to (N, …).
        batch: Samples at a time, to bound memory.

    Returns:
        Output name to (N,) float64; empty when a layer cannot be evaluated outside Keras.
    """
    if network.opaque:
        return {}
    samples = len(next(iter(inputs.values())))
    index = _evaluated(network, samples)
    noise: dict[str, list[np.ndarray]] = {name: [] for name in network.outputs}
    for start in range(0, len(index), batch):
        chosen = index[start : start + batch]
        fed = {name: array[chosen] for name, array in inputs.items()}
        for name, variance in _variances(network, fed).items():
            # An output that is an input has one variance, zero, for all samples.
            each = np.broadcast_to(variance, (len(chosen), *variance.shape[1:]))
            flat = each.reshape(len(chosen), -1).astype(np.float64)
            noise[name].append(UNIT_ROUNDOFF["float32"] * np.sqrt(flat.mean(axis=1)))
    found = {}
    for name, parts in noise.items():
        known = np.concatenate(parts)
        found[name] = np.full(samples, known.max())
        found[name][index] = known
    return found


def _evaluated(network: Network, samples: int) -> np.ndarray:
    """Return the samples that the model is evaluated on, spread over all."""
    work = sum(_products(node) for node in network.nodes)
    count = int(np.clip(_WORK // max(work, 1), min(_LEAST, samples), samples))
    return np.unique(np.linspace(0, samples - 1, count).astype(int))


def _products(node: Node) -> int:
    """Return how many products a node sums for one sample."""
    kernel = node.weights.get("kernel")
    if kernel is None:
        return 0
    places = int(np.prod([size or 1 for size in node.shape[1:-1]])) if len(node.shape) > 2 else 1
    return int(kernel.size) * places


def _variances(network: Network, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return each output's variance in units of u squared, element by element."""
    last = {name: node.name for node in network.nodes for name in node.inputs}
    # The model is an estimate to a few per cent: float32 does, and is twice as fast.
    values = {name: array.astype(np.float32) for name, array in inputs.items()}
    variances = {name: np.zeros_like(array) for name, array in values.items()}
    kept: dict[str, np.ndarray] = {}
    wanted = set(network.outputs.values())
    # What overflows float32 overflows on the target too; the checks compare that by itself.
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for node in network.nodes:
            read = [values[name] for name in node.inputs]
            value = node.evaluate(read)
            variance = node.variance(read, value, [variances[name] for name in node.inputs])
            values[node.name], variances[node.name] = value, variance
            if node.name in wanted:
                kept[node.name] = variance
            for name in set(node.inputs):
                if last[name] == node.name:
                    del values[name], variances[name]
    return {name: kept.get(value, np.zeros(1)) for name, value in network.outputs.items()}
