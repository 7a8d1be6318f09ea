"""Linear layers merged with the affines next to them.

y = s (W x + b) + t has the weights s W and s b + t, and y = W (s x + t) + b has W s and b + W t,
unless padding inserts zeros instead of t. A bias before a linear layer is such a t, so a converter
may move the biases of two consecutive linear layers to the second one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..artifacts.network import Node
from .network import evaluate_node
from .operators.linear import LINEAR

# A converter computes s, s W and s b + t in float32: a few roundings, relative to the size of the
# terms.
COMPUTED = 16 * 2.0**-24

LINEAR_NODES = ("conv", "depthwise_conv", "dense", "conv_transpose")


@dataclass(frozen=True)
class Composed:
    """A linear node merged with the affine after or before it.

    Attributes:
        node: The linear node, with composed weights.
        size: Sum of the absolute values that were added to each bias.
        rest: Replacements of the other nodes: identities, or linear nodes without their bias.
        shifted: Whether a shift was added to the bias; the file must then contain that bias.
        inserted: New nodes, each with the name of the node that it is inserted before.
    """

    node: Node
    size: np.ndarray
    rest: tuple[Node, ...]
    shifted: bool = False
    inserted: tuple[tuple[str, Node], ...] = ()


def compositions_of(
    node: Node, nodes: dict[str, Node], readers: dict[str, list[Node]], outputs: set[str]
) -> list[Composed]:
    """Return a node merged with the affines after it, before it, and on both sides."""
    behind = _compositions(node, readers, outputs)
    both = [
        replace(
            front,
            size=front.size + each.size,
            rest=(*each.rest, *front.rest),
            inserted=(*each.inserted, *front.inserted),
        )
        for each in behind
        for front in _in_front(each.node, nodes, readers, outputs)
    ]
    return both + behind + _in_front(node, nodes, readers, outputs)


def _compositions(node: Node, readers: dict[str, list[Node]], outputs: set[str]) -> list[Composed]:
    """Return a node merged with the affine nodes after it, the longest sequence first."""
    if node.attributes.get("data_format") == "channels_first":
        return []
    arrays = node.arrays
    kernel = arrays["kernel"]
    channels = _channels(node, kernel)
    affines = list(_affines_behind(node, channels, readers, outputs))
    if not affines:
        return []
    bias = arrays.get("bias", np.zeros(channels))
    scale, shift = np.ones(channels), np.zeros(channels)
    size = np.abs(bias).astype(np.float64)
    found: list[Composed] = []
    absorbed: list[Node] = []
    for current, affine in affines:
        scale, shift = affine[0] * scale, affine[0] * shift + affine[1]
        size = np.abs(affine[0]) * size + np.abs(affine[1])
        absorbed.append(current.as_identity())
        weights = {"kernel": _scaled(node, kernel, scale), "bias": scale * bias + shift}
        errors = {role: np.abs(scale) * error for role, error in node.errors.items()}
        if "kernel" in errors:
            errors["kernel"] = _scaled(node, node.errors["kernel"], np.abs(scale))
        composed = replace(node, weights=weights, constants={}, errors=errors)
        only_shifted = bool(np.all(scale == 1))
        found.append(Composed(composed, size, tuple(absorbed), shifted=only_shifted))
    return found[::-1]


def _affines_behind(
    node: Node, channels: int, readers: dict[str, list[Node]], outputs: set[str]
) -> Iterator[tuple[Node, tuple[np.ndarray, np.ndarray]]]:
    """Yield the affine nodes after a linear one, each with its scale and shift."""
    axes: tuple[int, ...] = (channels,)
    while node.name not in outputs and len(readers.get(node.name, [])) == 1:
        node = readers[node.name][0]
        if _keeps_channels(node, axes) and (after := _channel_axes(node, channels)):
            axes = after
            continue
        affine = _affine(node, channels, axes)
        if affine is None:
            return
        yield node, affine


def _in_front(
    node: Node, nodes: dict[str, Node], readers: dict[str, list[Node]], outputs: set[str]
) -> list[Composed]:
    """Return a node merged with the affine nodes before it, the longest sequence first.

    The sequence ends at a linear node, whose bias counts as a shift. Affines that have other
    readers too stay as they are, and the merged node reads what they read. Reshapes may lie in
    between if together they change nothing, as a transposition of axes of size one, if they
    keep the axis of the channels, or if the affine is the same for all channels.
    """
    if node.attributes.get("data_format") == "channels_first":
        return []
    channels = _read_channels(node, node.arrays["kernel"])
    scale, shift, size = np.ones(channels), np.zeros(channels), np.zeros(channels)
    absorbed: list[Node] = []
    found: list[Composed | None] = []
    shared = reshaped = False
    read = before = nodes.get(node.inputs[0])
    while before is not None:
        shared = shared or len(readers[before.name]) > 1 or before.name in outputs
        affine = _affine(before, channels)
        if reshaped and affine is not None and read is not None:
            kept = read.shape == before.shape != ()
            rows = _same_rows(read, before, channels) and (node.op == "dense" or not shared)
            if not (kept or rows or _is_uniform(affine)):
                break
        if affine is not None:
            # s (a x + b) + t
            shift, size = scale * affine[1] + shift, np.abs(scale * affine[1]) + size
            scale = scale * affine[0]
            absorbed.append(before.as_identity())
            composed = _with_front(node, scale, shift, size, [] if shared else absorbed)
            found.append(_reading(composed, before, read) if shared else composed)
        elif before.op != "identity" and not _is_reshape(before):
            break
        reshaped = reshaped or _is_reshape(before)
        before = nodes.get(before.inputs[0])
    if before is not None and read is not None and before.op in LINEAR:
        bias = before.weights.get("bias")
        kept = not reshaped or (node.op == "dense" and _same_rows(read, before, channels))
        if kept and shared and not absorbed:
            found.append(_with_shared_bias(node, before, read))
        elif kept and not shared and bias is not None and bias.shape == (channels,):
            for more, rest in _biases(before, nodes, readers, outputs):
                moved, grown = scale * more + shift, np.abs(scale * more) + size
                found.append(_with_front(node, scale, moved, grown, [*absorbed, *rest]))
    return [each for each in found[::-1] if each is not None]


def _is_reshape(node: Node) -> bool:
    """Return whether a node keeps all numbers in their order."""
    moves = node.op == "flatten" and node.attributes.get("data_format") == "channels_first"
    return node.op in ("reshape", "flatten") and not moves


def _is_uniform(affine: tuple[np.ndarray, np.ndarray]) -> bool:
    """Return whether an affine is the same for all channels, so that a reshape keeps it."""
    return all(bool(np.all(values == values[0])) for values in affine)


def _same_rows(one: Node, other: Node, channels: int) -> bool:
    """Return whether two reshaped values have the same channels as last axis."""
    return one.shape[-1:] == other.shape[-1:] == (channels,)


def _reading(composed: Composed | None, affine: Node, read: Node | None) -> Composed | None:
    """Return a composed node that reads what an affine reads, in the shape that it read before."""
    if composed is None or read is None or len(composed.node.inputs) != 1:
        return None
    if read.shape == affine.shape:
        return replace(composed, node=replace(composed.node, inputs=affine.inputs))
    if None in read.shape[1:]:
        return None
    return _through(_reshaped(composed.node, read, affine.inputs[0]), composed)


def _reshaped(node: Node, read: Node, value: str) -> Node:
    """Return the reshape of a value to the shape that a node reads."""
    return Node(
        name=f"{node.name}/reshape",
        layer=read.layer,
        op="reshape",
        inputs=(value,),
        shape=read.shape,
        attributes={"target_shape": list(read.shape[1:])},
        weights={},
    )


def _through(shaped: Node, composed: Composed) -> Composed:
    """Return a composed node that reads a reshape in front of it."""
    node = replace(composed.node, inputs=(shaped.name,))
    return replace(composed, node=node, inserted=(*composed.inserted, (node.name, shaped)))


def _with_shared_bias(node: Node, before: Node, read: Node) -> Composed | None:
    """Return a linear node merged with the bias of the linear node before it.

    That node has other readers too, for which the converter adds the bias in a separate operator.
    """
    bias = before.weights.get("bias")
    channels = _read_channels(node, node.arrays["kernel"])
    if bias is None or bias.shape != (channels,):
        return None
    shift = bias.astype(np.float64)
    composed = _with_front(node, np.ones(channels), shift, np.abs(shift), [])
    if composed is None or (read is not before and None in read.shape[1:]):
        return None
    bare = replace(
        before,
        name=f"{before.name} without bias",
        weights={role: array for role, array in before.weights.items() if role != "bias"},
    )
    added = replace(
        before,
        op="affine",
        inputs=(bare.name,),
        attributes={"axis": -1},
        weights={"scale": np.ones(channels, np.float32), "shift": bias},
        constants={},
    )
    merged = replace(composed, rest=(added,), inserted=((before.name, bare),))
    if read is not before:
        return _through(_reshaped(node, read, bare.name), merged)
    return replace(merged, node=replace(composed.node, inputs=(bare.name,)))


def _biases(
    node: Node, nodes: dict[str, Node], readers: dict[str, list[Node]], outputs: set[str]
) -> list[tuple[np.ndarray, list[Node]]]:
    """Return the biases that a converter may move from a linear node to the next one.

    The first is the node's own bias; the others include the shifts before the node.
    """
    bare = replace(node, weights={r: w for r, w in node.weights.items() if r != "bias"})
    found = [(node.weights["bias"].astype(np.float64), [bare])]
    if node.op in LINEAR_NODES:
        for composed in _in_front(node, nodes, readers, outputs):
            if composed.node.inputs != node.inputs:  # the shift stays for other readers
                continue
            if np.array_equal(composed.node.weights["kernel"], node.weights["kernel"]):
                found.append((composed.node.weights["bias"], [bare, *composed.rest]))
    return found


def _with_front(
    node: Node, scale: np.ndarray, shift: np.ndarray, size: np.ndarray, absorbed: list[Node]
) -> Composed | None:
    """Return the linear node whose output for x is `node`'s for scale · x + shift, if any."""
    arrays = node.arrays
    kernel = arrays["kernel"].astype(np.float64)
    scaled = _scaled_in_front(node, kernel, scale)
    constant, terms = _of_constant(node, kernel, shift), _of_constant(node, np.abs(kernel), size)
    if scaled is None or constant is None or terms is None:
        return None
    bias = arrays.get("bias", np.zeros(constant.shape))
    weights = {**arrays, "kernel": scaled, "bias": bias + constant}
    errors = dict(node.errors)
    if "kernel" in errors:
        of_kernel = _scaled_in_front(node, node.errors["kernel"], np.abs(scale))
        errors["kernel"] = node.errors["kernel"] if of_kernel is None else of_kernel
    return Composed(
        replace(node, weights=weights, constants={}, errors=errors),
        np.abs(bias) + terms,
        tuple(absorbed),
        shifted=bool(shift.any()),
    )


