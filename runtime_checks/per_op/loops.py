"""Which values of a recurrent layer the loop of a file may return.

The network has all steps of such a layer one by one. A loop returns the values after its last step,
and the sequence of the values of all steps. The state of an earlier step may be close to the last
one, so numbers do not distinguish them where the bound is wide.
"""

from __future__ import annotations

from ...artifacts.graphs.base import ArtifactGraph
from ...artifacts.network import Network, Node
from ...reference.integer.onnx_moving import MOVING
from ...reference.integer.tflite_moving import MOVING_OPS
from ...reference.operators.linear import LINEAR
from ...reference.operators.shaping import SHAPING

# Ops that contain a subgraph, and recurrent layers in one op. The former read values of the
# surrounding graph that are not among their inputs.
LOOPS = {
    "WHILE",
    "IF",
    "UNIDIRECTIONAL_SEQUENCE_LSTM",
    "BIDIRECTIONAL_SEQUENCE_LSTM",
    "UNIDIRECTIONAL_SEQUENCE_RNN",
    "RNN",
    "Loop",
    "Scan",
    "If",
    "LSTM",
    "GRU",
}


def results_of_loops(graph: ArtifactGraph) -> frozenset[str]:
    """Return the tensors that loops return, and those that hold their numbers in another order."""
    found: set[str] = set()
    for op in graph.ops:
        moves = op.kind in MOVING or op.kind in MOVING_OPS
        if op.kind in LOOPS or (moves and op.inputs[0] in found):
            found.update(op.outputs)
    return frozenset(found)


def inside_loops(network: Network) -> frozenset[str]:
    """Return the nodes that no loop returns, of layers with more than one linear node.

    These are the nodes on which a later linear node of the layer depends, reshaped or not, and
    those that the layer computes with.
    """
    linear: dict[str, int] = {}
    for node in network.nodes:
        linear[node.layer] = linear.get(node.layer, 0) + (node.op in LINEAR)
    nodes = {node.name: node for node in network.nodes}
    inside: set[str] = set()
    before_linear: set[str] = set()
    for node in reversed(network.nodes):
        if linear[node.layer] < 2:
            continue
        for other in (nodes[name] for name in node.inputs if name in nodes):
            if other.layer != node.layer:
                continue
            if node.op in LINEAR or node.name in before_linear:
                before_linear.add(other.name)
            if not _moves(node) and node.op != "concatenate":
                inside.add(other.name)
    for node in network.nodes:
        source = nodes.get(node.inputs[0]) if node.inputs else None
        moved = source is not None and source.layer == node.layer and _moves(node)
        if moved and source is not None and source.name in before_linear:
            before_linear.add(node.name)
    return frozenset(inside | before_linear)


def _moves(node: Node) -> bool:
    return node.op in SHAPING and len(node.inputs) == 1
