"""Simulates wrong kernels on a device without access to tensors; counts how many are detected.

    python benchmarks/check_device_faults.py [--networks mixed,attention] [--seed 0]
        [--precisions float32,int8] [--json OUT]

The exported file does not change. The "device" runs a copy of it in which one operator computes
another function. It shows no tensors, and its runtime is unknown. A wrong kernel that changes no
output of any sample is not counted. Healthy devices, with every kernel set of LiteRT and with a
rounding rule that is not known, must pass. Seed 0 replaces the first operator that can have the
fault, and other seeds one at random.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import renormlite as rl
from ai_edge_litert import schema_py_generated as schema
from check_faults import TFLiteFile
from check_networks import smooth_inputs, trained_like
from keras import layers
from layer_networks import LAYER_NETWORKS, export_layers
from renormlite.artifacts.directory import ExportDirectory, open_export
from renormlite.artifacts.golden_set import GoldenSet
from renormlite.artifacts.manifest import Artifact
from renormlite.models.mlperf_tiny import NETWORKS
from renormlite.runtime_checks.end_to_end.target_check import judge_run
from renormlite.runtimes import Target
from renormlite.runtimes.base import Runner, TensorInfo
from renormlite.runtimes.litert import LiteRTRunner
from renormlite.runtimes.run import run_target
from rich.console import Console
from rich.table import Table

PRECISIONS = ("float32", "float16", "int8", "int16x8")
# Their verdict depends on the operators, also where outputs fail: an unknown rule may round so.
_BY_OPERATORS = ("int8", "int16x8")
_OPS = schema.BuiltinOperator
_CONV, _DEPTHWISE, _DENSE = "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"


class NotThereError(Exception):
    """The file has no such operator."""


class Device(TFLiteFile):
    """A file in which one operator can be replaced by another."""

    def __init__(self, path: Path, seed: int = 0) -> None:
        super().__init__(path)
        self.rng = np.random.default_rng(seed) if seed else None

    def one(self, *kinds: str, where: Callable[[Any], bool] = lambda op: True) -> Any:
        """Return the first operator of some kinds, or one at random."""
        fitting = [op for op in self.graph.operators if self.kind(op) in kinds and where(op)]
        if not fitting:
            raise NotThereError
        return fitting[0 if self.rng is None else self.rng.integers(len(fitting))]

    def constants(self, op: Any) -> list[int]:
        """Return the slots of the inputs of an operator that are constants."""
        found = []
        for slot in range(len(op.inputs)):
            try:
                self.constant_of(op, slot)
            except NotThereError:
                continue
            found.append(slot)
        return found

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

        setattr(file.one(*kinds.split(), where=fits).builtinOptions, name, value)

    return apply


def _constant(kinds: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Device], None]:
    """Return a fault that changes the first constant of an operator."""

    def apply(file: Device) -> None:
        op = file.one(*kinds.split(), where=file.constants)
        tensor, values = file.constant_of(op, file.constants(op)[0])
        file.put(tensor, np.ascontiguousarray(change(values)))

    return apply


def _kernel(kinds: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Device], None]:
    """Return a fault that changes a kernel."""

    def apply(file: Device) -> None:
        op = file.one(*kinds.split(), where=lambda op: 1 in file.constants(op))
        tensor, values = file.constant_of(op, 1)
        file.put(tensor, np.ascontiguousarray(change(values)))

    return apply


def _bias(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Device], None]:
    def apply(file: Device) -> None:
        tensor, values = file.constant_of(file.one(_CONV, _DENSE), 2)
        file.put(tensor, np.ascontiguousarray(change(values).astype(values.dtype)))

    return apply


def _weight_scale(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Device], None]:
    """Return a fault in requantization: an operator multiplies by other scales."""

    def apply(file: Device) -> None:
        tensor, values = file.constant_of(file.one(_CONV, _DENSE), 1)
        if values.dtype != np.int8:
            raise NotThereError
        scales = np.asarray(tensor.quantization.scale, np.float32)
        tensor.quantization.scale = change(scales).astype(np.float32)

    return apply


def _with_bits(bits: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that rounds numbers to so many bits."""

    def change(values: np.ndarray) -> np.ndarray:
        mantissa, exponent = np.frexp(values)
        return np.ldexp(np.round(mantissa * 2**bits) / 2**bits, exponent)

    return change


