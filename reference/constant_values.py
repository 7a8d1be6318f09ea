"""Values that do not depend on the inputs, as after a product with zeros.

A converter replaces x · 0 by a constant and drops what only x was computed for. An example is the
last norm of a residual branch before its training, or the forget gate in the first step of an LSTM.
"""

from __future__ import annotations

from ..artifacts.network import Network
from .operators.linear import LINEAR


def constant_nodes(network: Network) -> set[str]:
    """Return the nodes whose values do not depend on the inputs."""
    found: set[str] = set()
    for node in network.nodes:
        arrays = node.arrays
        role = {"affine": "scale", "multiply": "constant"}.get(node.op, "kernel")
        zero = (node.op in ("affine", "multiply") or node.op in LINEAR) and role in arrays
        zero = zero and not arrays[role].any()
        # A "constant" reads a value for the number of samples alone.
        if node.op == "constant" or zero or all(name in found for name in node.inputs):
            found.add(node.name)
    return found


def needless_nodes(network: Network) -> set[str]:
    """Return these nodes, and those that only they are computed from."""
    found, readers = constant_nodes(network), network.users()
    outputs = set(network.outputs.values())
    for node in reversed(network.nodes):
        after = readers.get(node.name, [])
        if node.name not in outputs and after and all(r.name in found for r in after):
            found.add(node.name)
    return found
