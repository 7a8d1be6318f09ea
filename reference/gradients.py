"""Gradients of the folded network in NumPy, of outputs or any value by the inputs.

Each operator has its vector-Jacobian product, `Operator.gradient`; here they are chained backwards
(reverse accumulation; Griewank and Walther, Evaluating Derivatives, 2008, chapter 3).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..artifacts.network import Network
from .network import evaluate_node, node_gradient

Values = dict[str, np.ndarray]


def evaluated(network: Network, inputs: Mapping[str, np.ndarray]) -> Values:
    """Return every value of the network in float64, the inputs included."""
    values: Values = {name: inputs[name].astype(np.float64) for name in network.inputs}
    for node in network.nodes:
        values[node.name] = evaluate_node(node, [values[name] for name in node.inputs])
    return values


def gradients(network: Network, values: Values, by: Mapping[str, np.ndarray]) -> Values:
    """Return the gradient by each input of the sum of values times given weights.

    Args:
        network: The folded network.
        values: The result of `evaluated`.
        by: Name of a value to the weights of its elements, in its shape.

    Returns:
        Input name to the gradient, in the input's shape.
    """
    found: Values = {name: array.astype(np.float64) for name, array in by.items()}
    for node in reversed(network.nodes):
        gradient = found.pop(node.name, None)
        if gradient is None:
            continue
        read = [values[name] for name in node.inputs]
        for name, part in zip(node.inputs, node_gradient(node, read, values[node.name], gradient)):
            found[name] = found[name] + part if name in found else part
    return {name: found.get(name, np.zeros_like(values[name])) for name in network.inputs}
