"""Injects faults into exported files; counts those that checks detect and locate in the right op.

    python benchmarks/check_faults.py [--networks 3] [--faults 30] [--seed 0] [--json OUT]

Each fault is an edit of a healthy file of one of three networks; the manifest gets the new hash, so
that only the numbers can show the fault. A fault is *found* if the check (with `per_op`) fails, and
*named* if the first layer in the report is one that the edited op computes. The last columns count
the faults that showed in the outputs or in the weights alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import renormlite as rl
from ai_edge_litert import schema_py_generated as schema
from check_networks import NAMES, export
from renormlite.artifacts.flatbuffer import pack, parse
from renormlite.files import sha256
from rich.console import Console
from rich.table import Table

_LINEAR = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "Conv", "Gemm", "MatMul"}
_CODES = {number: name for name, number in vars(schema.BuiltinOperator).items()}


@dataclasses.dataclass(frozen=True)
class Planted:
    """A fault in a file.

    Attributes:
        kind: Kind of fault.
        file: Name of the file.
        op: Index of the op, as the checks count.
        note: The changed numbers.
    """

    kind: str
    file: str
    op: int
    note: str


class NotPossibleError(Exception):
    """The chosen op cannot have the fault; another op is chosen."""


class TFLiteFile:
    """A .tflite file whose ops can be changed."""

    def __init__(self, path: Path) -> None:
        self.path, self.model = path, parse(path.read_bytes())
        self.graph = self.model.subgraphs[0]

    def linear_ops(self) -> list[int]:
        """Return the indices of ops with weights."""
        return [i for i, op in enumerate(self.graph.operators) if self.kind(op) in _LINEAR]

    def kind(self, op: Any) -> str:
        """Return the name of an op in the format."""
        code = self.model.operatorCodes[op.opcodeIndex]
        return str(_CODES[max(code.builtinCode, code.deprecatedBuiltinCode)])

    def constant(self, op: int, slot: int) -> tuple[Any, np.ndarray]:
        """Return the tensor of a constant input and its numbers, in the layout of the file."""
        inputs = self.graph.operators[op].inputs
        if slot >= len(inputs) or inputs[slot] < 0:
            raise NotPossibleError
        tensor = self.graph.tensors[inputs[slot]]
        dtype = {0: np.float32, 9: np.int8, 2: np.int32}.get(tensor.type)
        data = self.model.buffers[tensor.buffer].data
        if dtype is None or data is None:
            raise NotPossibleError
        return tensor, np.asarray(data, np.uint8).view(dtype).reshape(tensor.shape).copy()

    def put(self, tensor: Any, values: np.ndarray) -> None:
        """Replace the numbers of a tensor, in a new buffer."""
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        tensor.buffer = len(self.model.buffers) - 1

    def kernel(self, op: int) -> tuple[Any, np.ndarray, int]:
        """Return a kernel and the axis of its output channels."""
        tensor, values = self.constant(op, 1)
        depthwise = self.kind(self.graph.operators[op]) == "DEPTHWISE_CONV_2D"
        return tensor, values, values.ndim - 1 if depthwise else 0

    def bias(self, op: int) -> tuple[Any, np.ndarray]:
        """Return the bias of an op."""
        return self.constant(op, 2)

    def set_activation(self, op: int, rng: np.random.Generator) -> str:
        """Change the activation of an op; return a description."""
        options = self.graph.operators[op].builtinOptions
        if options.fusedActivationFunction != 1:
            raise NotPossibleError
        chosen = int(rng.choice([0, 2, 3, 4]))
        options.fusedActivationFunction = chosen
        return {0: "relu dropped", 2: "relu to [-1, 1]", 3: "relu6", 4: "tanh"}[chosen]

    def shift_padding(self, op: int) -> str:
        """Replace the padding of a convolution by a PAD op that is off by one pixel."""
        node = self.graph.operators[op]
        options = node.builtinOptions
        kernel = self.graph.tensors[node.inputs[1]].shape[1:3]
        source = self.graph.tensors[node.inputs[0]]
        if getattr(options, "padding", 1) != 0 or max(kernel) < 2 or source.type != 0:
            raise NotPossibleError
        total = []
        for size, k, s in zip(
            source.shape[1:3], kernel, (options.strideH, options.strideW), strict=True
        ):
            total.append(max((-(-size // s) - 1) * s + k - size, 0))
        if max(total) == 0:
            raise NotPossibleError
        pads = np.array([[0, 0], [total[0], 0], [total[1], 0], [0, 0]], np.int32)
        shape = [1, source.shape[1] + total[0], source.shape[2] + total[1], source.shape[3]]
        node.inputs = list(node.inputs)
        padded = self._tensor("padded", np.array(shape, np.int32), 0)
        amounts = self._tensor("pads", np.array([4, 2], np.int32), 2)
        self.put(self.graph.tensors[amounts], pads)
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.PAD
        code.version = 1
        self.model.operatorCodes.append(code)
        pad = schema.OperatorT()
        pad.opcodeIndex = len(self.model.operatorCodes) - 1
        pad.inputs, pad.outputs = [node.inputs[0], amounts], [padded]
        node.inputs[0] = padded
        options.padding = 1
        self.graph.operators.insert(op, pad)
        return f"all padding before: {pads[1:3].tolist()}"

    def _tensor(self, name: str, shape: np.ndarray, kind: int) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name.encode(), shape, kind, 0
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def roll_scales(self, op: int, rng: np.random.Generator) -> str:
        """Set wrong scales for the weights of an op; return a description."""
        tensor, _, _ = self.kernel(op)
        scales = np.asarray(tensor.quantization.scale, np.float32)
        if scales.size > 1 and rng.random() < 0.5:
            tensor.quantization.scale = np.roll(scales, 1)
            return "scales one channel off"
        tensor.quantization.scale = (scales * np.float32(127 / 128)).astype(np.float32)
        return "scale by 128 instead of 127"

    def save(self) -> None:
        """Write the file."""
        self.path.write_bytes(pack(self.model))


class OnnxFile:
    """An .onnx file whose ops can be changed."""

    def __init__(self, path: Path) -> None:
        self.path, self.model = path, onnx.load(path)
        self.graph = self.model.graph

    def linear_ops(self) -> list[int]:
        """Return the indices of ops with weights."""
        return [i for i, node in enumerate(self.graph.node) if node.op_type in _LINEAR]

    def constant(self, op: int, slot: int) -> tuple[Any, np.ndarray]:
        """Return a constant input and its numbers."""
        node = self.graph.node[op]
        if slot >= len(node.input):
            raise NotPossibleError
        for entry in self.graph.initializer:
            if entry.name == node.input[slot]:
                return entry, onnx.numpy_helper.to_array(entry).copy()
        raise NotPossibleError

    def put(self, tensor: Any, values: np.ndarray) -> None:
        """Replace the numbers of a constant."""
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))

    def kernel(self, op: int) -> tuple[Any, np.ndarray, int]:
        """Return a kernel and the axis of its output channels."""
        entry, values = self.constant(op, 1)
        node = self.graph.node[op]
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        return entry, values, 0 if node.op_type == "Conv" or transposed else values.ndim - 1

    def bias(self, op: int) -> tuple[Any, np.ndarray]:
        """Return the bias of an op."""
        return self.constant(op, 2)

    def set_activation(self, op: int, rng: np.random.Generator) -> str:
        """Change the activation of an op; return a description."""
        output = self.graph.node[op].output[0]
        for node in self.graph.node:
            if node.op_type == "Relu" and node.input[0] == output:
                node.op_type = str(rng.choice(["LeakyRelu", "Tanh", "Identity", "Elu"]))
                return f"relu to {node.op_type}"
        raise NotPossibleError

    def shift_padding(self, op: int) -> str:
        """Move all padding of an op before the input; return a description."""
        for attribute in self.graph.node[op].attribute:
            if attribute.name == "pads" and any(attribute.ints):
                pads = list(attribute.ints)
                half = len(pads) // 2
                total = [a + b for a, b in zip(pads[:half], pads[half:], strict=True)]
                attribute.ints[:] = [*total, *[0] * half]
                return f"all padding before: {list(attribute.ints)}"
        raise NotPossibleError

    def roll_scales(self, op: int, rng: np.random.Generator) -> str:
        """Set wrong scales for the weights of an op; return a description."""
        raise NotPossibleError

    def save(self) -> None:
        """Write the file."""
        self.path.write_bytes(self.model.SerializeToString())


def _layer_of_weights(report: Any) -> str:
    """Return the layer whose weights differ; empty if none does.

    Exchanged rows of the last layer are reported with the interface, as exchanged labels.
    """
    findings = [finding for result in report.results for finding in result.findings]
    wrong = [entry.subject for entry in findings if entry.check == "weights" and not entry.passed]
    return wrong[0] if wrong else ""


File = TFLiteFile | OnnxFile
Plant = Callable[[File, int, np.random.Generator], str]


def _floats(values: np.ndarray) -> np.ndarray:
    if values.dtype != np.float32:
        raise NotPossibleError
    return values


def single_weight(file: File, op: int, rng: np.random.Generator) -> str:
    tensor, values, _ = file.kernel(op)
    place = int(rng.integers(values.size))
    old = _floats(values).flat[place]
    values.flat[place] = old * np.float32(1.01)
    file.put(tensor, values)
    return f"{old:.6g} to {values.flat[place]:.6g}"


def single_bias(file: File, op: int, rng: np.random.Generator) -> str:
    tensor, values = file.bias(op)
    place = int(rng.integers(values.size))
    old = _floats(values).flat[place]
    if not values.any():
        raise NotPossibleError
    values.flat[place] = old + np.float32(0.01 * np.abs(values).max())
    file.put(tensor, values)
    return f"{old:.6g} to {values.flat[place]:.6g}"


def wrong_padding(file: File, op: int, rng: np.random.Generator) -> str:
    return file.shift_padding(op)


def swapped_channel(file: File, op: int, rng: np.random.Generator) -> str:
    tensor, values, axis = file.kernel(op)
    if values.shape[axis] < 2:
        raise NotPossibleError
    a, b = (int(i) for i in rng.choice(values.shape[axis], 2, replace=False))
    order = np.arange(values.shape[axis])
    order[[a, b]] = b, a
    file.put(tensor, np.take(values, order, axis))
    return f"channels {a} and {b}"


def wrong_activation(file: File, op: int, rng: np.random.Generator) -> str:
    return file.set_activation(op, rng)


def off_by_one_scale(file: File, op: int, rng: np.random.Generator) -> str:
    return file.roll_scales(op, rng)


def stale_statistics(file: File, op: int, rng: np.random.Generator) -> str:
    tensor, values, axis = file.kernel(op)
    bias, shifts = file.bias(op)
    factors = rng.uniform(0.95, 1.05, values.shape[axis]).astype(np.float32)
    shape = [1] * values.ndim
    shape[axis] = -1
    file.put(tensor, _floats(values) * factors.reshape(shape))
    moved = rng.normal(0, 0.05, shifts.shape).astype(np.float32) * np.abs(shifts).mean()
    file.put(bias, _floats(shifts) * factors + moved)
    return "folded with statistics 5 % off"


def wrong_rounding(file: File, op: int, rng: np.random.Generator) -> str:
    tensor, values, _ = file.kernel(op)
    if values.dtype == np.int8:
        # Rounded down instead of to nearest: half of the weights are one step lower.
        low = rng.random(values.shape) < 0.5
        file.put(
            tensor, np.where(low, np.maximum(values.astype(int) - 1, -127), values).astype("i1")
        )
        return "int8 weights rounded down"
    bits = _floats(values).view(np.uint32) & np.uint32(0xFFFFF000)
    file.put(tensor, bits.view(np.float32))
    return "float32 weights cut to 11 bits"


KINDS: dict[str, Plant] = {
    "single weight": single_weight,
    "single bias": single_bias,
    "wrong padding": wrong_padding,
    "swapped channel": swapped_channel,
    "wrong activation": wrong_activation,
    "off-by-one scale": off_by_one_scale,
    "stale statistics": stale_statistics,
    "wrong rounding": wrong_rounding,
}


def plant(directory: Path, kind: str, rng: np.random.Generator) -> Planted:
    """Plant a fault in a random file of an export, and update the hash in the manifest."""
    manifest = json.loads((directory / "manifest.json").read_text())
    wanted = "int8" if kind == "off-by-one scale" else "float32"
    if kind == "wrong rounding" and rng.random() < 0.5:
        wanted = "int8"
    files = [a for a in manifest["artifacts"] if a["precision"] == wanted]
    if wanted == "int8":
        files = [a for a in files if a["format"] == "tflite"]
    while True:
        record = files[int(rng.integers(len(files)))]
        path = directory / record["file"]
        file: File = TFLiteFile(path) if record["format"] == "tflite" else OnnxFile(path)
        ops = file.linear_ops()
        op = ops[int(rng.integers(len(ops)))]
        try:
            note = KINDS[kind](file, op, rng)
            break
        except NotPossibleError:
            continue
    file.save()
    record["sha256"], record["bytes"] = sha256(path), path.stat().st_size
    manifest["artifacts"] = [record]
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return Planted(kind, record["file"], op, note)


def layers_of_ops(directory: Path) -> dict[tuple[str, int], set[str]]:
    """Return the Keras layers that each op of the healthy files computes, as the checks see it."""
    report = rl.check_parity(directory, ("litert", "onnxruntime"), per_op=True)
    assert report.passed, "the export to plant faults in must be healthy"
    found = computed_layers(report)
    for file in {result.artifact for result in report.results}:
        _join_activations(file, directory, found)
    return found


def computed_layers(report: rl.ParityReport) -> dict[tuple[str, int], set[str]]:
    """Return the layers that each checked op computes, by file and index of the op."""
    found: dict[tuple[str, int], set[str]] = {}
    for result in report.results:
        for check in result.ops:
            if check.op is not None:
                layers = {check.layer, *(name.partition("/")[0] for name in check.fused)}
                found.setdefault((result.artifact, check.op.index), set()).update(layers)
    return found


def _join_activations(file: str, directory: Path, found: dict[tuple[str, int], set[str]]) -> None:
    """Assign activation nodes to the ONNX op before them, where their faults are planted."""
    if not file.endswith(".onnx"):
        return
    graph = onnx.load(directory / file).graph
    for index, node in enumerate(graph.node):
        for after, reader in enumerate(graph.node):
            if reader.op_type == "Relu" and reader.input[0] == node.output[0]:
                found.setdefault((file, index), set()).update(found.get((file, after), set()))


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=len(NAMES))
    parser.add_argument("--faults", type=int, default=30, help="number for each network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES[: options.networks]:
            healthy = export(name, 1, Path(folder) / name, ("float32", "int8"))
            owners = layers_of_ops(healthy)
            rng = np.random.default_rng(options.seed)
            for number in range(options.faults):
                kind = list(KINDS)[number % len(KINDS)]
                spoiled = Path(folder) / f"{name}-{number}"
                shutil.copytree(healthy, spoiled)
                planted = plant(spoiled, kind, rng)
                target = "litert" if planted.file.endswith("tflite") else "onnxruntime"
                report = rl.check_parity(spoiled, (target,), per_op=True)
                failed = {
                    finding.check
                    for result in report.results
                    for finding in result.findings
                    if not finding.passed
                }
                faults = [fault for result in report.results for fault in result.faults]
                blamed = faults[0].layer if faults else _layer_of_weights(report)
                truth = owners.get((planted.file, planted.op), set())
                rows.append(
                    {
                        "network": name,
                        **dataclasses.asdict(planted),
                        "found": not report.passed,
                        "end to end": bool(failed - {"ops", "weights"}),
                        "by weights": "weights" in failed,
                        "blamed": blamed,
                        "named": blamed in truth,
                        "truth": sorted(truth),
                        "says": faults[0].kind if faults else "",
                    }
                )
                shutil.rmtree(spoiled)
    _print(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(title="faults planted / found / culprit named", title_justify="left")
    networks = list(dict.fromkeys(row["network"] for row in rows))
    table.add_column("fault")
    for name in networks:
        table.add_column(name, justify="right")

    def cell(chosen: list[dict[str, Any]]) -> str:
        found, named = (sum(row[key] for row in chosen) for key in ("found", "named"))
        return f"{len(chosen)} / {found} / {named}"

    for kind in KINDS:
        table.add_row(
            kind,
            *(cell([r for r in rows if r["kind"] == kind and r["network"] == n]) for n in networks),
        )
    for key in ("end to end", "by weights"):
        hits = (sum(r[key] for r in rows if r["network"] == n) for n in networks)
        table.add_row(f"found {key}", *map(str, hits))
    table.add_row("all", *(cell([r for r in rows if r["network"] == n]) for n in networks))
    console = Console()
    console.print(table)
    for row in rows:
        if not row["named"]:
            console.print({key: row[key] for key in row})


if __name__ == "__main__":
    main()
