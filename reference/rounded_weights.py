"""The network with the file's own weights, after these were found to be correct.

A file of lower precision rounds the weights. That rounding is requested and not the fault of an op,
so the expected values are computed from the rounded weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..artifacts.graphs.base import ArtifactGraph, GraphTensor
from ..artifacts.network import Network, Node
from ..artifacts.precisions import UNIT_ROUNDOFF, half_rounding
from ..artifacts.ranges import GREATEST_HALF
from .file_weights import WeightMatch, file_weight, match_weights
from .operators.activations import ULPS
from .operators.base import constant_error
from .operators.indexing import INDEXING

# TFLite's option of operators with integer weights and float inputs.
_ASYMMETRIC = "asymmetricQuantizeInputs"

# Functions that are written with constants of their formula, such as 1/6.
_FORMULAS = ("elu", "gelu", "hard_sigmoid", "hard_silu", "selu")


@dataclass(frozen=True)
class RoundedWeights:
    """A network with rounded weights.

    Attributes:
        nodes: Node name to the node with the file's weights; nodes with float32 weights are absent.
        hybrid: The nodes with integer weights and float inputs, which they quantize at run time
            (dynamic range), and for each whether that may be symmetric about zero.
        complete: Whether every weight of the network was found in the file, except for single
            numbers, which a file may have as attributes, such as the slope of a leaky relu.
    """

    nodes: Mapping[str, Node]
    hybrid: Mapping[str, bool]
    complete: bool

    @classmethod
    def of(
        cls, network: Network, weights: Sequence[WeightMatch], graph: ArtifactGraph
    ) -> RoundedWeights:
        """Collect the file's weights that are within half a step of the network's."""
        network, weights = _with_constants(network, weights, graph)
        nodes = {node.name: node for node in network.nodes}
        arrays: dict[str, dict[str, np.ndarray]] = {}
        integer: dict[str, set[str]] = {}
        for match in weights:
            data = None if match.tensor is None else match.tensor.data
            if data is not None and data.dtype.kind in "iu":
                integer.setdefault(match.node, set()).add(match.role)
            if data is None or not (match.rounded or data.dtype != np.float32):
                continue
            weight = nodes[match.node].weights[match.role]
            if match.state == "equal":
                arrays.setdefault(match.node, {})[match.role] = _held(match, weight.shape)
            elif match.state == "altered" and not match.remark and data.dtype.kind in "iu":
                found = _unaltered(match, weight)
                arrays.setdefault(match.node, {})[match.role] = found
        replaced = {
            name: replace(nodes[name], weights={**nodes[name].weights, **rounded})
            for name, rounded in arrays.items()
        }
        if any(match.tensor is not None and match.tensor.dtype == np.float16 for match in weights):
            # A result that equals a constant is stored in half precision, even where that is not.
            exact = {m.node for m in weights if m.role == "constant" and _in_floats(m)}
            for node in network.nodes:
                if node.constants or node.op in _FORMULAS or node.name in exact:
                    replaced[node.name] = _with_half_constants(replaced.get(node.name, node))
        # An integer bias belongs to an op that computes in integers only.
        symmetric = _symmetric_nodes(weights, graph)
        hybrid = {
            name: name in symmetric
            for name, roles in integer.items()
            if "kernel" in roles and "bias" not in roles and "kernel" in arrays.get(name, {})
            if nodes[name].op not in INDEXING  # which read indices
        }
        unequal = [match for match in weights if match.state != "equal"]
        numbers = [
            m.state == "absent" and _is_number(nodes[m.node].weights[m.role]) for m in unequal
        ]
        return cls(replaced, hybrid, all(numbers))

    def applied(self, network: Network) -> Network:
        """Return the network with these weights."""
        nodes = tuple(self.nodes.get(node.name, node) for node in network.nodes)
        return replace(network, nodes=nodes)


def _held(match: WeightMatch, shape: tuple[int, ...]) -> np.ndarray:
    """Return the numbers that a file holds, in float32 if that has them all, else in float64."""
    exact = file_weight(match, shape)
    with np.errstate(over="ignore"):
        short = exact.astype(np.float32)
    return short if np.array_equal(short, exact, equal_nan=True) else exact


def _in_floats(match: WeightMatch) -> bool:
    """Return whether a file of halves holds a weight in float32."""
    return match.tensor is not None and match.tensor.dtype == np.float32


def in_half(network: Network) -> Network:
    """Return a network whose weights and constants are those of half precision, without a file."""
    nodes = []
    for node in network.nodes:
        weights = {
            role: np.clip(array, -GREATEST_HALF, GREATEST_HALF)
            .astype(np.float16)
            .astype(np.float32)
            if array.dtype.kind == "f"
            else array
            for role, array in node.weights.items()
        }
        rounded = replace(node, weights=weights)
        constant = node.constants or node.op in _FORMULAS
        nodes.append(_with_half_constants(rounded) if constant else rounded)
    return replace(network, nodes=tuple(nodes))


def _is_number(weight: np.ndarray) -> bool:
    """Return whether a weight may be an attribute; numbers that a half cannot hold are limited."""
    return weight.size == 1 and bool(np.abs(weight).max() <= GREATEST_HALF)


def _with_constants(
    network: Network, weights: Sequence[WeightMatch], graph: ArtifactGraph
) -> tuple[Network, Sequence[WeightMatch]]:
    """Return a network whose constants are weights where a file rounds them.

    Examples are the adjacency matrix of a graph, the waves of a Fourier transform, the mean of a
    normalization of the inputs, and the matrices of a bicubic interpolation.
    """
    roles = {node.name: _rounded_roles(node) for node in network.nodes}
    constant = [_as_weights(node, roles[node.name]) for node in network.nodes if roles[node.name]]
    if not constant:
        return network, weights
    kernels = {node.name: node.weights for node in constant}
    computed = (
        _as_computed(match, kernels[match.node][match.role])
        for match in match_weights(replace(network, nodes=tuple(constant)), graph)
        if match.role in roles[match.node]
        if match.tensor is not None and _rounds(match.role, match.tensor)
    )
    rounded = [match for match in computed if match.state == "equal"]
    nodes = tuple(
        _as_weights(node, {match.role for match in rounded if match.node == node.name})
        for node in network.nodes
    )
    return replace(network, nodes=nodes), [*weights, *rounded]


def _rounded_roles(node: Node) -> set[str]:
    """Return the constants of a node that a file may round visibly.

    A number alone has a step of its own.
    """
    return {
        role
        for role, array in node.constants.items()
        if role == "kernel"
        or (role == "constant" and array.size > 1 and array.dtype.kind == "f")
        or role.startswith("matrix_")
    }


def _rounds(role: str, tensor: GraphTensor) -> bool:
    """Return whether a file's tensor rounds a constant; halves are bounded for all but kernels."""
    return tensor.quantization is not None or (role == "kernel" and tensor.dtype != np.float32)


