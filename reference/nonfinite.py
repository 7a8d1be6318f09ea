"""Which output elements can be expected to be right for samples that hold NaN or infinity."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..artifacts.network import Network
from ..artifacts.sample_kinds import NONFINITE, kinds_of
from .network import evaluate_network, opaque_layers


def expected(
    network: Network, inputs: Mapping[str, np.ndarray], *witnesses: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return of which elements something is expected.

    Args:
        network: The folded network; it hands NaN on in every operation.
        inputs: Its input names to (N, …).
        witnesses: Output name to (N, …): what the trained model and others give.

    Returns:
        Output name to (N, …): whether the element is finite for all of them. Throughout true for
        finite inputs; throughout false for the others where a layer is beyond the network.
    """
    odd = kinds_of(inputs) == NONFINITE
    sizes = {name: array.shape for name, array in witnesses[0].items()}
    found = {name: np.ones(shape, bool) for name, shape in sizes.items()}
    if not odd.any():
        return found
    if opaque_layers(network):
        for array in found.values():
            array[odd] = False
        return found
    chosen = {name: array[odd] for name, array in inputs.items()}
    with np.errstate(invalid="ignore", over="ignore"):
        spread = evaluate_network(network, chosen, dtype=np.float32)
    for name, array in found.items():
        array[odd] = np.isfinite(spread[name])
        for outputs in witnesses:
            array[odd] &= np.isfinite(outputs[name][odd])
    return found