def _swapped(kind: str, field: str) -> Callable[[Device], None]:
    """Return a fault that reverses the order of inputs or outputs."""

    def apply(file: Device) -> None:
        op = file.one(kind)
        setattr(op, field, getattr(op, field)[::-1])

    return apply


def _corners(file: Device) -> None:
    options = file.one("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR").builtinOptions
    options.halfPixelCenters, options.alignCorners = False, True


def _earlier(file: Device) -> None:
    """Begin and end a slice one place earlier."""
    op = file.one("STRIDED_SLICE", where=lambda op: np.any(file.constant_of(op, 1)[1] > 0))
    later = file.constant_of(op, 1)[1] > 0
    for slot in (1, 2):
        tensor, places = file.constant_of(op, slot)
        file.put(tensor, places - later.astype(places.dtype))


def _without_zero_point(file: Device) -> None:
    """Sum products of the integers of the input, without subtracting its zero point."""
    op = file.one(_CONV, _DENSE)
    (bias, sums), (_, kernel) = file.constant_of(op, 2), file.constant_of(op, 1)
    quantization = file.graph.tensors[op.inputs[0]].quantization
    zero = quantization.zeroPoint if quantization is not None else None
    if kernel.dtype != np.int8 or zero is None or not np.any(zero):
        raise NotThereError
    moved = int(zero[0]) * kernel.astype(np.int64).reshape(len(kernel), -1).sum(1)
    file.put(bias, (sums + moved).astype(sums.dtype))


def _kind(before: str, after: int) -> Callable[[Device], None]:
    def apply(file: Device) -> None:
        file.becomes(file.one(before), after)

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
    "resize with aligned corners": _corners,
    "concat in another order": _swapped("CONCATENATION", "inputs"),
    "parts in another order": _swapped("SPLIT", "outputs"),
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
    "scales of 6 bits": _weight_scale(_with_bits(6)),
    "input zero point ignored": _without_zero_point,
    "last input left out": _kernel(
        f"{_CONV} {_DENSE}",
        lambda w: w * (np.arange(w.shape[-1]) < w.shape[-1] - 1).astype(w.dtype),
    ),
    "last filter zero": _kernel(
        f"{_CONV} {_DENSE}", lambda w: np.concatenate([w[:-1], 0 * w[-1:]])
    ),
    "subtraction for addition": _kind("ADD", _OPS.SUB),
    "addition for subtraction": _kind("SUB", _OPS.ADD),
    "addition for multiplication": _kind("MUL", _OPS.ADD),
    "minimum for maximum": _kind("MAXIMUM", _OPS.MINIMUM),
    "sum for mean": _kind("MEAN", _OPS.SUM),
    "relu for elu": _kind("ELU", _OPS.RELU),
    "relu for absolute value": _kind("ABS", _OPS.RELU),
    "square root for its inverse": _kind("RSQRT", _OPS.SQRT),
    "tanh for logistic": _kind("LOGISTIC", _OPS.TANH),
    "other form of gelu": _option("GELU", "approximate", True),
    "constants in reverse order": _constant("ADD SUB MUL PRELU", np.flip),
    "padding on the other side": _constant("PAD PADV2 MIRROR_PAD", np.fliplr),
    "axes in reverse order": _constant("TRANSPOSE", np.flip),
    "table in reverse order": _constant("GATHER", np.flipud),
    "slice one place earlier": _earlier,
    "dilation left out": _option(_CONV, "dilationWFactor", 1, 2),
    "matrix not transposed": _option("BATCH_MATMUL", "adjY", False, True),
    "matrix transposed": _option("BATCH_MATMUL", "adjY", True, False),
}


def _of_unknown_rule(file: Device) -> None:
    """Multiply by scales of fewer bits, which changes results by less than a step."""
    op = file.one(_CONV, _DENSE)
    wide = file.graph.tensors[op.outputs[0]].type == schema.TensorType.INT16
    _weight_scale(_with_bits(18 if wide else 11))(file)