def _as_weights(node: Node, roles: set[str]) -> Node:
    """Return a node whose constants are weights, computed in float32 as in a file."""
    constants = {role: array for role, array in node.constants.items() if role not in roles}
    computed = {role: node.constants[role].astype(np.float32) for role in sorted(roles)}
    return replace(node, weights={**node.weights, **computed}, constants=constants)


def _symmetric_nodes(weights: Sequence[WeightMatch], graph: ArtifactGraph) -> set[str]:
    """Return the nodes whose inputs TFLite's own kernels quantize symmetrically.

    XNNPACK ignores the option, and its steps are smaller.
    """
    keys = {key for op in graph.ops if op.attributes.get(_ASYMMETRIC) is False for key in op.inputs}
    return {
        match.node for match in weights if match.tensor is not None and match.tensor.key in keys
    }


def _as_computed(match: WeightMatch, kernel: np.ndarray) -> WeightMatch:
    """Return the match of a constant kernel, which is equal if float32 explains the differences.

    The file's kernel is computed in float32 before it is rounded; a number next to a tie may then
    be rounded to the other side.
    """
    if match.state != "altered" or match.remark:
        return match
    assert match.tensor is not None
    if match.tensor.dtype == np.float16:
        held, rounding = file_weight(match, kernel.shape), half_rounding(np.abs(kernel))
    elif match.tensor.quantization is not None:
        held, steps = _with_steps(match, kernel.shape)
        rounding = steps / 2
    else:
        return match
    allowed = rounding + ULPS * UNIT_ROUNDOFF["float32"] * np.abs(kernel).max(initial=0.0)
    return replace(match, state="equal") if np.all(np.abs(held - kernel) <= allowed) else match


def _with_steps(match: WeightMatch, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers that a file's integers stand for, and the step of each."""
    assert match.tensor is not None
    assert match.tensor.data is not None
    assert match.tensor.quantization is not None
    steps = match.tensor.quantization.step(match.tensor.data.ndim)
    data = np.broadcast_to(steps, match.tensor.data.shape)
    sizes = replace(match, tensor=replace(match.tensor, data=data, quantization=None), offset=0.0)
    return file_weight(match, shape), np.abs(file_weight(sizes, shape))


def _unaltered(match: WeightMatch, weight: np.ndarray) -> np.ndarray:
    """Return the integers of a file, with the network's numbers where they are not near these."""
    held, step = _with_steps(match, weight.shape)
    return np.where(np.abs(held - weight) <= step, held, weight)


def _with_half_constants(node: Node) -> Node:
    """Return a node whose constants, or results that equal them, are in half precision."""
    arrays = [*node.constants.values(), *(a for r, a in node.weights.items() if r == "constant")]
    # Of a formula, the error is relative to its value and its argument.
    size = max((float(np.abs(array).max(initial=0.0)) for array in arrays), default=1.0)
    rounded = half_rounding(size) + max(size - GREATEST_HALF, 0.0)
    known = constant_error(node.attributes) + rounded
    return replace(node, attributes={**node.attributes, "constant_error": known})
