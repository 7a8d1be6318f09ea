"""Which output elements can be expected to be right for samples that hold NaN or infinity."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..artifacts.network import Network, Node
from ..artifacts.sample_kinds import NONFINITE, UNUSUAL, kinds_of
from .network import evaluate_node, opaque_layers
from .noise import denormal

# Operators that select elements by comparison, in which a NaN may be lost.
_DECIDING = {
    *("greater", "greater_equal", "less", "less_equal", "equal", "not_equal"),
    *("sort", "argsort", "argmax", "argmin", "reduce_max", "reduce_min"),
    *("one_hot", "gather", "bucketize", "truncate", "sign", "sign_bit"),
    *("nonzero", "logical_not", "is_nan", "is_finite"),
}


def expected(
    network: Network,
    inputs: Mapping[str, np.ndarray],
    *witnesses: Mapping[str, np.ndarray],
    kind: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return the elements with an expected value.

    Args:
        network: The folded network.
        inputs: Its input names to (N, …).
        witnesses: Output name to (N, …) outputs of the trained model and others.
        kind: (N,) kinds of the samples; None for those of a user.

    Returns:
        Output name to (N, …): whether the element is finite for all of them. True for finite
        inputs, but where denormal numbers, which some runtimes flush to zero, decide whether the
        element is finite, and in extreme samples with numbers beyond float32, of which runtimes
        make infinity, NaN or 3.4e38; throughout false for the others where a layer is beyond the
        network.
    """
    odd = kinds_of(inputs) == NONFINITE
    if kind is not None:
        odd |= np.isin(kind, UNUSUAL) & _beyond_float32(witnesses)
    sizes = {name: array.shape for name, array in witnesses[0].items()}
    found = {name: np.ones(shape, bool) for name, shape in sizes.items()}
    tiny = denormal(inputs)
    for name, array in found.items():
        finite = [np.isfinite(outputs[name][tiny]) for outputs in witnesses]
        array[tiny] = np.all(finite, axis=0) == np.any(finite, axis=0)
    if not odd.any():
        return found
    if opaque_layers(network):
        for array in found.values():
            array[odd] = False
        return found
    chosen = {name: array[odd] for name, array in inputs.items()}
    spread = _followed(network, chosen)
    with np.errstate(over="ignore"):
        _mark(found, odd, network, spread, witnesses)
    return found


def _mark(
    found: dict[str, np.ndarray],
    odd: np.ndarray,
    network: Network,
    spread: Mapping[str, np.ndarray],
    witnesses: Sequence[Mapping[str, np.ndarray]],
) -> None:
    """Set which elements of some samples are finite for the network and all witnesses, in place."""
    for name, array in found.items():
        array[odd] = np.isfinite(spread[network.outputs[name]])
        for outputs in witnesses:
            array[odd] &= np.isfinite(outputs[name][odd].astype(np.float32))


def _beyond_float32(witnesses: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """Return (N,) which samples have an output that is finite in float64 and not in float32.

    The number itself or an intermediate one is beyond float32.
    """
    found = np.zeros(len(next(iter(witnesses[0].values()))), bool)
    with np.errstate(over="ignore"):
        for name in witnesses[0]:
            finite = [np.isfinite(outputs[name].astype(np.float32)) for outputs in witnesses]
            ever = np.any([np.isfinite(outputs[name]) for outputs in witnesses], axis=0)
            lost = ever & ~np.all(finite, axis=0)
            found |= lost.reshape(len(lost), -1).any(axis=1)
    return found


# Taps for which XNNPACK has a depthwise kernel; larger kernels are computed in several passes.
_TAPS = (3, 4, 9, 25)


def _followed(network: Network, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return every value, with NaN wherever a NaN or infinity may lead.

    NumPy propagates NaN in arithmetic. The result of a comparison, a sort or an index depends on
    the runtime: there a sample with NaN becomes NaN everywhere. The product of infinity and a
    weight is NaN in a file that rounds the weight to zero, and so is a product with the zeros that
    runtimes add to a kernel.
    """
    values = {name: array.astype(np.float32) for name, array in inputs.items()}
    with np.errstate(all="ignore"):
        for node in network.nodes:
            read = [values[name] for name in node.inputs]
            value = evaluate_node(_with_zeros(node), read)
            if node.op in _DECIDING:
                lost = [~np.isfinite(x.reshape(len(x), -1)).all(axis=1) for x in read]
                value = np.array(value)
                value[np.any(lost, axis=0)] = np.nan
            elif node.arrays:
                value = np.where(np.isfinite(value), value, np.nan)
                value = _with_more_taps(node, value)
            values[node.name] = value
    return values


def _with_zeros(node: Node) -> Node:
    """Return a dilated convolution with a kernel that has zeros between its taps.

    ONNX's reference evaluator computes it so, and multiplies NaN by these zeros.
    """
    steps = node.attributes.get("dilation")
    if node.op not in ("conv", "depthwise_conv") or not steps or max(steps) == 1:
        return node
    kernel = node.arrays["kernel"]
    spread = [(size - 1) * step + 1 for size, step in zip(kernel.shape, steps)]
    filled = np.zeros((*spread, *kernel.shape[len(steps) :]), kernel.dtype)
    filled[tuple(slice(None, None, step) for step in steps)] = kernel
    return dataclasses.replace(
        node,
        attributes={**node.attributes, "dilation": [1] * len(steps)},
        weights={**node.weights, "kernel": filled},
    )


def _with_more_taps(node: Node, value: np.ndarray) -> np.ndarray:
    """Return the output of a node with NaN wherever XNNPACK multiplies a NaN by zero.

    XNNPACK fills a depthwise kernel with weights of zero up to the next of `_TAPS`. The inputs of
    the taps are listed column by column, so those that are filled in read the following columns.
    """
    kernel = node.arrays.get("kernel")
    alone = node.op == "conv" and node.attributes.get("groups", 1) > 1
    if kernel is None or not (node.op == "depthwise_conv" or (alone and kernel.shape[-2] == 1)):
        return value
    sizes = kernel.shape[:-2]
    filled = next((taps for taps in _TAPS if taps >= math.prod(sizes)), 0) - math.prod(sizes)
    axes = tuple(range(value.ndim - 1 - len(sizes), value.ndim - 1))
    if node.attributes.get("data_format") == "channels_first":
        axes = tuple(axis + 1 for axis in axes)
    places = np.moveaxis(value, axes, range(-len(axes), 0))
    rows = places.reshape(*places.shape[: -len(axes)], -1).copy()
    lost = np.isnan(rows)
    for step in range(1, -(-filled // math.prod(sizes[:-1])) + 1):
        rows[..., :-step][lost[..., step:]] = np.nan
    return np.moveaxis(rows.reshape(places.shape), range(-len(axes), 0), axes)
