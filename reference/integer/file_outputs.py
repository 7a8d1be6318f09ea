"""The outputs that an exported integer file should give, by the names and floats of the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ...artifacts.golden_set import Predictions
from ...artifacts.graphs import READERS, read_graph
from ...artifacts.graphs.base import ArtifactGraph
from ...artifacts.manifest import Artifact, TensorSpec
from ...artifacts.sample_kinds import file_inputs
from ..operators.activations import ULPS
from ..rounding.quantized import NotKnownError
from .onnx_moving import MOVING
from .prediction import Prediction, evaluated, predict, rules_of
from .tflite_moving import MOVING_OPS

_TURNS_TO_FLOATS = frozenset({"DEQUANTIZE", "DequantizeLinear", *MOVING, *MOVING_OPS})

# Distances of ties that are turned, in units in the last place of a tensor's largest number. The
# last one is the bound on the error of a float kernel.
_TURNS = (1.0, 2.0, 4.0, 8.0, ULPS)

# Characters removed from a reason, which becomes part of an array's name.
_NO_NAME = re.compile(r"[^\w ,.()'-]+")

Arrays = Mapping[str, np.ndarray]


def predicted_outputs(
    path: Path, artifact: Artifact, inputs: Arrays, data: bytes | None = None
) -> Predictions:
    """Predict the outputs of a file under every known rounding rule.

    Args:
        path: The file.
        artifact: The manifest's entry of the file.
        inputs: Keras input name to (N, …) samples.
        data: The file's contents, if they have been read already.

    Returns:
        The predictions, or why there are none.

    Raises:
        UserError: The file cannot be parsed.
    """
    if artifact.format not in READERS:
        return Predictions({}, {}, f"the ops of .{artifact.format} files cannot be read")
    graph = read_graph(path, artifact.format, data).in_order(*artifact.names)
    count = len(next(iter(inputs.values())))
    steps, reason = _steps(graph, artifact)
    try:
        found = evaluated(graph, artifact.format, _batches(graph, artifact, inputs))
    except NotKnownError as why:
        return Predictions({}, {}, _NO_NAME.sub(" ", str(why)))
    reason = _NO_NAME.sub(" ", reason or found[0].reason)
    saturated = found[0].saturated[:count]
    by_rule = {one.kernels: _named(graph, artifact, one, count, steps) for one in found}
    known = next(iter(by_rule.values()))
    if not known:
        return Predictions({}, {}, reason, saturated)
    steps = {name: steps[name] for name in known}
    shared = {rule: outputs for kernels, outputs in by_rule.items() for rule in kernels}
    return Predictions(shared, steps, reason, saturated if saturated.any() else None)


def turned_outputs(path: Path, artifact: Artifact, inputs: Arrays, rule: str) -> list[Arrays]:
    """Predict the outputs of a file with ties turned, the nearest first.

    Args:
        path: The file.
        artifact: The manifest's entry of the file.
        inputs: Keras input name to (N, …) samples.
        rule: Name of the rule that is followed otherwise.

    Returns:
        Every distinct result: Keras output name to (N, …).
    """
    graph = read_graph(path, artifact.format).in_order(*artifact.names)
    rules = [
        one.turned(side * turn)
        for one in rules_of(graph, artifact.format)
        if one.kernels == rule
        for turn in _TURNS
        for side in (1, -1)
    ]
    found = predict(graph, artifact.format, _batches(graph, artifact, inputs), rules)
    count = len(next(iter(inputs.values())))
    steps, _ = _steps(graph, artifact)
    return [_named(graph, artifact, one, count, steps) for one in found]


def _named(
    graph: ArtifactGraph, artifact: Artifact, found: Prediction, count: int, steps: Iterable[str]
) -> dict[str, np.ndarray]:
    """Return the first samples of the outputs with steps by Keras name, in the model's axes."""
    return {
        spec.keras_name: _as_keras(graph, key, found.outputs[key], spec)[:count]
        for key, spec in zip(graph.outputs, artifact.outputs)
        if spec.keras_name in steps and key in found.outputs
    }


def _steps(graph: ArtifactGraph, artifact: Artifact) -> tuple[dict[str, float], str]:
    """Return the steps of the outputs made of integers, and why another has none."""
    steps, reason = {}, ""
    for key, spec in zip(graph.outputs, artifact.outputs):
        try:
            steps[spec.keras_name] = _step(graph, key)
        except NotKnownError as why:
            reason = reason or str(why)
    return steps, reason


def _batches(
    graph: ArtifactGraph, artifact: Artifact, inputs: Arrays
) -> list[dict[str, np.ndarray]]:
    """Return the inputs of a file, run by run; the last sample fills the last batch."""
    samples = file_inputs(inputs, artifact.precision)
    count = len(next(iter(samples.values())))
    size = artifact.inputs[0].shape[0] or 1
    batches = []
    for start in range(0, count, size):
        index = np.minimum(np.arange(start, start + size), count - 1)
        batches.append(
            {
                key: _as_filed(graph, key, samples[spec.keras_name][index], spec)
                for key, spec in zip(graph.inputs, artifact.inputs)
            }
        )
    return batches


def _as_filed(graph: ArtifactGraph, key: str, values: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Return a batch of an input as a file takes it: axes in its order, quantized by the caller.

    Callers round to the nearest step, ties to even; integers of the file's own type are passed on.
    """
    ordered = values if spec.axes is None else np.transpose(values, spec.axes)
    tensor = graph.tensors[key]
    if tensor.dtype.kind == "f" or tensor.quantization is None or values.dtype == tensor.dtype:
        return ordered.astype(tensor.dtype)
    steps, limits = tensor.quantization, np.iinfo(tensor.dtype)
    nearest = np.rint(ordered.astype(np.float64) / steps.scales[0]) + steps.zero_points[0]
    return np.clip(nearest, limits.min, limits.max).astype(tensor.dtype)


def _as_keras(graph: ArtifactGraph, key: str, values: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Return an output as floats, with the model's order of axes."""
    real = values
    if values.dtype.kind != "f":
        real = graph.tensors[key].real(values).astype(np.float32)
    return real if spec.axes is None else np.transpose(real, np.argsort(spec.axes))


def _step(graph: ArtifactGraph, key: str) -> float:
    """Return the step of an output's integers, even if an op dequantizes them.

    Raises:
        NotKnownError: It is not made of integers.
    """
    tensor, op = graph.tensors[key], graph.producer(key)
    if tensor.quantization is not None:
        return float(tensor.quantization.scales.max())
    if op is None or op.kind not in _TURNS_TO_FLOATS:
        raise NotKnownError(f"the output '{tensor.name}' is computed in floats")
    return _step(graph, op.inputs[0])
