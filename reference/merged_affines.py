"""Finds affines that a converter merged into a linear layer next to them.

Examples are a norm that could not be folded and a custom layer that scales its input. The weights
differ from the network's, but the composition does not (`composed_layers`). Such a layer is
identified by its composed weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..artifacts.graphs.base import ArtifactGraph, GraphTensor
from ..artifacts.network import Network, Node
from ..artifacts.precisions import UNIT_ROUNDOFF, half_rounding
from .composed_layers import COMPUTED, LINEAR_NODES, Composed, compositions_of
from .file_weights import WeightMatch, file_weight, match_weights
from .weight_forms import forms


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
    replaced, inserted = _found(network, graph, rounded)
    once = _with_repeats_once(network)
    if once is not network:
        found = _found(once, graph, rounded)
        if len(found[0]) > len(replaced):
            network, (replaced, inserted) = once, found
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


def _with_repeats_once(network: Network) -> Network:
    """Return the network with equal operations behind a linear layer computed once.

    A converter computes them once, and can then merge them with the layer: sort and argsort, for
    example, both negate it.
    """
    linear = {node.name for node in network.nodes if node.op in LINEAR_NODES}
    first: dict[tuple[Any, ...], str] = {}
    nodes = []
    for node in network.nodes:
        if len(node.inputs) == 1 and node.inputs[0] in linear:
            arrays = [(role, a.shape, a.tobytes()) for role, a in sorted(node.arrays.items())]
            attributes = repr(sorted(node.attributes.items()))
            key = (node.op, node.inputs, node.shape, attributes, *arrays)
            if node.op not in (*LINEAR_NODES, "opaque") and key in first:
                node = replace(node.as_identity(), inputs=(first[key],))
            first.setdefault(key, node.name)
        nodes.append(node)
    changed = any(new is not old for new, old in zip(nodes, network.nodes, strict=True))
    return replace(network, nodes=tuple(nodes)) if changed else network


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
    read_before = before.readers().keys()
    while True:
        kept = {*network.readers(), *network.outputs.values()}
        nodes = tuple(n for n in network.nodes if n.name in kept or n.name not in read_before)
        if len(nodes) == len(network.nodes):
            return network
        network = replace(network, nodes=nodes)


def _parts(node: Node) -> tuple[Node, ...]:
    """Return the operations of a hard sigmoid or an average; any other node as it is."""
    if node.op == "average":
        total = replace(node, name=f"{node.name}/sum", op="add")
        return (total, _divided(node, total.name, len(node.inputs)))
    if node.op != "hard_sigmoid":
        return (node,)
    shifted, clipped = f"{node.name}/shifted", f"{node.name}/clipped"
    three = {"constant": np.full((), 3, np.float32)}
    return (
        replace(node, name=shifted, op="add", constants=three),
        replace(node, name=clipped, op="relu", inputs=(shifted,), attributes={"max_value": 6.0}),
        _divided(node, clipped, 6),
    )


def _divided(node: Node, value: str, by: int) -> Node:
    """Return a quotient with a node's name, which a file may compute as a product in float32."""
    part = 1 / by
    error = {"constant_error": UNIT_ROUNDOFF["float32"] * part}
    constants = {"constant": np.full((), part)}
    return replace(
        node, op="multiply", inputs=(value,), attributes=error, constants=constants, weights={}
    )


def _found(
    network: Network, graph: ArtifactGraph, rounded: bool
) -> tuple[dict[str, Node], dict[str, Node]]:
    """Return the nodes to replace and those to insert, by the name of the node they precede."""
    network = replace(network, nodes=tuple(p for n in network.nodes for p in _parts(n)))
    readers = network.users()
    outputs = set(network.outputs.values())
    nodes = {node.name: node for node in network.nodes}
    followed = {
        node.name: found
        for node in network.nodes
        if node.op in LINEAR_NODES and (found := compositions_of(node, nodes, readers, outputs))
    }
    # The tables of lookups are not the kernels of linear layers with the same numbers.
    alone = replace(
        network,
        nodes=tuple(n for n in network.nodes if n.name in followed or n.op == "gather"),
    )
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
            filed = _in_file(composed, graph, together=bool(equal.get(name)))
            if filed is not None:
                replaced[name] = filed if rounded else composed.node
                replaced |= {n.name: n for n in composed.rest}
                inserted |= dict(composed.inserted)
                break
    for node in network.nodes:
        if node.op in LINEAR_NODES and node.name not in replaced:
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


def _in_file(merged: Composed, graph: ArtifactGraph, *, together: bool) -> Node | None:
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
    computed = COMPUTED * size
    if tensor.data.dtype == np.float16:
        return np.asarray(computed + half_rounding(np.abs(wanted)))
    if tensor.data.dtype.kind == "f":
        return computed
    if tensor.quantization is None:
        return np.full(wanted.shape, -1.0)
    steps = np.broadcast_to(tensor.quantization.step(tensor.data.ndim), tensor.data.shape)
    step = replace(tensor, data=steps, quantization=None)
    return np.asarray(computed * 2 + 0.5 * file_weight(replace(match, tensor=step), wanted.shape))
