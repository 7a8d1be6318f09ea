"""Protects the other runtimes: each agrees with float64, reports what ran, refuses bad files."""

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
import renormlite as rl
from click.testing import CliRunner
from renormlite import runtimes
from renormlite.artifacts.precisions import Arithmetic
from renormlite.cli.main import cli
from renormlite.models import digits
from renormlite.runtimes import RUNTIMES, Target, make_runner
from renormlite.runtimes.base import ArtifactError
from renormlite.runtimes.isolated import environment
from renormlite.runtimes.onnxruntime import OnnxRuntimeRunner

TARGETS = (
    "litert-compiled",
    "litert-compiled+builtin",
    "litert-compiled+reference",
    "onnx-reference",
    "openvino",
    "tflite-micro",
    pytest.param(
        "tflite-runtime",
        marks=pytest.mark.skipif(
            environment("tflite-runtime") is None,
            reason="needs Python 3.11 or older: make envs TFLITE_PYTHON=python3.11",
        ),
    ),
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits network in two precisions, with norms that are not the identity."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = digits.build(rl.BatchRenormalization)
    for norm in (x for x in model.layers if isinstance(x, rl.BatchRenormalization)):
        norm.moving_mean.assign(rng.normal(size=norm.moving_mean.shape))
        norm.moving_variance.assign(rng.uniform(0.5, 2.0, norm.moving_variance.shape))
    images = rng.uniform(size=(32, 8, 8, 1)).astype(np.float32)
    folder = tmp_path_factory.mktemp("build") / "digits"
    rl.export_model(
        model, folder, precisions=("float32", "int8"), calibration=images, inputs=images
    )
    return folder


@pytest.mark.parametrize("target", TARGETS)
def test_every_runtime_agrees_with_float64(target: str, exported: Path) -> None:
    report = rl.check_parity(exported, (target,))
    assert report.passed, [f.message for r in report.results for f in r.findings if not f.passed]
    floats = [r for r in report.results if r.precision == "float32"]
    assert len(floats) == len(Target.parse(target).formats)


@pytest.mark.parametrize("target", TARGETS)
def test_every_runtime_reports_what_ran(target: str, exported: Path) -> None:
    parsed = Target.parse(target)
    artifact = exported / f"digits.float32.{parsed.formats[0]}"
    with make_runner(parsed, artifact) as runner:
        record = runner.describe()
    assert record["runtime"] == parsed.runtime
    assert all(record["versions"].values())
    assert "fallback" not in record


@pytest.mark.parametrize("target", ["tflite-micro", "litert-compiled+reference"])
def test_int8_outputs_equal_those_of_the_reference_kernels(target: str, exported: Path) -> None:
    """They round by the same rule, and integer arithmetic differs in nothing else."""
    outputs = []
    for name in ("litert+reference", target):
        with make_runner(Target.parse(name), exported / "digits.int8.tflite") as runner:
            (info,) = runner.inputs
            image = np.linspace(0, 1, 64).reshape(1, 8, 8, 1).astype(info.dtype)
            outputs.append(runner.infer({info.name: image})["digit"])
    np.testing.assert_array_equal(outputs[0], outputs[1])


@pytest.mark.parametrize("target", TARGETS)
def test_a_damaged_file_is_an_artifact_error(target: str, tmp_path: Path) -> None:
    parsed = Target.parse(target)
    broken = tmp_path / f"broken.{parsed.formats[0]}"
    broken.write_bytes(b"\x18\x00\x00\x00TFL3" + b"\x00" * 64)
    with pytest.raises(ArtifactError, match=rf"{parsed.runtime} cannot load broken"):
        make_runner(parsed, broken).__enter__()


def test_a_file_that_a_runtime_cannot_run_is_left_out_with_the_reason(exported: Path) -> None:
    report = rl.check_parity(exported, ("onnx-reference",))
    assert [result.precision for result in report.results] == ["float32"]
    (sentence,) = report.left_out
    assert sentence.startswith("digits.int8.onnx was not run on onnx-reference: onnx has no")


def test_a_file_that_reference_kernels_cannot_run_is_left_out(tmp_path: Path) -> None:
    # LiteRT's reference kernels have no ELU.
    x = keras.Input((4,), name="x")
    rl.export_model(
        keras.Model(x, keras.layers.Dense(3, activation="elu")(x)), tmp_path, formats=("tflite",)
    )
    sentence = "was not run on litert+reference: litert has no reference kernel for ELU"
    with pytest.raises(rl.UserError, match=rf"{re.escape(sentence)} of version 1\. Check on"):
        rl.check_parity(tmp_path, ("litert+reference",))
    report = rl.check_parity(tmp_path, ("litert+reference", "litert"))
    assert report.passed
    assert len(report.results) == 1
    assert sentence in report.left_out[0]


def test_every_runtime_in_the_table_has_formats_and_an_installation() -> None:
    for name, entry in RUNTIMES.items():
        assert entry.formats, name
        assert entry.install, name


class Doubling(OnnxRuntimeRunner):
    """A runtime that is wrong by a factor of two."""

    def _infer(self, inputs):
        return {name: 2 * array for name, array in super()._infer(inputs).items()}


@pytest.fixture
def doubling() -> Iterator[str]:
    unable = {Arithmetic.INTEGER: "it has no integers"}
    rl.register_runtime("doubling", Doubling, formats=("onnx",), unable=unable)
    yield "doubling"
    del RUNTIMES["doubling"]


def test_a_registered_runtime_is_a_target(doubling: str, exported: Path) -> None:
    report = rl.check_parity(exported, (doubling,))
    (result,) = report.results
    assert (result.target, result.passed) == ("doubling", False)
    assert report.left_out == ("digits.int8.onnx was not run on doubling: it has no integers",)


@pytest.mark.parametrize("words", [["check", "DIR"], ["bench", "DIR"], ["compare", "A", "A"]])
def test_a_command_imports_the_module_that_registers_a_runtime(
    words: list[str], exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "accelerator.py").write_text(
        "import renormlite as rl\n"
        "from renormlite.runtimes.onnxruntime import OnnxRuntimeRunner\n"
        "class Own(OnnxRuntimeRunner):\n"
        "    pass\n"
        "rl.register_runtime('accelerator', Own, formats=('onnx',))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "accelerator", raising=False)
    places = {"DIR": str(exported), "A": str(exported / "digits.float32.onnx")}
    arguments = [places.get(word, word) for word in words]
    options = ["--on", "accelerator", "--import", "accelerator", "--json", "out.json"]
    done = CliRunner().invoke(cli, [*arguments, *options])
    RUNTIMES.pop("accelerator", None)
    assert done.exit_code == 0, done.output
    assert '"accelerator"' in (tmp_path / "out.json").read_text()


@pytest.mark.parametrize(
    ("name", "runner", "formats", "sentence"),
    [
        ("litert", Doubling, ("onnx",), "none of the built-in ones"),
        ("with space", Doubling, ("onnx",), "letters, digits, dots and dashes"),
        ("a@b", Doubling, ("onnx",), "letters, digits, dots and dashes"),
        ("own", dict, ("onnx",), "Expected a subclass of"),
        ("own", Doubling, "onnx", "Expected formats among"),
        ("own", Doubling, (), "Expected formats among"),
        ("own", Doubling, ("pt",), "Expected formats among"),
    ],
)
def test_invalid_registrations_are_refused(name, runner, formats, sentence) -> None:
    with pytest.raises(rl.UserError, match=sentence):
        rl.register_runtime(name, runner, formats=formats)


@pytest.fixture
def dying(tmp_path, monkeypatch):
    """Let the process of OpenVINO end with a segmentation fault."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -SEGV $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(runtimes, "this_python", lambda: python)


@pytest.mark.usefixtures("dying")
def test_a_runtime_that_crashes_is_one_failed_check(tmp_path):
    x = keras.Input((4,), name="x")
    export = tmp_path / "net"
    rl.export_model(keras.Model(x, keras.layers.Dense(3)(x)), export, formats=("onnx",))
    alive, dead = rl.check_parity(export, ("onnxruntime", "openvino")).results
    assert alive.passed
    (finding,) = [finding for finding in dead.findings if not finding.passed]
    assert finding.check == "load"
    assert "openvino died while it handled" in finding.message
    assert "killed by SIGSEGV" in finding.message


def towers() -> keras.Model:
    """The cosine of two vectors, whose inverse lengths have a coarse table in 16 bits."""
    x = [keras.Input((12,), name=name) for name in ("query", "document")]
    y = [keras.layers.Dense(16, activation="relu")(value) for value in x]
    y = [keras.layers.UnitNormalization()(keras.layers.Dense(8)(value)) for value in y]
    return keras.Model(x, keras.layers.Dot(-1, name="score")(y))


def convolution() -> keras.Model:
    x = keras.Input((6, 6, 2), name="x")
    y = keras.layers.ReLU()(keras.layers.Conv2D(4, 3)(x))
    return keras.Model(x, keras.layers.Dense(3)(keras.layers.Flatten()(y)))


@pytest.mark.parametrize("model", [convolution, towers])
def test_openvino_computes_16_bits_in_floats(model, tmp_path):
    """It neither saturates nor rounds, in samples beyond the calibrated ranges and in others."""
    keras.utils.set_random_seed(2)
    export = tmp_path / "net"
    rl.export_model(model(), export, formats=("tflite",), precisions=("int16x8",),
                    calibration="random")  # fmt: skip
    (result,) = rl.check_parity(export, ("openvino",), threads=(1, 2)).results
    assert result.passed, result.reason
    (noise,) = (finding.message for finding in result.findings if finding.check == "noise")
    assert "differs from the network with this file's weights" in noise
    (verdict,) = result.outputs
    errors = verdict.ratios * verdict.bound.noise
    # The errors of float32: a step of 16 bits is a hundred times as large.
    assert errors.max() < 1e-6 * np.nanmax(np.abs(verdict.bound.expected))


def test_openvino_names_the_inputs_of_loops_as_the_file_does(tmp_path):
    x, h = keras.Input((2, 3), name="x"), keras.Input((3,), name="state")
    model = keras.Model([x, h], keras.layers.GRU(3)(x, initial_state=h))
    rl.export_model(model, tmp_path / "net", formats=("tflite",))
    assert rl.check_parity(tmp_path / "net", ("openvino",)).passed


def test_onnxruntime_shows_the_integers_of_its_integer_kernels(tmp_path):
    """As outputs of the graph, int8 tensors kept x86 from fusing, and sums of floats turn ties."""
    rng = np.random.default_rng(0)
    constants = {
        "sx": np.float32(0.1),
        "sw": np.float32(0.1),
        "sy": np.float32(10.16),
        "zero": np.int8(0),
        "w": rng.integers(-127, 128, (64, 1, 10, 4)).astype(np.int8),
    }
    nodes = [
        onnx.helper.make_node(kind, words.split()[:-1], words.split()[-1:])
        for kind, words in (
            ("QuantizeLinear", "x sx zero xq"),
            ("DequantizeLinear", "xq sx zero xr"),
            ("DequantizeLinear", "w sw zero wr"),
            ("Conv", "xr wr c"),
            ("QuantizeLinear", "c sy zero yq"),
            ("DequantizeLinear", "yq sy zero y"),
        )
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", (1, 1, 40, 40)), ("y", (1, 64, 31, 37)))
    ]
    initial = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], initial)
    opset = [onnx.helper.make_opsetid("", 17)]
    path = tmp_path / "net.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    x = rng.integers(-127, 128, (1, 1, 40, 40))
    with OnnxRuntimeRunner(path) as runner:
        seen = runner.infer_all({"x": x.astype(np.float32) * constants["sx"]})
    assert np.array_equal(seen["xq"], x)
    windows = np.lib.stride_tricks.sliding_window_view(x[0, 0], (10, 4))
    sums = np.einsum("hwij,oij->ohw", windows, constants["w"][:, 0].astype(np.int64))
    ratio = constants["sx"] * constants["sw"] / constants["sy"]
    expected = np.rint(sums.astype(np.float32) * ratio).clip(-128, 127)
    assert np.array_equal(seen["yq"][0], expected)


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime"])
def test_the_time_in_another_process_is_that_of_the_inference(runtime: str, exported: Path) -> None:
    """Without packing, pipes and the start of the process, which take far longer."""
    target = Target(runtime)
    path = exported / f"digits.float32.{target.formats[0]}"
    with make_runner(target, path, fenced=True) as runner:
        inputs = {info.name: np.zeros(info.shape, info.dtype) for info in runner.inputs}
        inside, outside = [], []
        for _ in range(20):
            begin = time.perf_counter()
            runner.infer(inputs)
            outside.append(time.perf_counter() - begin)
            inside.append(runner.seconds)
        load_ms = runner.measured()["load_ms"]
    assert 0 < np.median(inside) < np.median(outside) / 2
    assert load_ms > 0


@pytest.mark.parametrize("rank", [1, 3])
def test_onnx_reference_takes_the_maximum_over_positions_only(rank: int, tmp_path: Path) -> None:
    """The GlobalMaxPool of onnx 1.23 takes channels as well, unless there are two spatial axes."""
    x = keras.Input((4,) * rank + (3,), name="x")
    pool = getattr(keras.layers, f"GlobalMaxPooling{rank}D")
    convolution = getattr(keras.layers, f"Conv{rank}D")(5, 2)
    rl.export_model(keras.Model(x, pool()(convolution(x))), tmp_path / "net", formats=("onnx",))
    graph = onnx.load(tmp_path / "net/net.float32.onnx").graph
    assert "GlobalMaxPool" in {node.op_type for node in graph.node}
    assert rl.check_parity(tmp_path / "net", ("onnx-reference",)).passed
