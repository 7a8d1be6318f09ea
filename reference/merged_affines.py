"""Finds affines that a converter merged into a linear layer next to them.

Examples are a norm that could not be folded and a custom layer that scales its input. Once merged,
y = s (W x + b) + t has the weights s W and s b + t, and y = W (s x + t) + b has W s and b + W t,
unless padding inserts zeros instead of t. Likewise (x + a) + b is x + (a + b). A bias before a
linear layer is such a t, so a converter may move the biases of two consecutive linear layers to the
second one. The weights differ from the network's, but the composition does not. Such a layer is
identified by its composed weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..artifacts.graphs.base import ArtifactGraph, GraphTensor
from ..artifacts.network import Network, Node
from ..artifacts.precisions import half_rounding
from .file_weights import WeightMatch, file_weight, forms, match_weights
from .network import evaluate_node
from .operators.linear import LINEAR

# A converter computes s, s W and s b + t in float32: a few roundings, relative to the size of the
# terms.
_COMPUTED = 16 * 2.0**-24

_LINEAR = ("conv", "depthwise_conv", "dense", "conv_transpose")


def with_merged_affines(network: Network, graph: ArtifactGraph, *, rounded: bool = True) -> Network:
    """Return the network with the same affines merged as in the file.

    Args:
        network: The folded network.
        graph: The file.
        rounded: Whether merged layers get the weights of the file, which may be rounded to
            integers; otherwise they get the exact ones.

    Returns:
        The network, with merged layers; the nodes of their affines become identities. A hard
        sigmoid, relu6(x + 3) / 6, and an average become several nodes if one of them is merged.
    """
    network = _with_joined_constants(network, graph, rounded)
    divided = replace(network, nodes=tuple(p for n in network.nodes for p in _parts(n)))
    replaced, inserted = _found(divided, graph, rounded)
    if not replaced:
        return network
    result: list[Node] = []
    for node in network.nodes:
        parts = _parts(node)
        if not any(part.name in replaced for part in parts):
            parts = (node,)
        for part in parts:
            result += [inserted[part.name]] if part.name in inserted else []
            result.append(replaced.get(part.name, part))
    return _without_unread(replace(network, nodes=tuple(result)), network)


def _with_joined_constants(network: Network, graph: ArtifactGraph, rounded: bool) -> Network:
    """Return the network with consecutive sums, or products, with constants as in the file."""
    users, outputs = network.users(), set(network.outputs.values())
    replaced: dict[str, Node] = {}
    for first in network.nodes:
        joined = _of_constant_alone(first)
        if first.name in replaced or joined is None:
            continue
        operator, total = joined
        size, chain = np.abs(total), [first]
        while chain[-1].name not in outputs and len(users.get(chain[-1].name, [])) == 1:
            last = users[chain[-1].name][0]
            joined = _of_constant_alone(last)
            if joined is None or joined[0] != operator:
                break
            chain.append(last)
            combine = np.add if operator == "add" else np.multiply
            total, size = combine(total, joined[1]), combine(size, np.abs(joined[1]))
        if len(chain) > 1:
            found = _joined(chain, operator, total, size, graph, network)
            if found and not rounded:
                exact = {"constant": total}
                found[chain[-1].name] = replace(found[chain[-1].name], weights=exact)
            replaced |= found
    nodes = tuple(replaced.get(node.name, node) for node in network.nodes)
    return replace(network, nodes=nodes) if replaced else network


def _of_constant_alone(node: Node) -> tuple[str, np.ndarray] | None:
    """Return the constant that a node adds or multiplies by, and which of the two it does."""
    constant = node.arrays.get("constant")
    if constant is None or len(node.inputs) != 1:
        return None
    value = constant.astype(np.float64)
    if node.op in ("add", "multiply"):
        return node.op, value
    if node.attributes.get("constant_first") or not np.all(value):
        return None
    return {"subtract": ("add", -value), "divide": ("multiply", 1 / value)}.get(node.op)


def _joined(
    chain: Sequence[Node],
    operator: str,
    total: np.ndarray,
    size: np.ndarray,
    graph: ArtifactGraph,
    network: Network,
) -> dict[str, Node]:
    """Return replacements of a chain of sums or products if the file has one for all of them."""
    alone = replace(
        network,
        nodes=tuple(replace(n, weights={"constant": n.arrays["constant"]}) for n in chain),
    )
    if all(match.state == "equal" for match in match_weights(alone, graph)):
        return {}
    last = replace(
        chain[-1], op=operator, weights={"constant": total}, constants={}, attributes={}, errors={}
    )
    found = _equal_constants(last, "constant", size, graph)
    if not found:
        return {}
    nearest = min((array for _, array in found), key=lambda array: np.abs(array - total).sum())
    identities = {node.name: node.as_identity() for node in chain[:-1]}
    return {**identities, last.name: replace(last, weights={"constant": nearest})}


def _without_unread(network: Network, before: Network) -> Network:
    """Return a network without the nodes whose last readers now read another value."""
    kept = {*network.readers(), *network.outputs.values()}
    gone = before.readers().keys() - kept
    return replace(network, nodes=tuple(node for node in network.nodes if node.name not in gone))


def _parts(node: Node) -> tuple[Node, ...]:
    """Return the operations of a hard sigmoid or an average; any other node as it is."""
    if node.op == "average":
        total, part = f"{node.name}/sum", np.full((), 1 / len(node.inputs), np.float32)
        return (
            replace(node, name=total, op="add"),
            replace(node, op="multiply", inputs=(total,), constants={"constant": part}),
        )
    if node.op != "hard_sigmoid":
        return (node,)
    shifted, clipped = f"{node.name}/shifted", f"{node.name}/clipped"
    three, sixth = ({"constant": np.full((), x, np.float32)} for x in (3, 1 / 6))
    return (
        replace(node, name=shifted, op="add", constants=three),
        replace(node, name=clipped, op="relu", inputs=(shifted,), attributes={"max_value": 6.0}),
        replace(node, op="multiply", inputs=(clipped,), attributes={}, constants=sixth),
    )


def _found(
    network: Network, graph: ArtifactGraph, rounded: bool
) -> tuple[dict[str, Node], dict[str, Node]]:
    """Return the nodes to replace and those to insert, by the name of the node they precede."""
    readers = network.users()
    outputs = set(network.outputs.values())
    nodes = {node.name: node for node in network.nodes}
    followed = {
        node.name: merged
        for node in network.nodes
        if node.op in _LINEAR and (merged := _merged(node, nodes, readers, outputs))
    }
    alone = replace(network, nodes=tuple(n for n in network.nodes if n.name in followed))
    equal: dict[str, bool] = {}
    for match in match_weights(alone, graph) if followed else ():
        equal[match.node] = equal.get(match.node, True) and match.state == "equal"
    replaced: dict[str, Node] = {}
    inserted: dict[str, Node] = {}
    for name, compositions in followed.items():
        for composed in compositions:
            # Equal weights are not merged, unless the file adds a bias to a layer that has none.
            added = composed.shifted and not nodes[name].arrays.get("bias", np.zeros(1)).any()
            if equal.get(name) and not added:
                continue
            found = _in_file(composed, graph, together=bool(equal.get(name)))
            if found is not None:
                replaced[name] = found if rounded else composed.node
                replaced |= {n.name: n for n in composed.rest}
                inserted |= dict(composed.inserted)
                break
    for node in network.nodes:
        if node.op in _LINEAR and node.name not in replaced:
            replaced |= _with_moved_bias(node, readers, outputs, graph)
    return replaced, inserted


def _with_moved_bias(
    node: Node, readers: dict[str, list[Node]], outputs: set[str], graph: ArtifactGraph
) -> dict[str, Node]:
    """Return replacements where the file adds a bias together with a larger constant behind it.

    An example are the positions that are added to projected patches.
    """
    bias = node.arrays.get("bias")
    current = node
    while current.name not in outputs and len(readers.get(current.name, [])) == 1:
        current = readers[current.name][0]
        if current.op not in ("reshape", "identity"):
            break
    constant = current.arrays.get("constant")
    if bias is None or constant is None or current.op != "add" or len(current.inputs) != 1:
        return {}
    if constant.size <= bias.size or constant.shape[-1:] != bias.shape:
        return {}
    total = constant.astype(np.float64) + bias.astype(np.float64)
    size = np.abs(constant).astype(np.float64) + np.abs(bias)
    others = {role: array for role, array in current.constants.items() if role != "constant"}
    summed = replace(
        current, weights={**current.weights, "constant": total}, constants=others, errors={}
    )
    found = _equal_constants(summed, "constant", size, graph)
    alone = replace(current, weights={**current.weights, "constant": constant}, errors={})
    separate = {key for key, _ in _equal_constants(alone, "constant", np.abs(constant), graph)}
    found = [(key, array) for key, array in found if key not in separate]
    if not found:
        return {}
    bare = {role: array for role, array in node.weights.items() if role != "bias"}
    weights = {**summed.weights, "constant": found[0][1]}
    return {
        node.name: replace(node, weights=bare),
        current.name: replace(summed, weights=weights),
    }


def _merged(
    node: Node, nodes: dict[str, Node], readers: dict[str, list[Node]], outputs: set[str]
) -> list[_Composed]:
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
        for front in _in_front(each.node, nodes, readers)
    ]
    return both + behind + _in_front(node, nodes, readers)


@dataclass(frozen=True)
class _Composed:
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


def _compositions(node: Node, readers: dict[str, list[Node]], outputs: set[str]) -> list[_Composed]:
    """Return a node merged with the affine nodes after it, the longest sequence first."""
    if node.attributes.get("data_format") == "channels_first":
        return []
    kernel = node.arrays["kernel"].astype(np.float64)
    channels = _channels(node, kernel)
    bias = node.arrays.get("bias", np.zeros(channels))
    scale, shift = np.ones(channels), np.zeros(channels)
    size = np.abs(bias).astype(np.float64)
    found: list[_Composed] = []
    absorbed: list[Node] = []
    current: Node = node
    axes: tuple[int, ...] = (channels,)
    while current.name not in outputs and len(readers.get(current.name, [])) == 1:
        current = readers[current.name][0]
        if current.op in ("reshape", "identity") and (after := _channel_axes(current, channels)):
            axes = after
            continue
        affine = _affine(current, channels, axes)
        if affine is None:
            break
        scale, shift = affine[0] * scale, affine[0] * shift + affine[1]
        size = np.abs(affine[0]) * size + np.abs(affine[1])
        absorbed.append(current.as_identity())
        weights = {"kernel": _scaled(node, kernel, scale), "bias": scale * bias + shift}
        errors = {role: np.abs(scale) * error for role, error in node.errors.items()}
        if "kernel" in errors:
            errors["kernel"] = _scaled(node, node.errors["kernel"], np.abs(scale))
        composed = replace(node, weights=weights, constants={}, errors=errors)
        only_shifted = bool(np.all(scale == 1))
        found.append(_Composed(composed, size, tuple(absorbed), shifted=only_shifted))
    return found[::-1]


def _in_front(
    node: Node, nodes: dict[str, Node], readers: dict[str, list[Node]]
) -> list[_Composed]:
    """Return a node merged with the affine nodes before it, the longest sequence first.

    The sequence ends at a linear node, whose bias counts as a shift.
    """
    if node.attributes.get("data_format") == "channels_first":
        return []
    arrays = node.arrays
    channels = _read_channels(node, arrays["kernel"])
    scale, shift, size = np.ones(channels), np.zeros(channels), np.zeros(channels)
    absorbed: list[Node] = []
    found: list[_Composed | None] = []
    before = nodes.get(node.inputs[0])
    while before is not None and len(readers[before.name]) == 1:
        bias = before.weights.get("bias")
        affine = _affine(before, channels)
        if before.op == "identity":
            before = nodes.get(before.inputs[0])
            continue
        if affine is not None:
            # s (a x + b) + t
            shift, size = scale * affine[1] + shift, np.abs(scale * affine[1]) + size
            scale = scale * affine[0]
            absorbed.append(before.as_identity())
            found.append(_with_front(node, scale, shift, size, absorbed))
            before = nodes.get(before.inputs[0])
            continue
        if before.op in LINEAR and bias is not None and bias.shape == (channels,):
            for more, rest in _biases(before, nodes, readers):
                moved, grown = scale * more + shift, np.abs(scale * more) + size
                found.append(_with_front(node, scale, moved, grown, [*absorbed, *rest]))
        break
    else:
        if before is not None and not absorbed:
            found += [_with_shared_bias(node, before), _with_shared_affine(node, before)]
    return [each for each in found[::-1] if each is not None]


def _with_shared_affine(node: Node, before: Node) -> _Composed | None:
    """Return a linear node merged with the affine before it, which has other readers too."""
    affine = _affine(before, _read_channels(node, node.arrays["kernel"]))
    if affine is None or len(node.inputs) != 1:
        return None
    scale, shift = affine
    composed = _with_front(node, scale, shift, np.abs(shift), [])
    if composed is None:
        return None
    return replace(composed, node=replace(composed.node, inputs=before.inputs))


def _with_shared_bias(node: Node, before: Node) -> _Composed | None:
    """Return a linear node merged with the bias of the linear node before it.

    That node has other readers too, for which the converter adds the bias in a separate operator.
    """
    bias = before.weights.get("bias")
    channels = _read_channels(node, node.arrays["kernel"])
    if before.op not in LINEAR or bias is None or bias.shape != (channels,):
        return None
    shift = bias.astype(np.float64)
    composed = _with_front(node, np.ones(channels), shift, np.abs(shift), [])
    if composed is None or before.name not in node.inputs:
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
    return replace(
        composed,
        node=replace(composed.node, inputs=(bare.name,)),
        rest=(added,),
        inserted=((before.name, bare),),
    )


def _biases(
    node: Node, nodes: dict[str, Node], readers: dict[str, list[Node]]
) -> list[tuple[np.ndarray, list[Node]]]:
    """Return the biases that a converter may move from a linear node to the next one.

    The first is the node's own bias; the others include the shifts before the node.
    """
    bare = replace(node, weights={r: w for r, w in node.weights.items() if r != "bias"})
    found = [(node.weights["bias"].astype(np.float64), [bare])]
    if node.op in _LINEAR:
        for composed in _in_front(node, nodes, readers):
            if np.array_equal(composed.node.weights["kernel"], node.weights["kernel"]):
                found.append((composed.node.weights["bias"], [bare, *composed.rest]))
    return found


def _with_front(
    node: Node, scale: np.ndarray, shift: np.ndarray, size: np.ndarray, absorbed: list[Node]
) -> _Composed | None:
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
    return _Composed(
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
    near = np.abs(y - y[0]) <= _COMPUTED * np.abs(y).max(initial=0.0)
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
        return int(np.prod(kernel.shape[-2:]))
    return int(kernel.shape[-2 if node.op == "conv_transpose" else -1])


def _scaled(node: Node, kernel: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return a kernel multiplied by a factor for each output channel."""
    if node.op == "depthwise_conv":
        return kernel * scale.reshape(kernel.shape[-2:])
    return kernel * (scale[:, None] if node.op == "conv_transpose" else scale)


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
    whole = len(axes) == 1
    if whole and node.op == "affine" and node.attributes["axis"] in (-1, len(node.shape) - 1):
        return arrays["scale"].astype(np.float64), arrays["shift"].astype(np.float64)
    constant = arrays.get("constant")
    if constant is None or len(node.inputs) != 1 or constant.size not in (1, channels):
        return None
    if constant.size > 1 and constant.shape[-len(axes) :] != axes:
        return None
    vector = np.broadcast_to(constant.astype(np.float64).reshape(-1), (channels,))
    first = node.attributes.get("constant_first", False)
    one, none = np.ones(channels), np.zeros(channels)
    with np.errstate(divide="ignore"):
        inverse = 1 / vector
    affines = {
        "multiply": (vector, none),
        "divide": None if first or not np.isfinite(inverse).all() else (inverse, none),
        "add": (one, vector),
        "subtract": (-one, vector) if first else (one, -vector),
    }
    return affines.get(node.op)


