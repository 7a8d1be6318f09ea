"""Notes on an export: what a user may not expect, one line each."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from ..artifacts.graphs import READERS, read_graph
from ..artifacts.graphs.base import ArtifactGraph, GraphOp
from ..artifacts.precisions import Arithmetic, precision_named
from .fold.keras_graph import read_graph as read_keras
from .fold.report import FoldReport
from .formats.base import Job
from .options import MIXED
from .quantization.float_operators import JUMPS
from .quantization.portable import portability_note
from .quantization.shared_ranges import SELECTIONS

_QUANTIZERS = {"QUANTIZE", "DEQUANTIZE", "QuantizeLinear", "DequantizeLinear"}


def notes_on_model(model: keras.Model, fold: FoldReport) -> tuple[str, ...]:
    """Return notes that apply to all files of an export.

    Args:
        model: The trained model.
        fold: The report of the fold.
    """
    norms = [
        f"norm {record.name!r} leaves {_operations(len(record.remaining_ops))}"
        + (f": {record.reason}" if record.reason else "")
        for record in fold.records
        if record.outcome != "folded"
    ]
    calls = [c for c in read_keras(model).calls() if (c.kwargs or {}).get("training") is True]
    trained = {call.op.name: None for call in calls if not _trains_by_default(call.op.operation)}
    return (*norms, *map(_at_inference, trained))


def _trains_by_default(layer: Any) -> bool:
    """Return whether Keras records `training=True` without the user, as for augmentation."""
    given = inspect.signature(layer.call).parameters.get("training")
    return given is not None and given.default is True


def _at_inference(name: str) -> str:
    return (
        f"layer {name!r} was called with training=True, which only model(x) honours; predict() and "
        "the files compute inference"
    )


def notes_on_file(job: Job, path: Path, format_name: str) -> tuple[str, ...]:
    """Return notes on one file."""
    notes = [*_unrolled(job), *_kept(job)]
    arithmetic = precision_named(job.precision).arithmetic
    if format_name in READERS and arithmetic in _NOTES:
        graph = read_graph(path, format_name)
        if job.options.portable and format_name == "tflite" and job.precision in MIXED:
            notes.append(portability_note(graph))
        if job.trained is not None and job.trained.rounding == "double":
            notes += _not_in_micro(graph)
        notes += [sentence for note in _NOTES[arithmetic] for sentence in note(graph)]
    return tuple(notes)


def _not_in_micro(graph: ArtifactGraph) -> list[str]:
    """Return a note on operators that TFLite's reference kernels have and TFLite Micro has not."""
    missing = sorted({op.kind for op in graph.ops} & {"EXP", "GELU", "TILE"})
    if not missing:
        return []
    return [f"TFLite Micro has no integer {' and no '.join(missing)}: it cannot run this file"]


def _unrolled(job: Job) -> list[str]:
    if not job.graph.steps:
        return []
    layers = ", ".join(f"{name} ({steps})" for name, steps in job.graph.steps.items())
    return [f"recurrent layers are unrolled, with this number of steps: {layers}"]


def _kept(job: Job) -> list[str]:
    if job.choices is None:
        return []
    kept = (
        ("kept in float32", job.choices.keep_float),
        ("with 16-bit activations", job.choices.keep_int16),
    )
    return [f"{what}: {', '.join(layers)}" for what, layers in kept if layers]


def _nothing_quantized(graph: ArtifactGraph) -> list[str]:
    """Return a note if a file that should have integer weights has none."""
    if any(t.data is not None and t.quantization is not None for t in graph.tensors.values()):
        return []
    if any("Integer" in op.kind for op in graph.ops):
        return []
    return [
        "nothing is quantized, the file computes in float32: no matrix product or convolution has "
        "enough trained weights (TFLite's converter requires 1024)"
    ]


def _float_left(graph: ArtifactGraph) -> list[str]:
    """Return a note on the operators of an integer TFLite file that compute in float.

    In an ONNX file the runtime decides, from the quantizers around each operator.
    """
    if any(op.kind == "DequantizeLinear" for op in graph.ops):
        return []

    def is_float(key: str) -> bool:
        tensor = graph.tensors.get(key)
        if tensor is None or tensor.data is not None:
            return False
        return tensor.dtype.kind == "f" and tensor.quantization is None

    def computes_in_float(op: GraphOp) -> bool:
        inputs = [key for key in op.inputs if key]
        return (
            op.kind not in _QUANTIZERS
            and any(map(is_float, inputs))
            and any(map(is_float, op.outputs))
        )

    left = Counter(op.kind for op in graph.ops if computes_in_float(op))
    if not left:
        return []
    listed = ", ".join(f"{number} {kind}" for kind, number in sorted(left.items()))
    return [f"computed in float: {listed}"]


def _rounded_inputs(graph: ArtifactGraph) -> list[str]:
    """Return a note on integer inputs of a TFLite file that are rounded or compared."""
    step_of = {
        key: (graph.tensors[key].name, graph.tensors[key].quantization) for key in graph.inputs
    }
    found: dict[str, float] = {}
    for op in graph.ops:
        read = [step_of[key] for key in op.inputs if key in step_of]
        for name, quantization in read if op.kind in JUMPS else ():
            if quantization is not None:
                found[name] = float(quantization.scales[0])
        if read and (op.kind in SELECTIONS or op.kind in _QUANTIZERS):
            step_of |= dict.fromkeys(op.outputs, read[0])
    return [
        f"input {name!r} is rounded or compared in the file, and has steps of {step:.3g}: a number "
        "near the edge of a bin may fall in the next one; use float inputs to avoid that"
        for name, step in found.items()
    ]


_NOTES: dict[Arithmetic, tuple[Callable[[ArtifactGraph], list[str]], ...]] = {
    Arithmetic.HYBRID: (_nothing_quantized,),
    Arithmetic.INTEGER: (_float_left, _rounded_inputs),
}


def _operations(count: int) -> str:
    return f"{count} operation{'s' if count != 1 else ''}"