# Changes of the file and kernels of LiteRT that compute correctly.
HEALTHY: tuple[tuple[Callable[[Device], None], str], ...] = (
    (lambda file: None, ""),
    (lambda file: None, "builtin"),
    (lambda file: None, "reference"),
    (_of_unknown_rule, ""),
)


class SimulatedDevice(Runner):
    """LiteRT without access to tensors, in which one operator computes another function."""

    runtime = "simulated-device"
    change: Callable[[Device], None]
    seed: int
    kernels: str

    _folder: Any = None
    _inside: LiteRTRunner

    def _open(self) -> None:
        file = Device(self.artifact, self.seed)
        type(self).change(file)
        self._folder = tempfile.TemporaryDirectory()
        file.path = Path(self._folder.name) / self.artifact.name
        file.save()
        self._inside = LiteRTRunner(file.path, variant=self.kernels)
        self._inside.__enter__()

    def _close(self) -> None:
        if self._folder is not None:
            self._inside.__exit__(None, None, None)
            self._folder.cleanup()

    def _signature(self) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
        return self._inside.inputs, self._inside.outputs

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._inside.infer(inputs)

    def describe(self) -> dict[str, object]:
        """Return the name alone: nothing is known of the device's kernels."""
        return {"runtime": self.runtime}


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
    parser.add_argument("--networks", default=",".join(["mixed", *NETWORKS, *LAYER_NETWORKS]))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    precisions = tuple(options.precisions.split(","))
    rl.register_runtime(SimulatedDevice.runtime, SimulatedDevice, formats=("tflite",))
    rows: list[dict[str, Any]] = []
    for name in options.networks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) / name
            _export(name, directory, precisions, options.seed)
            rows += _apply_faults(name, directory, options.seed)
        print(name, sum(row["network"] == name for row in rows), flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
    _print(rows)


def _export(name: str, directory: Path, precisions: tuple[str, ...], seed: int) -> None:
    """Export a network as TFLite."""
    if name in LAYER_NETWORKS:
        export_layers(name, directory, precisions, ("tflite",))
        return
    model, x = mixed(seed) if name == "mixed" else trained_like(name, seed)
    rl.export_model(
        model,
        directory,
        formats=("tflite",),
        precisions=precisions,
        calibration=x,
        inputs=x[:16],
    )


def _apply_faults(name: str, directory: Path, seed: int) -> list[dict[str, Any]]:
    """Check every file of one export on devices with each fault, and on healthy ones."""
    export = open_export(directory)
    export.verify()
    golden = export.read_golden()
    healthy = [("", change, kernels) for change, kernels in HEALTHY]
    rows = []
    for artifact in export.artifacts:
        for kind, change, kernels in [*healthy, *((k, c, "") for k, c in FAULTS.items())]:
            SimulatedDevice.change = staticmethod(change)
            SimulatedDevice.seed, SimulatedDevice.kernels = seed, kernels
            row = _checked(export, artifact, golden, faulty=bool(kind))
            if row is not None:
                rows.append({"network": name, "fault": kind, **row})
    return rows


def _checked(
    export: ExportDirectory, artifact: Artifact, golden: GoldenSet, *, faulty: bool
) -> dict[str, Any] | None:
    """Check a file on the simulated device; None if it cannot have the fault, or does not show."""
    target = Target(SimulatedDevice.runtime)
    try:
        run = run_target(export.path / artifact.file, artifact, golden.inputs, target)
    except NotThereError:
        return None
    if run.problem:
        return None
    usual = golden.kind != "nonfinite"
    known = golden.artifacts[artifact.file]
    same = all(np.array_equal(a[usual], known[key][usual]) for key, a in run.outputs.items())
    if faulty and same:
        return None
    result = None
    if artifact.precision not in _BY_OPERATORS:
        result = judge_run(export, artifact, golden, target, run)
    if result is None or result.passed:
        [result] = rl.check_parity(
            export.path, targets=[str(target)], artifacts=[artifact.file]
        ).results
    return {
        "precision": artifact.precision,
        "found": not result.passed,
        "checks": sorted({f.check for f in result.findings if not f.passed}),
        "says": [f.message for f in result.findings if not f.passed][:3],
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
