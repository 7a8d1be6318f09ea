"""How noisy should float32 be here? A first-order probabilistic model of rounding.

Every operation adds to its result the error of its roundings, taken as independent and uniform, and
passes on the errors of its inputs by its slope. What comes out is the root mean square error that a
float32 runtime can be expected to make on each sample, whatever kernels it has: the sums are taken
one product after the other, which no blocked kernel exceeds. One evaluation of the reference cannot
say that: it is a single draw, and may be right by luck. (Higham and Mary, A New Approach to
Probabilistic Rounding Error Analysis, 2019, is the theory behind it.)

Runtimes may also flush denormal numbers to zero, which no unit roundoff tells. Where a sample holds
such numbers, the most that flushing can do to its outputs is added.

The model costs about three evaluations of the network, so it is run once, at export, and its result
is kept in the golden set as `noise:NAME`. A large network is evaluated on some of the samples only;
the others are given the largest noise of those.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .bounds import SMALLEST_NORMAL, UNIT_ROUNDOFF
from .network import Network, Node

# Multiplications that the model may spend, about ten seconds of one core, and the samples that it
# evaluates in any case.
_WORK = 4_000_000_000
_LEAST = 4


def expected_noise(
    network: Network,
    inputs: Mapping[str, np.ndarray],
    *,
    batch: int = 8,
    work: float = _WORK,
) -> dict[str, np.ndarray]:
    """Return the root mean square error that float32 arithmetic is expected to make.

    Args:
        network: The folded network.
        inputs: Its input names to (N, …).
        batch: Samples at a time, to bound memory.
        work: Multiplications that it may cost; infinite for the noise of each single sample.

    Returns:
        Output name to (N,) float64; empty when a layer cannot be evaluated outside Keras.
    """
    if network.opaque:
        return {}
    samples = len(next(iter(inputs.values())))
    index = _evaluated(network, samples, work)
    noise: dict[str, list[np.ndarray]] = {name: [] for name in network.outputs}
    for start in range(0, len(index), batch):
        chosen = index[start : start + batch]
        fed = {name: array[chosen] for name, array in inputs.items()}
        for name, variance in _variances(network, fed).items():
            # An output that is an input has one variance, zero, for all samples.
            each = np.broadcast_to(variance, (len(chosen), *variance.shape[1:]))
            noise[name].append(UNIT_ROUNDOFF["float32"] * np.sqrt(_mean(each)))
    found = {}
    for name, parts in noise.items():
        known = np.concatenate(parts)
        found[name] = np.full(samples, known.max())
        found[name][index] = known
    tiny = _denormal(inputs)
    if tiny.any():
        flushed = _flushing(network, {name: array[tiny] for name, array in inputs.items()})
        for name, most in flushed.items():
            found[name][tiny] = np.hypot(found[name][tiny], most)
    return found


def _mean(variance: np.ndarray) -> np.ndarray:
    """Return (n,) means over what is finite, zero where nothing is: NaN passes by at most."""
    flat = variance.reshape(len(variance), -1).astype(np.float64)
    usable = np.isfinite(flat)
    total = np.sum(np.where(usable, flat, 0.0), axis=1)
    return np.asarray(total / np.maximum(usable.sum(axis=1), 1))


def _denormal(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return (N,) whether a sample holds numbers that are not zero and may be taken for it."""
    found = []
    for array in inputs.values():
        size = np.abs(array.reshape(len(array), -1))
        found.append(((size > 0) & (size < SMALLEST_NORMAL)).any(axis=1))
    return np.any(found, axis=0)


def _flushing(network: Network, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the root mean square of the most that flushing to zero may do to each output."""
    values = {name: array.astype(np.float64) for name, array in inputs.items()}
    errors = {name: np.zeros_like(array) for name, array in values.items()}
    for node in network.nodes:
        read = [values[name] for name in node.inputs]
        value = node.evaluate(read)
        errors[node.name] = node.error(read, value, [errors[name] for name in node.inputs], 0.0)
        values[node.name] = value
    return {
        name: np.sqrt(_mean(np.square(errors[value]))) for name, value in network.outputs.items()
    }


def _evaluated(network: Network, samples: int, budget: float) -> np.ndarray:
    """Return the samples that the model is evaluated on, spread over all."""
    work = sum(_products(node) for node in network.nodes)
    count = int(np.clip(budget / max(work, 1), min(_LEAST, samples), samples))
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