def _in_file(merged: _Composed, graph: ArtifactGraph, *, together: bool) -> Node | None:
    """Return a composed node with the weights of the file; None if the file has no such weights.

    Args:
        merged: The composed node.
        graph: The file.
        together: Whether one operator must read both weights.
    """
    node = merged.node
    kernels = _equal_constants(node, "kernel", np.abs(node.weights["kernel"]), graph)
    biases = _equal_constants(node, "bias", merged.size, graph)
    if not kernels or (merged.shifted and not biases):
        return None
    # Several layers may have equal weights.
    pairs = [{"kernel": kernel, "bias": bias} for kernel in kernels for bias in biases]
    joined = (p for p in pairs if _read_together(graph, [key for key, _ in p.values()]))
    found = next(joined, None)
    if found is None:
        if together:
            return None
        found = (pairs or [{"kernel": kernels[0]}])[0]
    weights = {role: array for role, (_, array) in found.items()}
    return replace(node, weights={**node.weights, **weights}, errors={})


def _equal_constants(
    node: Node, role: str, size: np.ndarray, graph: ArtifactGraph
) -> list[tuple[str, np.ndarray]]:
    """Return the key and the numbers of each constant of a file that equals a composed weight.

    Args:
        node: The composed node.
        role: Which weight.
        size: Sum of the absolute values that were added to each of its elements.
        graph: The file.
    """
    wanted, found = node.weights[role], []
    for match in like(node, role, graph.constants):
        got = file_weight(match, wanted.shape)
        assert match.tensor is not None
        allowed = allowed_error(match.tensor, match, wanted, size) + node.errors.get(role, 0.0)
        if np.all(np.abs(got - wanted) <= allowed):
            found.append((match.tensor.key, got.astype(np.float32)))
    return found


