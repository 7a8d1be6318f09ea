"""Protects the check of operators on a target that shows no tensors and follows no known rule."""

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers as kl
from renormlite import check_parity
from renormlite.artifacts.directory import open_export
from renormlite.artifacts.flatbuffer import operator_kind, pack, parse
from renormlite.artifacts.graphs import read_graph
from renormlite.runtime_checks.per_op.exposed_copy import exposed_tensors, write_exposed
from renormlite.runtimes import RUNTIMES, Runtime, Target, make_runner
from renormlite.runtimes.base import Runner
from renormlite.runtimes.litert import LiteRTRunner
from renormlite.runtimes.run import run_target


class Accelerator(Runner):
    """LiteRT without access to tensors, whose second convolution has other scales or weights."""

    runtime = "accelerator"
    factor = 1.0
    last_filter = 1.0

    def _open(self) -> None:
        model = parse(self.artifact.read_bytes())
        graph = model.subgraphs[0]
        convolutions = [op for op in graph.operators if operator_kind(model, op) == "CONV_2D"]
        steps = graph.tensors[convolutions[1].inputs[1]].quantization
        if steps is not None and steps.scale is not None:
            steps.scale = np.asarray(steps.scale * self.factor, np.float32)
        for op in graph.operators:
            if op.outputs[0] == convolutions[1].inputs[1]:  # DEQUANTIZE of a float16 kernel
                buffer = model.buffers[graph.tensors[op.inputs[0]].buffer]
                kernel = np.frombuffer(bytes(buffer.data), np.float16).copy()
                kernel[-kernel.size // graph.tensors[op.inputs[0]].shape[0] :] *= self.last_filter
                buffer.data = np.frombuffer(kernel.tobytes(), np.uint8)
        changed = self.artifact.with_name(f"changed.{self.artifact.name}")
        changed.write_bytes(pack(model))
        self._inside = LiteRTRunner(changed)
        self._inside.__enter__()
        changed.unlink()

    def _close(self) -> None:
        self._inside.__exit__(None, None, None)

    def _signature(self):
        return self._inside.inputs, self._inside.outputs

    def _infer(self, inputs):
        return self._inside.infer(inputs)

    def describe(self):
        """Return the name: nothing is known of the kernels."""
        return {"runtime": self.runtime}


@pytest.fixture
def accelerator(monkeypatch):
    """Return a function that checks a .tflite file on an accelerator with a factor."""
    monkeypatch.setitem(RUNTIMES, "accelerator", Runtime(Accelerator, ("tflite",), "", ""))

    def checked(directory, factor, precision="int8"):
        name = "factor" if precision == "int8" else "last_filter"
        monkeypatch.setattr(Accelerator, name, factor)
        (result,) = check_parity(directory, ("accelerator",), precisions=(precision,)).results
        return result

    return checked


def test_copy_shows_what_litert_shows(coarse_export, tmp_path):
    export = open_export(coarse_export)
    artifact = next(a for a in export.artifacts if a.file.endswith("int8.tflite"))
    path = export.path / artifact.file
    graph = read_graph(path, "tflite")
    copied = write_exposed(path, artifact, graph, 1, tmp_path)
    inputs = {k: v[:3] for k, v in export.read_golden().inputs.items()}
    outputs = run_target(tmp_path / copied.file, copied, inputs, Target("litert")).outputs
    found = exposed_tensors(outputs, copied, artifact, graph)
    computed = {key for op in graph.ops for key in op.outputs}
    with make_runner(Target("litert"), path) as runner:
        for sample in range(3):
            (array,) = inputs.values()
            (info,) = runner.inputs
            shown = runner.infer_all({info.name: array[sample : sample + 1].astype(info.dtype)})
            equal = {
                key
                for key, values in found.items()
                if values[sample].dtype == shown[key].dtype
                and np.array_equal(values[sample], shown[key])
            }
            assert equal == computed


def test_wrong_scale_is_found_and_the_layer_named(coarse_export, accelerator):
    result = accelerator(coarse_export, 1.03)
    assert not result.passed
    (finding,) = [f for f in result.findings if not f.passed and f.check == "ops"]
    assert finding.subject == "down"


def test_unknown_rounding_within_a_step_passes(coarse_export, accelerator):
    result = accelerator(coarse_export, 1 + 2**-12)
    assert result.passed, result.reason
    assert any("no known rounding rule" in f.message for f in result.findings)
    (finding,) = [f for f in result.findings if f.check == "rounding"]
    assert "no known rule, but within a step of one: 1 op (CONV_2D)" in finding.message
    assert "from a copy of the file that returns all tensors" in finding.message
    (noise,) = [f for f in result.findings if f.check == "noise"]
    assert "noise of the difference between known rounding rules" not in noise.message


def test_a_wrong_operator_within_half_precision_is_found(coarse_export, accelerator):
    """It changes the outputs by less than arithmetic in half precision may."""
    result = accelerator(coarse_export, 0.98, "float16")
    (finding,) = [f for f in result.findings if not f.passed]
    assert (finding.check, finding.subject) == ("ops", "down")
    assert accelerator(coarse_export, 1.0, "float16").passed


def test_known_rounding_needs_no_copy(coarse_export, accelerator):
    result = accelerator(coarse_export, 1.0)
    assert result.passed
    assert not any("from a copy" in f.message for f in result.findings)


def test_tensors_without_an_axis_of_samples_are_left_out(coarse_export, tmp_path):
    export = open_export(coarse_export)
    artifact = next(a for a in export.artifacts if a.file.endswith("int8.tflite"))
    path = export.path / artifact.file
    model, graph = parse(path.read_bytes()), read_graph(path, "tflite")
    first = next(key for op in graph.ops for key in op.outputs)
    model.subgraphs[0].tensors[int(first)].shape = None
    (tmp_path / artifact.file).write_bytes(pack(model))
    copied = write_exposed(tmp_path / artifact.file, artifact, graph, 1, tmp_path)
    names = [spec.keras_name for spec in copied.outputs]
    assert first not in names
    assert len(names) > len(artifact.outputs)


@pytest.mark.parametrize("kind", ["constant", "input"])
def test_outputs_that_no_op_computes(kind, tmp_path):
    x = keras.Input((6,), name="x")
    outputs = [kl.Dense(3)(x), keras.ops.zeros_like(x) + 3.0] if kind == "constant" else [x]
    samples = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    rl.export_model(
        keras.Model(x, outputs),
        tmp_path / "net",
        calibration=samples,
        precisions=("float16", "dynamic", "int8"),
    )
    targets = ("litert", "litert+reference", "onnxruntime")
    assert rl.check_parity(tmp_path / "net", targets, per_op=True).passed
