"""Protects `compare`: files of one network pass whoever made them, another network's fail."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from renormlite import UserError, compare_files
from renormlite.cli.main import cli
from renormlite.reference.file_noise import file_noise
from renormlite.runtime_checks.foreign import compare
from renormlite.runtime_checks.foreign.compare import _apart, _real_type

FILES = [f"float32.{suffix}" for suffix in ("tflite", "onnx")]
FILES += ["float16.onnx", "dynamic.onnx", "int8.tflite", "int8.onnx"]


@pytest.fixture(scope="module")
def samples():
    return np.random.default_rng(5).normal(size=(8, 8, 8, 1)).astype("f4")


# The last pair: a float32 file is the reference wherever it stands.
PAIRS = [*itertools.combinations(FILES, 2), ("float16.onnx", "float32.tflite")]


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_files_of_one_network(coarse_export, samples, a, b):
    report = compare_files(coarse_export / f"tiny.{a}", coarse_export / f"tiny.{b}", samples)
    assert report.passed, [result.reason for result in report.results]
    assert len(report.results) == 2
    assert len(report.differences) == 1


def test_noise_is_expected_of_each_file_of_lower_float_precision(
    coarse_export, samples, monkeypatch
):
    """The noise of a sample cannot be told where a batch of several shares its range."""
    asked = []

    def noise(path, *args):
        asked.append(path.name)
        return file_noise(path, *args)

    monkeypatch.setattr(compare, "file_noise", noise)
    names = ("float32.onnx", "float16.onnx", "dynamic.onnx")
    for a, b in itertools.pairwise(names):
        compare_files(coarse_export / f"tiny.{a}", coarse_export / f"tiny.{b}", samples)
    assert asked == ["tiny.float16.onnx", "tiny.float16.onnx", "tiny.dynamic.onnx"]


def test_one_file_on_two_targets(coarse_export, samples):
    path = coarse_export / "tiny.int8.tflite"
    report = compare_files(path, path, samples, targets=["litert", "litert+reference"])
    assert report.passed
    assert "on litert and tiny.int8.tflite on litert+reference" in report.differences[0]


@pytest.fixture
def altered(coarse_export, tmp_path):
    """A file with another weight in a layer."""
    model = onnx.load(coarse_export / "tiny.float32.onnx")
    entry = next(e for e in model.graph.initializer if list(e.dims) == [8, 6, 3, 3])
    value = numpy_helper.to_array(entry).copy()
    value.flat[7] *= 1.01
    entry.CopyFrom(numpy_helper.from_array(value, entry.name))
    onnx.save(model, tmp_path / "altered.onnx")
    return tmp_path / "altered.onnx"


def test_first_difference_is_named(coarse_export, samples, altered):
    report = compare_files(coarse_export / "tiny.float32.tflite", altered, samples)
    verdicts = {result.artifact: result for result in report.results}
    assert verdicts["tiny.float32.tflite"].passed
    wrong = verdicts["altered.onnx"]
    assert not wrong.passed
    assert "down" in wrong.faults[0].layer
    assert "1 / 432 weights" in wrong.faults[0].message


def test_on_the_command_line(coarse_export, altered, tmp_path):
    healthy = coarse_export / "tiny.float32.onnx"

    def run(*arguments):
        return CliRunner().invoke(cli, ["compare", *map(str, arguments)], catch_exceptions=False)

    assert run(healthy, coarse_export / "tiny.float32.tflite").exit_code == 0
    result = run(healthy, altered, "--json", tmp_path / "out.json")
    assert result.exit_code == 1
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["findings"][0]["check"] == "difference"


def test_reports_name_the_reference_file(coarse_export, altered, tmp_path):
    """No text speaks of a Keras model; nor of an assumption where the names agree."""
    page, cases = tmp_path / "page.html", tmp_path / "cases.xml"
    files = (coarse_export / "tiny.float32.onnx", altered, coarse_export / "tiny.int8.onnx")
    for other in files[1:]:
        outputs = ("--html", page, "--junit", cases)
        arguments = [str(part) for part in ("compare", files[0], other, *outputs)]
        printed = CliRunner().invoke(cli, arguments, catch_exceptions=False).output
        for text in (printed, page.read_text(), cases.read_text()):
            text = " ".join(text.split())
            assert "tiny.float32.onnx" in text
            assert not any(word in text for word in ("trained model", "Keras model", "assumed"))
    report = compare_files(files[2], files[2], targets=["onnxruntime"])
    assert report.reference == "tiny.int8.onnx in real numbers"


def test_decisions_are_compared_with_the_reference_file(tmp_path):
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for seed, path in enumerate(paths):
        kernel = np.random.default_rng(seed).normal(size=(8, 4)).astype(np.float32)
        network = helper.make_graph(
            [
                helper.make_node("MatMul", ["x", "w"], ["z"]),
                helper.make_node("Softmax", ["z"], ["y"]),
            ],
            "classifier",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
            [numpy_helper.from_array(kernel, "w")],
        )
        opset = [helper.make_opsetid("", 15)]
        onnx.save(helper.make_model(network, opset_imports=opset, ir_version=8), path)
    report = compare_files(*paths, targets=["onnxruntime"])
    assert report.results[1].tasks[0].confusion
    for text in (report.to_json(), report.to_html(), report.to_junit()):
        assert "a.onnx" in text
        assert not any(words in text for words in ("trained model", "Keras model"))
    json.loads(report.to_json())


@pytest.mark.parametrize(
    ("b", "options", "sentence"),
    [
        ("none.onnx", {}, "There is no file"),
        ("tiny.float32.onnx", {"map_inputs": {"image": "no"}}, "Neither file has a tensor 'no'"),
    ],
)
def test_files_that_cannot_be_compared(coarse_export, b, options, sentence):
    with pytest.raises(UserError, match=sentence):
        compare_files(coarse_export / "tiny.float32.tflite", coarse_export / b, **options)


def test_only_other_inputs_or_outputs_are_called_so(coarse_export, tmp_path):
    """A file that no runtime loads may have the same inputs and outputs."""
    right = coarse_export / "tiny.float32.tflite"
    model = onnx.load(coarse_export / "tiny.float32.onnx")
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "NoSuchOp"
    onnx.save(model, tmp_path / "unknown.onnx")
    with pytest.raises(UserError, match="NoSuchOp") as refused:
        compare_files(right, tmp_path / "unknown.onnx")
    assert "same inputs and outputs" not in str(refused.value)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["y"])],
        "other",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 20])],
    )
    other = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    other.ir_version = 8
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(UserError, match="The files must have the same inputs and outputs"):
        compare_files(right, tmp_path / "other.onnx")


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ([[1.0, 2.0]], "is the same, bit for bit"),
        ([[1.0, 2.5]], "differs by up to 0.5 at [0, 1], 13.0 dB"),
        ([[1.0, np.nan]], "differs at 1 of 2 values, NaN or infinite in one of them"),
        ([[np.inf, np.nan]], "differs at 2 of 2 values"),
        ([[1.5, np.nan]], "differs by up to 0.5 at [0, 0], 6.0 dB and at 1 of 2 values"),
    ],
)
def test_difference_of_two_outputs(other, says):
    assert says in _apart("y", "a and b", np.array([[1.0, 2.0]]), np.array(other))


def test_no_framework_is_loaded(coarse_export):
    program = (
        "import sys; from renormlite import compare_files\n"
        f"folder = {str(coarse_export)!r}\n"
        "files = [f'{folder}/tiny.{name}' for name in ('float32.tflite', 'int8.onnx')]\n"
        "assert compare_files(*files).results\n"
        "print([name for name in ('tensorflow', 'keras') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr


@pytest.mark.parametrize(
    ("filed", "real"),
    [
        *(("int8", "float32"), ("uint8", "float32"), ("int16", "float32"), ("float16", "float32")),
        *(("int32", "int32"), ("int64", "int64"), ("uint32", "uint32"), ("float32", "float32")),
    ],
)
def test_samples_are_real_numbers_but_for_indices(filed, real):
    """Integers of at most 16 bits are quantized numbers, wider ones are tokens and counts."""
    assert _real_type(np.dtype(filed)) == real
