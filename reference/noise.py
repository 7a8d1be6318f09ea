"""Predicts the noise of a file: a first-order probabilistic model of rounding.

Every operation adds the errors of its own roundings, taken as independent and uniform, and
propagates the errors of its inputs by its slope. The result is the expected root mean square error
of a runtime on each sample, for any kernels: sums are modelled one product after the other, which
is an upper limit for blocked kernels. A single evaluation of the reference is only one draw and may
be exact by chance. Theory: Higham and Mary, A New Approach to Probabilistic Rounding Error
Analysis, 2019.

Runtimes may also flush denormal numbers to zero, which the unit roundoff does not cover. Where a
sample holds such numbers, the effect of flushing all of them is added.

A file of lower precision differs from the network in more ways:

- Its weights are rounded. That error is deterministic: the network is evaluated with the file's own
  weights, and the error against truth is used directly.
- Integers: two runtimes differ by single steps (`integer_noise`). The result is then the difference
  between two runtimes, not the error against truth.
- Dynamic range: a linear op with 8-bit weights quantizes its input at run time, in 255 steps from
  min(x, 0) to max(x, 0) of a sample. (XNNPACK takes the range of each row, which is no wider.) Zero
  is on a step; any other number is off by a uniform error of variance step²/12. Where most numbers
  are below half a step their errors are no longer independent, since all become zero: so the
  network is also evaluated with its inputs in such steps, and that error against truth, one draw
  including the systematic part, is added to the variance.

The model costs about three evaluations of the network, so it is run once, at export, and its result
is kept in the golden set as `noise:NAME`, and as `file-noise:FILE:NAME` for a file of lower
precision. A large network is evaluated on some of the samples only; the others get the
largest noise of those, as do samples with NaN or infinity, for which errors are not propagated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..artifacts.network import Network, Node
from ..artifacts.precisions import SMALLEST_NORMAL, UNIT_ROUNDOFF
from ..artifacts.ranges import HALF_STEP, LEAST_HALF
from ..artifacts.sample_kinds import NONFINITE, kinds_of
from .integer_noise import Step
from .network import evaluate_network, evaluate_node, opaque_layers, rounding_variance
from .operators.base import REACH

# Multiplications that the model may spend, about ten seconds of one core, and the samples that it
# evaluates in any case.
_WORK = 4_000_000_000
_LEAST = 4


@dataclass(frozen=True)
class NoiseSource:
    """The roundings of a file's arithmetic.

    Attributes:
        unit: Unit roundoff.
        hybrid: The nodes that quantize their input to 8 bits at run time, and for each whether that
            may be symmetric about zero.
        steps: Node name to the steps of integers that the node's result is rounded to.
    """

    unit: float = UNIT_ROUNDOFF["float32"]
    hybrid: Mapping[str, bool] = field(default_factory=dict)
    steps: Mapping[str, Step] = field(default_factory=dict)


def expected_noise(
    network: Network,
    inputs: Mapping[str, np.ndarray],
    *,
    arithmetic: NoiseSource | None = None,
    truth: Mapping[str, np.ndarray] | None = None,
    batch: int = 8,
    work: float = _WORK,
) -> dict[str, np.ndarray]:
    """Return the root mean square error that a file is expected to make.

    Args:
        network: The folded network, with the weights that the file has.
        inputs: Its input names to (N, …).
        arithmetic: The file's arithmetic; float32 by default.
        truth: Output name to (N, …), where the network's weights are not the true ones: what they
            change counts as error.
        batch: Samples at a time, to bound memory.
        work: Multiplications that it may cost; infinite for the noise of each single sample.

    Returns:
        Output name to (N,) float64; empty when a layer cannot be evaluated outside Keras.
    """
    if opaque_layers(network):
        return {}
    used = arithmetic or NoiseSource()
    samples = len(next(iter(inputs.values())))
    followed = np.flatnonzero(kinds_of(inputs) != NONFINITE)
    if not followed.size:
        followed = np.arange(samples)
    index = followed[_evaluated(network, len(followed), work)]
    noise: dict[str, list[np.ndarray]] = {name: [] for name in network.outputs}
    for start in range(0, len(index), batch):
        chosen = index[start : start + batch]
        fed = {name: array[chosen] for name, array in inputs.items()}
        for name, (value, variance) in _known_variances(network, fed, used).items():
            squares = used.unit**2 * _mean(variance, value)
            if truth is not None:
                off = value.astype(np.float64) - truth[name][chosen]
                with np.errstate(over="ignore"):  # beyond float64 there is no bound
                    squares = squares + _mean(np.square(off), off)
            noise[name].append(np.sqrt(squares))
    found = {}
    for name, parts in noise.items():
        known = np.concatenate(parts)
        found[name] = np.full(samples, np.max(known, where=np.isfinite(known), initial=0.0))
        found[name][index] = known
    tiny = denormal(inputs) | _has_denormal_weights(network)
    if tiny.any():
        flushed = flushing_effect(network, {name: array[tiny] for name, array in inputs.items()})
        for name, moved in flushed.items():
            found[name][tiny] = np.hypot(found[name][tiny], moved)
    return found


def _mean(variance: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return (n,) means of variances over the elements whose value is finite; zero without any.

    A variance that is not finite has no bound, so its sample has none: the mean is infinite.
    """
    flat, of = (array.reshape(len(array), -1).astype(np.float64) for array in (variance, value))
    usable = np.isfinite(of)
    total = np.sum(np.where(usable, np.where(np.isnan(flat), np.inf, flat), 0.0), axis=1)
    return np.asarray(total / np.maximum(usable.sum(axis=1), 1))


