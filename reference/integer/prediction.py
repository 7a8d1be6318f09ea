"""Predicts the outputs of an integer file, to the bit, under every known rounding rule.

The file's own graph is evaluated op by op from its own integers; nothing is run. Rules share equal
intermediate results: an op is prepared once for all rules with the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp
from ..rounding.arithmetic import Arithmetic, Finish
from ..rounding.onnx_rules import ONNX_RULES
from ..rounding.quantized import NotKnownError
from ..rounding.xnnpack import tflite_rules
from . import onnx_ops, tflite_ops
from .base import Values


@dataclass(frozen=True)
class _Format:
    """How the ops of a format are computed."""

    values: Callable[[ArtifactGraph, Arrays], Values]
    prepared: Callable[[GraphOp, Values], Finish | None]
    rules: Callable[[ArtifactGraph], tuple[Arithmetic, ...]]


_FORMATS = {
    "tflite": _Format(Values, tflite_ops.prepared, tflite_rules),
    "onnx": _Format(onnx_ops.OnnxValues, onnx_ops.prepared, lambda graph: ONNX_RULES),
}

Arrays = Mapping[str, np.ndarray]

# Ops of .tflite files whose results may be beyond the range that a calibration found; a fused relu
# (1) clips at zero alone.
_SUMS = frozenset(
    {
        *("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL"),
        *("ADD", "SUB", "MUL", "MEAN", "LEAKY_RELU", "PRELU", "QUANTIZE"),
    }
)

# Numbers in memory at a time, for all rules together.
_AT_A_TIME = 1 << 24


@dataclass(frozen=True)
class Prediction:
    """The outputs of a file under one or several rules that agree everywhere.

    Attributes:
        kernels: The kernels that follow these rules.
        outputs: The file's output by its key to (N, …), for the outputs that are known.
        saturated: (N,) whether a sum of a sample is at a limit of its integers, of those known.
        reason: Why an output is not known; else empty.
    """

    kernels: tuple[str, ...]
    outputs: Arrays
    saturated: np.ndarray
    reason: str = ""


def predict(
    graph: ArtifactGraph,
    file_format: str,
    batches: Sequence[Mapping[str, np.ndarray]],
    rules: Sequence[Arithmetic] = (),
) -> list[Prediction]:
    """Evaluate an integer file under every known rule.

    Args:
        graph: The file.
        file_format: "tflite" or "onnx".
        batches: The inputs of each run: key of an input to the array.
        rules: The rules; all known ones if there are none.

    Returns:
        Every distinct result, with the rules that lead to it.

    Raises:
        NotKnownError: All outputs depend on ops that are not known; the message names one.
    """
    found = evaluated(graph, file_format, batches, rules)
    if not found[0].outputs:
        raise NotKnownError(found[0].reason)
    return found


def evaluated(
    graph: ArtifactGraph,
    file_format: str,
    batches: Sequence[Mapping[str, np.ndarray]],
    rules: Sequence[Arithmetic] = (),
) -> list[Prediction]:
    """Return the same as `predict`; if no output is known, one prediction of none.

    Raises:
        NotKnownError: The ops of this format are not known.
    """
    if file_format not in _FORMATS:
        raise NotKnownError(f"the ops of .{file_format} files")
    size = sum(max(int(np.prod(np.abs(t.shape or (1,)))), 1) for t in graph.tensors.values())
    chunk = max(1, _AT_A_TIME // size)
    form = _FORMATS[file_format]
    rules = rules or form.rules(graph)
    parts: list[list[Arrays]] = [[] for _ in rules]
    saturated: list[np.ndarray] = []
    reasons: list[str] = []
    for start in range(0, len(batches), chunk):
        runs = batches[start : start + chunk]
        inputs = {key: np.stack([run[key] for run in runs]) for key in runs[0]}
        results, beyond, reason = _evaluated(graph, form, rules, inputs)
        saturated.append(beyond)
        reasons.append(reason)
        for part, outputs in zip(parts, results):
            part.append(outputs)
    size = len(next(iter(batches[0].values())))  # samples of a run saturate together
    beyond = np.repeat(np.concatenate(saturated), size)
    known = [key for key in graph.outputs if all(key in p for part in parts for p in part)]
    reason = next(filter(None, reasons), "")
    found: list[Prediction] = []
    for rule, part in zip(rules, parts):
        outputs = {key: np.concatenate([p[key] for p in part]) for key in known}
        outputs = {key: array.reshape(-1, *array.shape[2:]) for key, array in outputs.items()}
        _enter(found, Prediction((rule.kernels,), outputs, beyond, reason))
    return found


def rules_of(graph: ArtifactGraph, file_format: str) -> tuple[Arithmetic, ...]:
    """Return the rules that may differ on a file."""
    return _FORMATS[file_format].rules(graph)


def _enter(found: list[Prediction], new: Prediction) -> None:
    """Add a prediction, or its rule to an equal one."""
    for place, known in enumerate(found):
        if all(np.array_equal(known.outputs[key], new.outputs[key]) for key in new.outputs):
            found[place] = replace(known, kernels=(*known.kernels, *new.kernels))
            return
    found.append(new)


def _evaluated(
    graph: ArtifactGraph, form: _Format, rules: Sequence[Arithmetic], inputs: Arrays
) -> tuple[list[dict[str, np.ndarray]], np.ndarray, str]:
    """Evaluate some runs under each rule.

    Returns:
        The known outputs, (runs, *shape), which runs saturate, and why an output is not known.
    """
    held: list[dict[str, np.ndarray]] = [dict(inputs) for _ in rules]
    saturated = np.zeros(len(next(iter(inputs.values()))), bool)
    reasons: list[str] = []
    last = _last_uses(graph)
    for place, op in enumerate(graph.ops):
        try:
            _step(graph, form, rules, op, held)
        except NotKnownError as error:
            reasons.append(str(error))
        saturated |= _saturated(graph, op, held[0])
        for key in op.inputs:
            if last[key] == place:
                for arrays in held:
                    arrays.pop(key, None)
    missing = [key for key in graph.outputs if any(key not in arrays for arrays in held)]
    reason = ""
    if missing:
        reason = f"output '{missing[0]}' is not known"
        if reasons:
            count = f"{len(reasons)} of {len(graph.ops)} operators"
            reason = f"{reasons[0]} ({count} of the file are not computed)"
    known = [key for key in graph.outputs if key not in missing]
    results = [
        # What is computed from constants alone has one run.
        {k: np.broadcast_to(arrays[k], (len(saturated), *arrays[k].shape[1:])) for k in known}
        for arrays in held
    ]
    return results, saturated, reason


def _saturated(graph: ArtifactGraph, op: GraphOp, arrays: Arrays) -> np.ndarray | bool:
    """Return (runs,) whether a sum is at a limit of its type that does not represent zero."""
    if op.kind not in _SUMS or op.attributes.get("fusedActivationFunction") not in (None, 0, 1):
        return False
    key = op.outputs[0]
    array, steps = arrays.get(key), graph.tensors[key].quantization
    if array is None or steps is None:
        return False
    return steps.saturated(array)


def _last_uses(graph: ArtifactGraph) -> dict[str, int]:
    """Return the place of the last op that may ask for each tensor.

    A float op is computed when a later op needs it, so its inputs are needed until then.
    """
    last = {key: len(graph.ops) for key in graph.outputs}
    for place, op in reversed(list(enumerate(graph.ops))):
        deferred = op.kind not in ("QuantizeLinear",) and op.kind[1:2].islower()
        until = max((last.get(key, place) for key in op.outputs), default=place)
        for key in op.inputs:
            last[key] = max(last.get(key, 0), until if deferred else place)
    return last


def _step(
    graph: ArtifactGraph,
    form: _Format,
    rules: Sequence[Arithmetic],
    op: GraphOp,
    held: Sequence[dict[str, np.ndarray]],
) -> None:
    """Add the results of one op; rules that agree hold the same arrays."""
    finishes: dict[tuple[int, ...], Finish | None] = {}
    shared: dict[str, list[np.ndarray]] = {key: [] for key in op.outputs}
    for arrays, rule in zip(held, rules):
        same = tuple(id(array) for array in arrays.values())
        if same not in finishes:
            finishes[same] = form.prepared(op, form.values(graph, arrays))
        finish = finishes[same]
        if finish is None:
            continue
        results = finish(rule)
        for key, result in zip(op.outputs, results if isinstance(results, list) else [results]):
            array = _stored(graph, key, result)
            equal = [known for known in shared[key] if np.array_equal(known, array)]
            arrays[key] = equal[0] if equal else array
            if not equal:
                shared[key].append(array)


def _stored(graph: ArtifactGraph, key: str, result: np.ndarray) -> np.ndarray:
    """Return a result in the type that the file has it in."""
    steps = graph.tensors[key].quantization
    return result.astype(steps.dtype) if steps is not None and result.dtype == np.int64 else result
