"""Simulates wrong kernels on a device without access to tensors; counts how many are detected.

    python benchmarks/check_device_faults.py [--networks 5] [--precisions float32,int8] [--json OUT]

The exported file does not change. The "device" runs a copy of it in which one operator computes
another function. Only its outputs are judged: there are no per-op checks, and the runtime is
unknown. A wrong kernel that changes no output of any sample is not counted. The healthy file is
judged in the same way on every kernel set of LiteRT, and must pass.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import renormlite as rl
from ai_edge_litert import schema_py_generated as schema
from check_faults import TFLiteFile
from check_networks import smooth_inputs, trained_like
from keras import layers
from renormlite.artifacts.directory import ExportDirectory, open_export
from renormlite.artifacts.golden_set import GoldenSet
from renormlite.artifacts.manifest import Artifact
from renormlite.models.mlperf_tiny import NETWORKS
from renormlite.runtime_checks.end_to_end.target_check import judge_run
from renormlite.runtimes import Target
from renormlite.runtimes.run import run_target
from rich.console import Console
from rich.table import Table

PRECISIONS = ("float32", "float16", "int8", "int16x8")
_OPS = schema.BuiltinOperator
_CONV, _DEPTHWISE, _DENSE = "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"


class NotThereError(Exception):
    """The file has no such operator."""


class Device(TFLiteFile):
    """A file in which one operator can be replaced by another."""

    def first(self, *kinds: str, where: Callable[[Any], bool] = lambda op: True) -> Any:
        """Return the first operator of some kinds."""
        for op in self.graph.operators:
            if self.kind(op) in kinds and where(op):
                return op
        raise NotThereError

    def constant_of(self, op: Any, slot: int) -> tuple[Any, np.ndarray]:
        """Return a constant input, or that of its DEQUANTIZE for half-precision weights."""
        index = op.inputs[slot] if slot < len(op.inputs) else -1
        for other in self.graph.operators:
            if self.kind(other) == "DEQUANTIZE" and other.outputs[0] == index:
                index = other.inputs[0]
        if index < 0:
            raise NotThereError
        tensor = self.graph.tensors[index]
        types = {0: np.float32, 1: np.float16, 2: np.int32, 4: np.int64, 9: np.int8}
        data = self.model.buffers[tensor.buffer].data
        if data is None or tensor.type not in types:
            raise NotThereError
        array = np.asarray(data, np.uint8).view(types[tensor.type]).reshape(tensor.shape)
        return tensor, array.copy()

    def becomes(self, op: Any, kind: int) -> None:
        """Change the kind of an operator and keep its options."""
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = kind
        code.version = 2
        self.model.operatorCodes.append(code)
        op.opcodeIndex = len(self.model.operatorCodes) - 1


def _option(kinds: str, name: str, value: Any, before: Any = None) -> Callable[[Device], None]:
    """Return a fault that sets an option of the first operator in which it has another value."""

    def apply(file: Device) -> None:
        def fits(op: Any) -> bool:
            held = getattr(op.builtinOptions, name, value)
            return held != value and (before is None or held == before)

        setattr(file.first(*kinds.split(), where=fits).builtinOptions, name, value)

    return apply


def _kernel(kinds: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Device], None]:
    """Return a fault that changes a kernel."""

    def apply(file: Device) -> None:
        tensor, values = file.constant_of(file.first(*kinds.split()), 1)
        file.put(tensor, np.ascontiguousarray(change(values)))

    return apply


def _bias(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Device], None]:
    def apply(file: Device) -> None:
        tensor, values = file.constant_of(file.first(_CONV, _DENSE), 2)
        file.put(tensor, np.ascontiguousarray(change(values).astype(values.dtype)))

    return apply


def _weight_scale(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Device], None]:
    """Return a fault in requantization: an operator multiplies by other scales."""

    def apply(file: Device) -> None:
        tensor, values = file.constant_of(file.first(_CONV, _DENSE), 1)
        if values.dtype != np.int8:
            raise NotThereError
        scales = np.asarray(tensor.quantization.scale, np.float32)
        tensor.quantization.scale = change(scales).astype(np.float32)

    return apply


def _swapped(file: Device) -> None:
    op = file.first("CONCATENATION")
    op.inputs = op.inputs[::-1]


def _kind(before: str, after: int) -> Callable[[Device], None]:
    def apply(file: Device) -> None:
        file.becomes(file.first(before), after)

    return apply


def _flip(axis: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        if values.ndim < 3 or values.shape[axis] < 2:
            raise NotThereError
        return np.flip(values, axis)

    return change


FAULTS: dict[str, Callable[[Device], None]] = {
    "leaky slope 0.25 for 0.3": _option("LEAKY_RELU", "alpha", 0.25),
    "leaky slope 0": _option("LEAKY_RELU", "alpha", 0.0),
    "relu dropped": _option(f"{_CONV} {_DEPTHWISE} {_DENSE}", "fusedActivationFunction", 0, 1),
    "relu6 for relu": _option(f"{_CONV} {_DEPTHWISE} {_DENSE}", "fusedActivationFunction", 3, 1),
    "relu6 dropped": _option(f"{_CONV} {_DEPTHWISE}", "fusedActivationFunction", 0, 3),
    "resize without half pixels": _option("RESIZE_BILINEAR", "halfPixelCenters", False),
    "concat in another order": _swapped,
    "softmax beta 2": _option("SOFTMAX", "beta", 2.0),
    "softmax beta 0.5": _option("SOFTMAX", "beta", 0.5),
    "transposed kernel flipped": _kernel("TRANSPOSE_CONV", _flip(1)),
    "kernel rows flipped": _kernel(_CONV, _flip(1)),
    "kernel columns flipped": _kernel(_CONV, _flip(2)),
    "depthwise kernel flipped": _kernel(_DEPTHWISE, _flip(2)),
    "filters in reverse order": _kernel(f"{_CONV} {_DENSE}", lambda w: w[::-1]),
    "average for maximum": _kind("MAX_POOL_2D", _OPS.AVERAGE_POOL_2D),
    "maximum for average": _kind("AVERAGE_POOL_2D", _OPS.MAX_POOL_2D),
    "bias left out": _bias(lambda b: np.zeros_like(b)),
    "bias twice": _bias(lambda b: 2 * b),
    "scale 2 % too large": _weight_scale(lambda s: s * 1.02),
    "first scale for all": _weight_scale(lambda s: np.full_like(s, s[0])),
    "scales in reverse order": _weight_scale(lambda s: s[::-1]),
}


def mixed(seed: int) -> tuple[keras.Model, np.ndarray]:
    """Build a network with the operators that the others lack."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((16, 16, 3), name="image")
    x = layers.LeakyReLU(negative_slope=0.3)(layers.Conv2D(8, 3, padding="same")(image))
    y = layers.ReLU(6.0)(layers.DepthwiseConv2D(3, padding="same")(x))
    x = layers.Concatenate()([x, y])
    x = layers.Conv2D(12, 3, strides=2, padding="same", activation="relu")(x)
    up = layers.Conv2DTranspose(8, 3, strides=2, padding="same")(x)
    up = layers.AveragePooling2D(2, padding="same")(up)
    small = layers.UpSampling2D(2, interpolation="bilinear")(layers.MaxPooling2D(2)(x))
    x = layers.Conv2D(12, 1, activation="sigmoid")(layers.Concatenate()([up, small]))
    scores = layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(image, scores)
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        size = 0.1 if variable.ndim == 1 else 1.5 / np.sqrt(np.prod(variable.shape[:-1]))
        variable.assign(rng.normal(0, size, variable.shape))
    model.layers[-1].kernel.assign(4 * model.layers[-1].kernel)
    return model, smooth_inputs((16, 16, 3), rng, 32)


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=1 + len(NETWORKS))
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    precisions = tuple(options.precisions.split(","))
    rows: list[dict[str, Any]] = []
    for name in ["mixed", *NETWORKS][: options.networks]:
        model, x = mixed(0) if name == "mixed" else trained_like(name, 0)
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) / name
            rl.export_model(
                model,
                directory,
                formats=("tflite",),
                precisions=precisions,
                calibration=x,
                inputs=x[:16],
            )
            rows += _apply_faults(name, directory, Path(folder) / "device.tflite")
        print(name, sum(row["network"] == name for row in rows), flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
    _print(rows)


def _apply_faults(name: str, directory: Path, changed: Path) -> list[dict[str, Any]]:
    """Apply every fault to every file of one export."""
    export = open_export(directory)
    export.verify()
    golden = export.read_golden()
    rows = []
    for artifact in export.artifacts:
        path = export.path / artifact.file
        tried = [("", path, target) for target in ("litert", "litert+builtin", "litert+reference")]
        for kind, apply in FAULTS.items():
            file = Device(path)
            try:
                apply(file)
            except NotThereError:
                continue
            file.path = changed.with_name(f"{len(tried)}.{artifact.file}")
            file.save()
            tried.append((kind, file.path, "litert"))
        for kind, place, target in tried:
            row = _judge_outputs(export, artifact, golden, place, target)
            if row is not None and not (kind and row["same"]):
                rows.append({"network": name, "fault": kind, **row})
    return rows


def _judge_outputs(
    export: ExportDirectory, artifact: Artifact, golden: GoldenSet, path: Path, target: str
) -> dict[str, Any] | None:
    """Judge the outputs of an unknown device; None if the file does not run."""
    run = run_target(path, artifact, golden.inputs, Target.parse(target))
    if run.problem:
        return None
    usual = golden.kind != "nonfinite"
    known = golden.artifacts[artifact.file]
    same = all(np.array_equal(a[usual], known[key][usual]) for key, a in run.outputs.items())
    device = dataclasses.replace(run, ran={"runtime": "device"})
    result = judge_run(export, artifact, golden, Target("litert"), device)
    return {
        "precision": artifact.precision,
        "same": same,
        "found": not result.passed,
        "checks": sorted({f.check for f in result.findings if not f.passed}),
        "pooled": max(entry.pooled_ratio for entry in result.outputs),
        "worst": max(entry.worst_ratio for entry in result.outputs),
    }


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(title="wrong kernels played / found", title_justify="left")
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    for heading in ("wrong kernel", *precisions):
        table.add_column(heading)
    for kind in ["", *FAULTS]:
        cells = []
        for precision in precisions:
            chosen = [r for r in rows if (r["fault"], r["precision"]) == (kind, precision)]
            cells.append(f"{len(chosen)} / {sum(r['found'] for r in chosen)}" if chosen else "-")
        table.add_row(kind or "none: healthy", *cells)
    console = Console()
    console.print(table)
    for row in rows:
        if row["found"] != bool(row["fault"]):
            console.print(row)


if __name__ == "__main__":
    main()
