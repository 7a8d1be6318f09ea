"""Float64 arithmetic for the folded network: the exact value of every node, and its error bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ..artifacts.network import Network, Node
from ..artifacts.precisions import SMALLEST_NORMAL
from ..errors import UserError
from .operators import OPERATORS
from .operators.base import Evaluated
from .operators.whole_numbers import COUNTING, exact_on


def can_evaluate(node: Node) -> bool:
    """Return whether a node has a NumPy form."""
    return node.op in OPERATORS


def evaluate_node(node: Node, inputs: list[np.ndarray]) -> np.ndarray:
    """Return the value for the given inputs, in their type.

    Raises:
        UserError: The node is opaque.
    """
    if node.op not in OPERATORS:
        raise UserError(
            f"The layer '{node.layer}' cannot be evaluated outside Keras, so its op cannot be "
            "checked by itself."
        )
    with np.errstate(all="ignore"):  # Overflows here also occur on the target.
        return OPERATORS[node.op].evaluate(inputs, _weights(node, inputs[0].dtype), node.attributes)


def node_error_bound(
    node: Node,
    inputs: list[np.ndarray],
    output: np.ndarray,
    errors: list[np.ndarray],
    unit: float,
) -> np.ndarray:
    """Return a bound on the error of floating-point arithmetic.

    Runtimes may flush denormal numbers to zero, those they read and those they compute: each
    of K products and K partial sums may lose the least normal number, and so may each input. A
    result that is always a whole number is never denormal.

    Args:
        node: A node that can be evaluated.
        inputs: float64 inputs.
        output: The exact output for them.
        errors: Bound on the absolute error of each input.
        unit: Unit roundoff of the judged arithmetic; 0 for the effect of flushing alone.

    Returns:
        Bound on the absolute error of each element of the output.
    """
    at = Evaluated(inputs, _weights(node, np.dtype(np.float64)), node.attributes, output)
    if exact_on(node.op, at, errors):
        return np.zeros_like(output)
    passed = [error + _flushed(x, error) for x, error in zip(inputs, errors)]
    with np.errstate(all="ignore"):
        bound = OPERATORS[node.op].error_bound(at, passed, unit)
    if node.op in COUNTING:
        return bound
    return bound + 2 * _terms(node, output) * SMALLEST_NORMAL


def carried_variance(node: Node, variance: np.ndarray) -> np.ndarray:
    """Propagate an independent variance through a linear node.

    Args:
        node: A linear node.
        variance: float64, the shape of the node's first input.
    """
    weights = {"kernel": np.square(node.arrays["kernel"].astype(np.float64))}
    return OPERATORS[node.op].evaluate([variance], weights, node.attributes)


def rounding_variance(
    node: Node,
    inputs: list[np.ndarray],
    output: np.ndarray,
    variances: list[np.ndarray],
    unit: float,
) -> np.ndarray:
    """Return the expected variance of rounding errors, in units of the unit roundoff squared.

    Args:
        node: A node that can be evaluated.
        inputs: The inputs.
        output: The output for them.
        variances: The variance of each input's error.
        unit: The unit roundoff.
    """
    at = Evaluated(inputs, _weights(node, output.dtype), node.attributes, output)
    if exact_on(node.op, at, variances):
        return np.zeros_like(output)
    with np.errstate(all="ignore"):
        return OPERATORS[node.op].variance(at, variances, unit)


def node_gradient(
    node: Node, inputs: list[np.ndarray], output: np.ndarray, gradient: np.ndarray
) -> list[np.ndarray]:
    """Return the gradients by a node's inputs for one by its output, in float64."""
    at = Evaluated(inputs, _weights(node, np.dtype(np.float64)), node.attributes, output)
    with np.errstate(all="ignore"):
        return OPERATORS[node.op].gradient(at, gradient)


def _weights(node: Node, dtype: np.dtype) -> dict[str, np.ndarray]:
    """Return weights and constants in the type of the arithmetic.

    Floats stay floats for inputs of integers and truth values.
    """
    floats = dtype if dtype.kind == "f" else np.result_type(dtype, np.float32)
    return {
        role: array.astype(floats if array.dtype.kind == "f" else dtype)
        for role, array in node.arrays.items()
    }


def _terms(node: Node, output: np.ndarray) -> int:
    """Return the greatest number of terms in one element of the output."""
    kernel = node.weights.get("kernel")
    if kernel is not None:
        first = node.attributes.get("data_format") == "channels_first"
        return int(kernel.size) // output.shape[1 if first else -1]
    if "pool" in node.op:
        return int(np.prod(node.attributes.get("pool_size", [1])))
    return max(1, len(node.inputs))


def _flushed(x: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Return the error from inputs that may be denormal and flushed to zero."""
    size = np.abs(x) + error
    return np.where(np.abs(x) <= SMALLEST_NORMAL + error, np.minimum(size, SMALLEST_NORMAL), 0.0)


def opaque_layers(network: Network) -> list[str]:
    """Return the layers that have no NumPy form."""
    return [node.layer for node in network.nodes if not can_evaluate(node)]


def unevaluated_nodes(network: Network) -> list[Node]:
    """Return the nodes that have no NumPy form, and those that read their values."""
    found: dict[str, Node] = {}
    for node in network.nodes:
        if not can_evaluate(node) or any(name in found for name in node.inputs):
            found[node.name] = node
    return list(found.values())


def evaluate_network(
    network: Network,
    inputs: Mapping[str, np.ndarray],
    *,
    dtype: Any = np.float64,
    batch: int = 8,
    stored: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Evaluate the network.

    Args:
        network: The network.
        inputs: Keras input name to (N, …).
        dtype: The arithmetic: float64 for the truth, float32 for a plain reference.
        batch: Samples at a time, to bound memory.
        stored: Returns a value as it is stored; None if it is stored as computed.

    Returns:
        Keras output name to (N, …) in ``dtype``.

    Raises:
        UserError: A layer is opaque.
    """
    samples = len(next(iter(inputs.values())))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in network.outputs}
    for start in range(0, samples, batch):
        fed = {k: v[start : start + batch].astype(dtype) for k, v in inputs.items()}
        wanted = set(network.outputs.values())
        values = node_values(network, fed, stored)
        found = {name: value for name, value in values if name in wanted}
        for name, value in network.outputs.items():
            parts[name].append(found[value])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def node_values(
    network: Network,
    inputs: Mapping[str, np.ndarray],
    stored: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each value, the inputs first; a value is freed after its last use."""
    last = {name: node.name for node in network.nodes for name in node.inputs}
    held = {name: inputs[name] for name in network.inputs}
    yield from held.items()
    for node in network.nodes:
        value = evaluate_node(node, [held[name] for name in node.inputs])
        if stored is not None:
            value = stored(value)
        for name in set(node.inputs):
            if last[name] == node.name:
                del held[name]
        if node.name in last:
            held[node.name] = value
        yield node.name, value