def denormal(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return (N,) whether a sample contains denormal numbers, which may be flushed to zero."""
    found = []
    for array in inputs.values():
        size = np.abs(array.reshape(len(array), -1))
        found.append(((size > 0) & (size < SMALLEST_NORMAL)).any(axis=1))
    return np.any(found, axis=0)


def _has_denormal_weights(network: Network) -> bool:
    return any(
        bool(np.any((weight != 0) & (np.abs(weight) < SMALLEST_NORMAL)))
        for node in network.nodes
        for weight in node.weights.values()
    )


def flushing_effect(network: Network, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the effect of replacing denormal numbers by zero, wherever a runtime can.

    Args:
        network: Every layer can be evaluated.
        inputs: Its input names to (N, …).

    Returns:
        Output name to the (N,) root mean squares of the change.
    """

    def flushed(array: np.ndarray) -> np.ndarray:
        return np.where(np.abs(array) < SMALLEST_NORMAL, 0.0, array)

    exact = evaluate_network(network, inputs)
    values = {name: flushed(array.astype(np.float64)) for name, array in inputs.items()}
    for node in network.nodes:
        weights = {role: flushed(weight) for role, weight in node.weights.items()}
        read = [values[name] for name in node.inputs]
        values[node.name] = flushed(evaluate_node(replace(node, weights=weights), read))
    return {
        name: np.sqrt(_mean(np.square(moved), moved))
        for name, value in network.outputs.items()
        for moved in (values[value] - exact[name],)
    }


def _evaluated(network: Network, samples: int, budget: float) -> np.ndarray:
    """Return the samples that the model is evaluated on, spread over all."""
    work = sum(_products(node) for node in network.nodes)
    count = int(np.clip(budget / max(work, 1), min(_LEAST, samples), samples))
    return np.unique(np.linspace(0, samples - 1, count).astype(int))


def _products(node: Node) -> int:
    """Return the number of products that a node sums for one sample."""
    kernel = node.weights.get("kernel")
    if kernel is None:
        return 0
    return int(kernel.size) * math.prod(size or 1 for size in node.shape[1:-1])


def _known_variances(
    network: Network, inputs: Mapping[str, np.ndarray], arithmetic: NoiseSource
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return `_variances`, in float64 for the samples whose variances float32 cannot hold.

    Numbers from 2e19 on have a square beyond float32.
    """
    # The model is an estimate to a few per cent: float32 does, and is twice as fast.
    found = _variances(network, inputs, arithmetic, np.float32)
    lost = np.any(
        [
            ~np.isfinite(variance).reshape(len(variance), -1).all(axis=1)
            for _, variance in found.values()
        ],
        axis=0,
    )
    if lost.any():
        again = {name: array[lost] for name, array in inputs.items()}
        for name, arrays in _variances(network, again, arithmetic, np.float64).items():
            wide = [array.astype(np.float64) for array in found[name]]
            for whole, part in zip(wide, arrays):
                whole[lost] = part
            found[name] = wide[0], wide[1]
    return found


def _variances(
    network: Network, inputs: Mapping[str, np.ndarray], arithmetic: NoiseSource, dtype: type
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return each output, and its variance in units of u squared, element by element."""
    last = {name: node.name for node in network.nodes for name in node.inputs}
    values: dict[str, np.ndarray] = {name: array.astype(dtype) for name, array in inputs.items()}
    half = arithmetic.unit == UNIT_ROUNDOFF["float16"]
    variances = {
        name: _input_rounding(array)
        if half and inputs[name].dtype.kind == "f"
        else np.zeros_like(array)
        for name, array in values.items()
    }
    kept = {name: (value, variances[name]) for name, value in values.items()}
    wanted = set(network.outputs.values())
    # What overflows float32 overflows on the target too; the checks compare that by itself.
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for node in network.nodes:
            read = [values[name] for name in node.inputs]
            errors = [variances[name] for name in node.inputs]
            if node.name in arithmetic.hybrid:
                step = input_step(read[0], symmetric=arithmetic.hybrid[node.name])
                # Zero is on a step.
                errors[0] = errors[0] + np.square(step / arithmetic.unit) / 12 * (read[0] != 0)
                read[0] = in_steps(read[0], step)
            value = evaluate_node(node, read)
            variance = rounding_variance(node, read, value, errors, arithmetic.unit)
            if np.isinf(value).any() and _masks(node, read, errors):
                variance = np.where(np.isinf(value), 0, variance)
            if half:
                variance = variance + _underflow(value)
            if node.name in arithmetic.steps:
                rounding = arithmetic.steps[node.name]
                value, variance = _stepped(value, variance, rounding, arithmetic.unit)
            values[node.name], variances[node.name] = value, variance
            if node.name in wanted:
                kept[node.name] = value, variance
            for name in set(node.inputs):
                if last[name] == node.name:
                    del values[name], variances[name]
    return {name: kept[value] for name, value in network.outputs.items()}


def _masks(node: Node, read: Sequence[np.ndarray], variances: Sequence[np.ndarray]) -> bool:
    """Return whether infinite results stem from infinite numbers, such as those of masks.

    They are not rounded, whereas those of an overflow have no bound.
    """
    operands = (*read, *node.arrays.values())
    infinite = any(array.dtype.kind == "f" and bool(np.isinf(array).any()) for array in operands)
    return infinite and all(bool(np.isfinite(variance).all()) for variance in variances)


def _input_rounding(value: np.ndarray) -> np.ndarray:
    """Return the square of the error of inputs in half precision, in units of u squared."""
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.square((value - value.astype(np.float16)) / UNIT_ROUNDOFF["float16"])
    return np.where(np.isfinite(error), error, 0).astype(value.dtype)


def _underflow(value: np.ndarray) -> np.ndarray:
    """Return the variance of rounding numbers below the least normal half, in units of u squared.

    Such numbers are multiples of 2^-24.
    """
    own = np.square(HALF_STEP / UNIT_ROUNDOFF["float16"]) / 12
    return np.where((np.abs(value) < LEAST_HALF) & (value != 0), own, 0).astype(value.dtype)


def _stepped(
    value: np.ndarray, variance: np.ndarray, step: Step, unit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return a value within the range of its integers, and its variance with a step's added."""
    bounded = np.clip(value, step.low, step.high)
    own = (step.size / unit) ** 2
    # What lies further beyond the range than the errors that one sample may have stays there.
    beyond = np.square((value - bounded) / unit) > REACH**2 * variance
    return bounded, np.where(beyond, 0.0, variance + own).astype(value.dtype)


def in_steps(x: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Return (N, …) numbers in the steps of `input_step`."""
    return np.asarray(np.rint(x / np.maximum(step, SMALLEST_NORMAL)) * step)


def input_step(x: np.ndarray, *, symmetric: bool = False) -> np.ndarray:
    """Return the step of 8 bits that a dynamic-range op gives each sample of its input.

    Measured of LiteRT 2.3: XNNPACK by row, builtin and reference kernels by sample, each equal to
    float64 with such an input up to the rounding of float32. ONNX's DynamicQuantizeLinear is
    defined so. If the file does not ask for asymmetric inputs, the builtin and reference kernels
    take symmetric ones; XNNPACK's steps stay as they are, which are smaller.

    Args:
        x: (N, …).
        symmetric: Whether kernels may use 127 steps on each side of zero.

    Returns:
        (N, 1, …), the range from the least to the greatest number, zero included, over 255; or the
        greatest magnitude over 127.
    """
    axes = tuple(range(1, x.ndim))
    if symmetric:
        return np.asarray(np.abs(x).max(axis=axes, keepdims=True) / 127)
    high = np.maximum(x.max(axis=axes, keepdims=True), 0)
    return np.asarray((high - np.minimum(x.min(axis=axes, keepdims=True), 0)) / 255)
