"""Finds factors of channels by which a file's kernels differ from a network's.

Equalization multiplies the outputs of a layer by a factor for each channel and divides the weights
that read the channel by it. A relu, a maximum or a mean passes a positive factor on, so the network
computes the same. Such a file is compared with a network that has the same factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph
from ...artifacts.network import Network, Node
from ...reference.file_weights import file_weight
from ...reference.merged_affines import allowed_error, like
from ...reference.network import evaluate_node
from ...reference.weight_forms import flattened_maps

# Operators of single numbers with f(s x) = s f(x) for factors s > 0.
_OF_ELEMENTS = {"identity", "leaky_relu", "linear", "prelu"}

# Other operators with f(s x) = s f(x) for factors s > 0 of channels, or that only move numbers.
_HOMOGENEOUS = {
    "average_pool", "concatenate", "crop", "flatten", "global_average_pool", "global_max_pool",
    "max_pool", "pad", "permute", "reshape", "slice", "upsample_bilinear", "upsample_nearest",
}  # fmt: skip

# The axes of a kernel for output channels.
_OUTPUTS = {"conv": (-1,), "conv_transpose": (-2,), "dense": (-1,), "depthwise_conv": (-2, -1)}

# A kernel that agrees in this share of its numbers is the network's, possibly altered.
_AGREEING = 0.5


@dataclass(frozen=True)
class _Factors:
    """Factors of the channels of a value, in a shape that broadcasts with one sample.

    Attributes:
        sizes: The factors.
        errors: Their greatest relative errors.
    """

    sizes: np.ndarray
    errors: np.ndarray

    @property
    def none(self) -> bool:
        """Whether all factors may be 1."""
        return bool(np.all(np.abs(self.sizes - 1) <= self.errors))


class _NotEqualizedError(Exception):
    """The factors do not cancel."""


def with_scaled_channels(network: Network, graph: ArtifactGraph) -> Network | None:
    """Return the network with the factors of a file's channels, and the file's own weights.

    Args:
        network: The network.
        graph: The file.

    Returns:
        A network that computes the same; None if no factors are found, or if they do not cancel.
    """
    maps = flattened_maps(network)
    factors: dict[str, _Factors] = {}
    nodes: list[Node] = []
    try:
        for node in network.nodes:
            new, found = _scaled(node, factors, network, graph, maps.get(node.name, ()))
            nodes.append(new)
            if found is not None and not found.none:
                factors[node.name] = found
    except _NotEqualizedError:
        return None
    if not factors or any(value in factors for value in network.outputs.values()):
        return None
    return replace(network, nodes=tuple(nodes))


def _scaled(
    node: Node,
    factors: Mapping[str, _Factors],
    network: Network,
    graph: ArtifactGraph,
    features: tuple[int, ...],
) -> tuple[Node, _Factors | None]:
    """Return a node that reads and returns values with factors, and the factors it returns."""
    read = [factors.get(name) for name in node.inputs]
    if node.op in _OUTPUTS:
        return _linear(node, read[0], graph, features)
    if not any(read):
        return node, None
    if node.op == "clip" and len(node.inputs) == 1:
        # The limits are those of the reference's integers; the file rounds to others.
        floor = node.attributes["min_value"] >= 0
        return replace(node, op="relu" if floor else "identity", attributes={}), read[0]
    relu = node.op == "relu" and not {"max_value", "threshold"} & {
        name for name, value in node.attributes.items() if value
    }
    if relu or node.op in _OF_ELEMENTS:
        return node, read[0]
    shapes: dict[str, Sequence[int | None]] = {**network.inputs}
    shapes.update({each.name: each.shape for each in network.nodes})
    # Values inside a layer may have no shape.
    if node.op not in _HOMOGENEOUS or not all(shapes[name] for name in node.inputs):
        raise _NotEqualizedError
    parts = []
    for attribute, missing in (("sizes", 1.0), ("errors", 0.0)):
        arrays = [
            np.broadcast_to(
                missing if known is None else getattr(known, attribute),
                (1, *(size or 1 for size in shapes[name][1:])),
            )
            for name, known in zip(node.inputs, read)
        ]
        parts.append(evaluate_node(node, arrays))
    return node, _Factors(*parts)


def _linear(
    node: Node, read: _Factors | None, graph: ArtifactGraph, features: tuple[int, ...]
) -> tuple[Node, _Factors | None]:
    """Return a linear node with the file's kernel, and the factors of its outputs."""
    kernel = node.arrays["kernel"].astype(np.float64)
    error = np.broadcast_to(node.errors.get("kernel", 0.0), kernel.shape)
    if read is not None:
        first = node.attributes.get("data_format") == "channels_first"
        sizes, errors = (
            _of_inputs(node, _of_channels(array, 1 if first else -1), kernel.shape)
            for array in (read.sizes, read.errors)
        )
        kernel = kernel / sizes
        error = error / sizes + np.abs(kernel) * errors
    axes = tuple(axis for axis in range(kernel.ndim) if axis - kernel.ndim not in _OUTPUTS[node.op])
    fits = _fits(node, kernel, error, axes, graph, features)
    best = max(fits, key=lambda fit: fit.share, default=None)
    if best is None or best.share < _AGREEING:
        return replace(node, weights={**node.weights, "kernel": kernel}), None
    weights, known = dict(node.weights), dict(node.errors)
    if best.share == 1:
        weights["kernel"] = best.found
        known.pop("kernel", None)
    else:
        weights["kernel"], known["kernel"] = kernel * best.factor, error * best.factor
    size = best.factor.reshape(-1)
    if "bias" in weights and weights["bias"].size == size.size:
        weights["bias"] = weights["bias"].astype(np.float64) * size
        slack = np.abs(weights["bias"]) * best.error.reshape(-1)
        known["bias"] = np.broadcast_to(known.get("bias", 0.0), size.shape) * size + slack
    rank = len(node.shape) or kernel.ndim
    shape = (1, *([1] * (rank - 2)), size.size)
    if node.attributes.get("data_format") == "channels_first":
        shape = (1, size.size, *([1] * (rank - 2)))
    changed = replace(node, weights=weights, errors=known)
    return changed, _Factors(size.reshape(shape), best.error.reshape(shape))


