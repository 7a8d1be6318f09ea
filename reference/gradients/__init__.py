"""Gradients of the folded network in NumPy: how an output, or any value, depends on the inputs.

Each operator has its vector-Jacobian product: from the gradient by its value to those by what it
reads (reverse accumulation; Griewank and Walther, Evaluating Derivatives, 2008, chapter 3). An
element-wise function is differentiated by central differences, which costs two evaluations and
needs no second table of functions. An operation that only moves values is differentiated by moving
their places. Used by the search, on the host: it does not travel to devices.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...artifacts.network import Network, Node
from ...errors import UserError
from ..network import evaluate_node
from ..operators.base import Arrays
from .base import Backward
from .values import ACTIVATING, ELEMENTWISE, MOVING
from .windows import LINEAR, POOLING

BACKWARD: dict[str, Backward] = {**LINEAR, **POOLING, **ACTIVATING, **ELEMENTWISE, **MOVING}

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
        values: What `evaluated` returned.
        by: Name of a value to the weights of its elements, in its shape.

    Returns:
        Input name to the gradient, in the input's shape.

    Raises:
        UserError: An operation on the way has no gradient.
    """
    found: Values = {name: array.astype(np.float64) for name, array in by.items()}
    for node in reversed(network.nodes):
        gradient = found.pop(node.name, None)
        if gradient is None:
            continue
        read = [values[name] for name in node.inputs]
        for name, part in zip(node.inputs, _backward(node, read, values[node.name], gradient)):
            found[name] = found[name] + part if name in found else part
    return {name: found.get(name, np.zeros_like(values[name])) for name in network.inputs}


def _backward(node: Node, inputs: Arrays, output: np.ndarray, gradient: np.ndarray) -> Arrays:
    """Return the gradients by what a node reads."""
    if node.op not in BACKWARD:
        raise UserError(f"The layer '{node.layer}' ({node.op}) has no gradient to search along.")
    weights = {role: array.astype(np.float64) for role, array in node.weights.items()}
    return BACKWARD[node.op](inputs, weights, node.attributes, output, gradient)
