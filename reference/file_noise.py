"""How noisy should a file of lower precision be, on any kernel that may run it?

Read from the file: its weights, and which ops quantize their input as it comes. The rest is
arithmetic (`noise`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..artifacts.graphs import read_graph
from ..artifacts.manifest import Artifact
from ..artifacts.network import Network
from ..artifacts.precisions import UNIT_ROUNDOFF
from .file_weights import match_weights
from .network import opaque_layers
from .noise import Arithmetic, expected_noise
from .rounded_weights import RoundedWeights

# The precisions whose noise follows from arithmetic. What int8 loses depends on how well its ranges
# were chosen, which no arithmetic says.
MODELLED = ("float16", "dynamic")


def shares_ranges(artifact: Artifact) -> bool:
    """Return whether one range serves all samples of a batch, so that each depends on the others.

    ONNX's DynamicQuantizeLinear takes the range of a whole tensor. No noise of a single sample
    follows from that.
    """
    batch = artifact.inputs[0].shape[0] or 1
    return artifact.format == "onnx" and artifact.precision == "dynamic" and batch > 1


def file_noise(
    path: Path,
    file_format: str,
    precision: str,
    network: Network,
    inputs: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Return the root mean square error that a file is expected to make against truth.

    Args:
        path: The file.
        file_format: "tflite" or "onnx".
        precision: What the manifest says of it.
        network: The network it was made from.
        inputs: Its input names to (N, …).
        truth: Output name to (N, …) float64.

    Returns:
        Output name to (N,) float64; empty where it does not follow from the arithmetic: for other
        precisions, layers that only Keras can evaluate, or a weight that the file does not show.

    Raises:
        UserError: The file cannot be parsed.
    """
    if precision not in MODELLED or opaque_layers(network):
        return {}
    rounded = RoundedWeights.of(network, match_weights(network, read_graph(path, file_format)))
    if not rounded.complete:
        return {}
    unit = UNIT_ROUNDOFF["float16" if precision == "float16" else "float32"]
    return expected_noise(
        rounded.applied(network),
        inputs,
        arithmetic=Arithmetic(unit, rounded.hybrid),
        truth=truth,
    )