def _of_constant(node: Node, kernel: np.ndarray, values: np.ndarray) -> np.ndarray | None:
    """Return the output of a linear node without bias for an input that is constant per channel.

    None if the output depends on the position, as at the borders of a padded convolution.
    """
    channels = _channels(node, kernel)
    if not values.any():
        return np.zeros(channels)
    # Large enough that the kernel is applied at every border and in the interior.
    reach = [3 * size for size in kernel.shape[: kernel.ndim - 2]]
    dilation = node.attributes.get("dilation", [1] * len(reach))
    sizes = [n * d for n, d in zip(reach, dilation)]
    image = np.broadcast_to(values, (1, *sizes, len(values)))
    plain = replace(
        node,
        weights={"kernel": kernel},
        constants={},
        attributes={**node.attributes, "time_distributed": False},
    )
    y = evaluate_node(plain, [image]).reshape(-1, channels)
    near = np.abs(y - y[0]) <= COMPUTED * np.abs(y).max(initial=0.0)
    return y[0] if np.all(near) else None


def _read_channels(node: Node, kernel: np.ndarray) -> int:
    axis = -1 if node.op == "conv_transpose" else -2
    return int(kernel.shape[axis]) * int(node.attributes.get("groups", 1))


def _scaled_in_front(node: Node, kernel: np.ndarray, scale: np.ndarray) -> np.ndarray | None:
    """Return a kernel multiplied by a factor for each input channel."""
    if np.all(scale == scale[0]):
        return kernel * scale[0]
    if node.attributes.get("groups", 1) != 1:
        return None
    return kernel * (scale if node.op == "conv_transpose" else scale[:, None])