def _read_together(graph: ArtifactGraph, keys: Sequence[str]) -> bool:
    """Return whether one operator reads all of these constants, possibly dequantized."""
    sources = {key: op.inputs[0] for op in graph.ops if len(op.inputs) for key in op.outputs}
    return any(
        set(keys) <= {*op.inputs, *(sources.get(key, "") for key in op.inputs)} for op in graph.ops
    )


def like(
    node: Node,
    role: str,
    constants: Sequence[GraphTensor],
    features: tuple[int, ...] = (),
) -> Iterator[WeightMatch]:
    """Yield every constant as large as a weight, in every order of its axes."""
    shape = node.weights[role].shape
    for tensor in constants:
        if tensor.data is None or tensor.data.size != int(np.prod(shape)):
            continue
        for view, axes in dict.fromkeys(forms(node.op, role, shape, features)):
            yield WeightMatch(node.name, node.layer, role, "", tensor, axes, view)


def allowed_error(
    tensor: GraphTensor, match: WeightMatch, wanted: np.ndarray, size: np.ndarray
) -> np.ndarray:
    """Return the bound on the error of a composed weight."""
    assert tensor.data is not None
    computed = _COMPUTED * size
    if tensor.data.dtype == np.float16:
        return np.asarray(computed + half_rounding(np.abs(wanted)))
    if tensor.data.dtype.kind == "f":
        return computed
    if tensor.quantization is None:
        return np.full(wanted.shape, -1.0)
    steps = np.broadcast_to(tensor.quantization.step(tensor.data.ndim), tensor.data.shape)
    step = replace(tensor, data=steps, quantization=None)
    return np.asarray(computed * 2 + 0.5 * file_weight(replace(match, tensor=step), wanted.shape))