@dataclass(frozen=True)
class _Fit:
    """A constant of a file as a multiple of a kernel.

    Attributes:
        share: Share of the numbers that agree.
        found: The constant, in the kernel's axes.
        factor: The factor of each output channel, in a shape that broadcasts with the kernel.
        error: The greatest relative error of each factor.
    """

    share: float
    found: np.ndarray
    factor: np.ndarray
    error: np.ndarray


def _fits(
    node: Node,
    kernel: np.ndarray,
    error: np.ndarray,
    axes: tuple[int, ...],
    graph: ArtifactGraph,
    features: tuple[int, ...],
) -> Iterator[_Fit]:
    """Yield every constant of the kernel's size, unscaled and scaled for each output channel.

    A factor is the median of the quotients weighted by the numbers, which some altered numbers do
    not change.
    """
    wanted = replace(node, weights={"kernel": kernel})
    for match in like(wanted, "kernel", graph.constants, features):
        found = file_weight(match, kernel.shape)
        assert match.tensor is not None
        ones = np.ones_like(kernel.sum(axis=axes, keepdims=True))
        for factor in (ones, _medians(kernel, found, axes)):
            near = kernel * factor
            allowed = allowed_error(match.tensor, match, near, np.abs(near)) + error * factor
            spread = np.zeros_like(ones)
            if factor is not ones:
                size = np.sqrt(np.square(near).sum(axis=axes, keepdims=True))
                spread = np.sqrt(np.square(allowed).sum(axis=axes, keepdims=True))
                spread = np.divide(spread, size, out=np.zeros_like(size), where=size > 0)
            wrong = ~(np.abs(found - near) <= allowed + spread * np.abs(near))
            yield _Fit(1 - float(wrong.mean()), found, factor, spread)


def _medians(kernel: np.ndarray, found: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Return the weighted median of found / kernel for each output channel; 1 where it is none."""
    kept = [axis for axis in range(kernel.ndim) if axis not in axes]
    rows = [np.transpose(a, (*kept, *axes)).reshape(*(a.shape[k] for k in kept), -1)
            for a in (kernel, found)]  # fmt: skip
    weights = np.abs(rows[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        quotients = np.where(weights > 0, rows[1] / rows[0], 0.0)
    order = np.argsort(quotients, axis=-1)
    total = np.cumsum(np.take_along_axis(weights, order, -1), axis=-1)
    place = np.argmax(total >= total[..., -1:] / 2, axis=-1)[..., None]
    middle = np.take_along_axis(quotients, np.take_along_axis(order, place, -1), -1)[..., 0]
    shape = [size if axis in kept else 1 for axis, size in enumerate(kernel.shape)]
    return np.where(middle > 0, middle, 1.0).reshape(shape)


def _of_channels(array: np.ndarray, axis: int) -> np.ndarray:
    """Return (C,) the numbers of channels; positions that padding added have none."""
    rows = np.moveaxis(array, axis, -1)
    return np.asarray(rows.reshape(-1, rows.shape[-1]).max(axis=0))


def _of_inputs(node: Node, channels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the number of the input channel of each element of a kernel."""
    if node.op == "conv_transpose":
        return channels
    if node.op != "conv":
        return channels[:, None]
    groups = int(node.attributes.get("groups", 1))
    return np.repeat(channels.reshape(groups, -1), shape[-1] // groups, axis=0).T