def _channels(node: Node, kernel: np.ndarray) -> int:
    if node.op == "depthwise_conv":
        return math.prod(kernel.shape[-2:])
    return int(kernel.shape[-2 if node.op == "conv_transpose" else -1])


def _scaled(node: Node, kernel: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return a kernel multiplied by a factor for each output channel."""
    if node.op == "depthwise_conv":
        return kernel * scale.reshape(kernel.shape[-2:])
    return kernel * (scale[:, None] if node.op == "conv_transpose" else scale)


def _keeps_channels(node: Node, axes: tuple[int, ...]) -> bool:
    """Return whether a node only moves numbers, each within its channel on the last axes."""
    if node.op == "permute":
        order = node.attributes["axes"]
        return len(axes) == 1 and order[-1] == len(order) - 1
    return node.op in ("reshape", "identity")


def _channel_axes(node: Node, channels: int) -> tuple[int, ...]:
    """Return the sizes of the last axes that together hold the channels; () if none do.

    A reshape may split the channels into several axes, such as the heads of an attention.
    """
    if not node.shape or node.shape[-1] is None:
        return (channels,)
    for count in range(1, len(node.shape)):
        sizes = tuple(size or 0 for size in node.shape[-count:])
        if math.prod(sizes) == channels:
            return sizes
    return ()


def _affine(
    node: Node, channels: int, axes: tuple[int, ...] = ()
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return scale and shift if a node is an affine of the channels, else None.

    Args:
        node: The node.
        channels: The number of channels.
        axes: The sizes of the last axes, if they hold the channels together.
    """
    arrays, axes = node.arrays, axes or (channels,)
    if node.op == "affine":
        axis = node.attributes["axis"]
        place = axis if axis < 0 else axis - len(node.shape)  # from the end
        if not -len(axes) <= place < 0 or axes[place] != arrays["scale"].size:
            return None
        sizes = [size if i == place else 1 for i, size in enumerate(axes, -len(axes))]
        scale, shift = (
            np.broadcast_to(arrays[role].astype(np.float64).reshape(sizes), axes).reshape(-1)
            for role in ("scale", "shift")
        )
        return scale, shift
    if node.op == "negative":
        return -np.ones(channels), np.zeros(channels)
    constant = arrays.get("constant")
    if constant is None or len(node.inputs) != 1 or constant.size not in (1, channels):
        return None
    if constant.size > 1 and constant.shape[-len(axes) :] != axes:
        return None
    vector = np.broadcast_to(constant.astype(np.float64).reshape(-1), (channels,))
    one, none = np.ones(channels), np.zeros(channels)
    first = node.attributes.get("constant_first", False)
    with np.errstate(divide="ignore"):
        inverse = 1 / vector
    affines = {
        "multiply": (vector, none),
        "divide": None if first or not np.isfinite(inverse).all() else (inverse, none),
        "add": (one, vector),
        "subtract": (-one, vector) if first else (one, -vector),
    }
    return affines.get(node.op)
