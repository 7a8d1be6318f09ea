"""Finds the first node at fault, after a pass over the network has matched tensors to nodes.

A node is *accounted for* if it has a tensor, no output depends on it (`constant_values`), or all
nodes that read it are accounted for. The first node that is not, although everything it reads is
right, is the culprit.
"""

from __future__ import annotations

from ...artifacts.network import Node
from ...reference.constant_values import needless_nodes
from ...reference.operators.linear import LINEAR
from .evaluation import Evaluation
from .loops import LOOPS
from .matching import LINEAR_KINDS, MEANINGFUL, distance, meaningful, within
from .op_results import Culprit
from .storage import Wide


def first_culprit(evaluation: Evaluation) -> Culprit | None:
    """Return the first node that is not accounted for; None if all are."""
    readers = evaluation.network.readers()
    accounted = _accounted(evaluation, readers)
    wrong = [node for node in evaluation.network.nodes if node.name not in accounted]
    if not wrong:
        return None
    chain = _chain(evaluation, wrong[0], {node.name for node in wrong}, readers)
    return _described(evaluation, chain)


def _accounted(evaluation: Evaluation, readers: dict[str, list[Node]]) -> set[str]:
    """Return the nodes that are accounted for."""
    outputs, mapped = set(evaluation.network.outputs.values()), evaluation.mapped
    accounted = _inside_loops(evaluation, readers) | needless_nodes(evaluation.network)
    fused: set[str] = set()  # ends in a tensor with no other linear op in between
    for node in reversed(evaluation.network.nodes):
        after = readers.get(node.name, [])
        if all(
            reader.name not in evaluation.exact
            or (reader.op not in LINEAR and (reader.name in mapped or reader.name in fused))
            for reader in after
        ):
            fused.add(node.name)
        behind = node.name not in outputs and after and all(r.name in accounted for r in after)
        # No op computes two linear layers: a bound propagated through both proves nothing.
        if (
            node.name in mapped
            or node.name not in evaluation.exact
            or (behind and (node.op not in LINEAR or node.name in fused))
        ):
            accounted.add(node.name)
    return accounted


def _inside_loops(evaluation: Evaluation, readers: dict[str, list[Node]]) -> set[str]:
    """Return the nodes inside layers that the file computes in a loop, except their outputs.

    The network holds the steps of such a layer one by one. Only the layer's output is compared.
    """
    found: set[str] = set()
    for nodes in _in_loops(evaluation).values():
        own = {node.name for node in nodes}
        inner = (n for n in own if readers.get(n) and all(r.name in own for r in readers[n]))
        found.update(inner)
    return found - set(evaluation.network.outputs.values())


# A recurrent layer of a single step has one linear node and several of these.
_GATES = ("sigmoid", "hard_sigmoid", "tanh")


def _in_loops(evaluation: Evaluation) -> dict[str, list[Node]]:
    """Return the layers that the file computes in a loop, which exposes no tensors."""
    if not any(op.kind in LOOPS for op in evaluation.tensors.graph.ops):
        return {}
    layers: dict[str, list[Node]] = {}
    for node in evaluation.network.nodes:
        layers.setdefault(node.layer, []).append(node)
    return {
        layer: nodes
        for layer, nodes in layers.items()
        if (linear := [node.name for node in nodes if node.op in LINEAR])
        and (len(linear) > 1 or sum(node.op in _GATES for node in nodes) > 1)
        and not any(name in evaluation.mapped for name in linear)
    }


def _chain(
    evaluation: Evaluation, first: Node, wrong: set[str], readers: dict[str, list[Node]]
) -> list[Node]:
    """Return the nodes that one op may compute, starting from a node at fault."""
    chain = [first]
    while True:
        after = readers.get(chain[-1].name, [])
        if len(after) != 1 or len(after[0].inputs) != 1 or after[0].weights:
            return chain
        if after[0].name not in wrong or after[0].name not in evaluation.exact:
            return chain
        chain.append(after[0])


def _described(evaluation: Evaluation, chain: list[Node]) -> Culprit:
    """Find the file's op and tensor for a node at fault.

    Among the tensors without a node, one within the bound is preferred, then the earliest in the
    file, then the nearest. A node that is an output alone has the tensor of that output. If an
    activation is at fault and no op computes it, the op before it lacks it.

    A bound as wide as the values, such as the step of integers that are far larger than these, says
    nothing about a tensor. Then one is within it if it is computed from what the node reads.
    """
    tensors = evaluation.tensors
    linear = any(node.op in LINEAR for node in chain)
    in_loop = chain[0].layer in _in_loops(evaluation)
    best: tuple[bool, int, float, int, str] | None = None
    mapped = set(evaluation.mapped.values())
    depths = tensors.depths(mapped | tensors.copies(evaluation.numbers()))
    for place, node in enumerate(chain):
        expected, allowed = evaluation.exact[node.name], evaluation.allowed[node.name]
        output = evaluation.outputs.get(node.name) if len(chain) == 1 and not in_loop else None
        keys = tensors.of_size(expected.size)
        for key in [output] if output in keys and output in depths else keys:
            if key not in depths:
                continue
            op = tensors.producer(key)
            # A function's own op reads a tensor that is accounted for, and multiplies by no kernel.
            behind = depths[key] > 0 or (op is not None and op.kind in LINEAR_KINDS)
            view = tensors.closest(key, expected)
            target, limit = tensors.held(key, node, expected, allowed)
            gap, depth = distance(view, expected), depths[key]
            off = not within(view, target, limit)
            possible = key in tensors.looped if in_loop else linear or not behind or key == output
            if not meaningful(target.reshape(-1), limit.reshape(-1)):
                read = not off and tensors.computed_from(key, evaluation.read_by(node), mapped)
                off, depth = (False, 0) if read or gap <= MEANINGFUL else (True, depth)
                possible = possible or (read and not in_loop)
            if possible:
                found = (off, depth, gap, place, key)
                best = found if best is None else min(best, found)
    place, key = (best[3], tensors.computed(best[4])) if best else (0, "")
    parts = chain[: place + 1]
    if best is None and not linear:
        parts, key = _without_function(evaluation, chain[0])
    segment = tuple(evaluation.as_filed(node) for node in parts)
    last = segment[-1]
    expected, allowed = evaluation.exact[last.name], evaluation.allowed[last.name]
    got = tensors.closest(key, expected) if key else None
    storage = tensors.storage(key) if key else Wide()
    expected, allowed = storage.held(last, expected, allowed)
    needed = {name for node in segment for name in node.inputs} - {n.name for n in segment}
    return Culprit(
        node=segment[0],
        layer=chain[0].layer,
        segment=segment,
        key=key,
        op=tensors.producer(key) if key else None,
        storage=storage,
        inputs={name: evaluation.value[name] for name in needed},
        expected=expected,
        allowed=allowed,
        got=got,
    )


def _without_function(evaluation: Evaluation, node: Node) -> tuple[list[Node], str]:
    """Return the nodes of the op that should also compute a function, and that op's tensor."""
    before = evaluation.mapped.get(node.inputs[0], "") if len(node.inputs) == 1 else ""
    if not before or evaluation.tensors.arrays[before].size != evaluation.exact[node.name].size:
        return [node], ""
    source = next(n for n in evaluation.network.nodes if n.name == node.inputs[0])
    return [source, node], before
