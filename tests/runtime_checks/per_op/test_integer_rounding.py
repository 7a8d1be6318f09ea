"""Protects the recognition of rounding: a runtime's rule is named, one wrong integer found."""

from __future__ import annotations

import keras
import numpy as np
import onnxruntime
import pytest
from keras import layers as kl
from onnx import TensorProto, helper
from renormlite import check_parity, export_model
from renormlite.artifacts.directory import read_export
from renormlite.artifacts.golden_set import read_golden
from renormlite.artifacts.graphs import read_graph
from renormlite.artifacts.graphs.base import ArtifactGraph, GraphOp, GraphTensor, Quantization
from renormlite.reference.integer.base import Values
from renormlite.reference.integer.tflite_ops import integer_ops, prepared
from renormlite.reference.rounding.xnnpack import TFLITE_RULES
from renormlite.runtime_checks.per_op.integer_rounding import recognise
from renormlite.runtime_checks.per_op.observation import observe
from renormlite.runtimes import Target
from renormlite.runtimes.litert import LiteRTRunner
from renormlite.runtimes.run import run_target


def shown(directory, suffix: str, target: str, first=()):
    """Return the graph of the int8 file and the tensors that a target shows of it."""
    export = read_export(directory)
    artifact = next(a for a in export.artifacts if a.file.endswith(f"int8.{suffix}"))
    golden = read_golden(export.golden, [spec.name for spec in export.outputs])
    path = export.path / artifact.file
    graph, on = read_graph(path, suffix), Target.parse(target)
    seen = observe(path, artifact, graph, golden, on, {}, run_target, passed=False, first=first)
    return graph, seen.tensors


@pytest.mark.parametrize(
    ("target", "suffix", "rule"),
    [
        ("litert", "tflite", "fp32 multiply, round to nearest even"),
        ("tf-lite", "tflite", "fp32 multiply, round to nearest even"),
        ("litert+reference", "tflite", "half away from zero"),
        ("onnxruntime", "onnx", "fp32 multiply, round to nearest even"),
    ],
)
def test_rounding_rule_of_a_runtime_is_named(coarse_export, target, suffix, rule):
    report = check_parity(coarse_export, (target,), per_op=True)
    (result,) = [r for r in report.results if r.artifact.endswith(f"int8.{suffix}")]
    assert result.passed, result.reason
    (finding,) = [f for f in result.findings if f.check == "rounding"]
    assert rule in finding.message.split(": 0 differences")[0]
    assert "CONV_2D" in finding.message or "Conv" in finding.message


@pytest.mark.parametrize("variant", ["", "+builtin", "+reference"])
def test_every_linear_op_is_compared(coarse_export, variant):
    graph, tensors = shown(coarse_export, "tflite", f"litert{variant}")
    report = recognise(graph, "tflite", tensors)
    assert report.wrong == []
    kinds = [check.core.kind for check in report.checks]
    linear = [op.kind for op in graph.ops if "CONV" in op.kind or op.kind == "FULLY_CONNECTED"]
    assert [kind for kind in kinds if kind in linear] == linear
    assert len(linear) == 5


@pytest.mark.parametrize("layer", [kl.DepthwiseConv2D, kl.Conv2DTranspose])
def test_kernels_of_eight_channels_at_a_time_round_their_rest_otherwise(layer, tmp_path):
    """On x86, of 12 channels, 8 are rounded half up and 4 half away from zero."""
    x = keras.Input((32, 32, 12), name="x")
    convolution = layer(2, name="y") if layer is kl.DepthwiseConv2D else layer(12, 2, name="y")
    model = keras.Model(x, convolution(x))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(0, 0.4, weight.shape))
    export = tmp_path / "net"
    export_model(model, export, formats=("tflite",), precisions=("int8",), calibration="random")
    report = check_parity(export, ("litert+builtin", "litert+reference"))
    assert report.passed, [result.reason for result in report.results]


def test_a_product_of_16_bit_matrices_has_one_factor_of_float32(tmp_path):
    """The product of their scales, 1/32767 each, is next to a tie of the multiplier's 15 bits."""
    x = keras.Input((3,), name="x")
    unit = kl.UnitNormalization()(kl.Dense(1)(x))
    model = keras.Model(x, kl.Dot(axes=1)([unit, unit]))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(0, 0.4, weight.shape))
    export = tmp_path / "net"
    export_model(model, export, formats=("tflite",), precisions=("int16x8",), calibration="random")
    report = check_parity(export, ("litert", "litert+reference"))
    assert report.passed, [result.reason for result in report.results]


def test_without_fusion_every_quantizing_op_is_compared(coarse_export):
    graph, tensors = shown(coarse_export, "onnx", "onnxruntime+disabled")
    report = recognise(graph, "onnx", tensors)
    assert report.wrong == []
    expected = sum(op.kind == "QuantizeLinear" for op in graph.ops)
    assert sum(check.op.kind == "QuantizeLinear" for check in report.checks) == expected > 3


def test_one_wrong_integer_is_reported_with_index_and_values(coarse_export):
    graph, tensors = shown(coarse_export, "tflite", "litert")
    op = next(op for op in graph.ops if op.kind == "DEPTHWISE_CONV_2D")
    changed = tensors[op.outputs[0]].copy()
    place = (1, 0, 3, 2, 4)
    changed[place] += 1 if changed[place] < 100 else -1
    report = recognise(graph, "tflite", {**tensors, op.outputs[0]: changed})
    wrong = next(check for check in report.wrong if check.core.index == op.index)
    assert (wrong.differing, wrong.at) == (1, place)
    assert wrong.got == changed[place]
    assert wrong.expected == tensors[op.outputs[0]][place]


def on_the_other_side(graph, tensors) -> tuple[str, np.ndarray, int]:
    """Return a convolution's integers with those that lie next to a tie rounded the wrong way."""
    samples = Values(graph, tensors)
    op = next(op for op in integer_ops(samples) if op.op.kind == "CONV_2D")
    data, weights, key = op.op.inputs[0], op.op.inputs[1], op.op.outputs[0]
    fine = [graph.tensors[name].quantization.scales / 100 for name in (data, weights)]
    # The same sums in steps a hundred times as small tell how near each is to a tie.
    exact = (
        _sums(graph, samples, op.op)[:, None]
        * fine[0]
        * fine[1]
        * 1e4
        / graph.tensors[key].quantization.scales
    )
    near = np.abs(exact - np.floor(exact) - 0.5) < 0.008  # within 0.51 on either side
    steps = samples.steps(key)
    other = np.where(op.got - steps.zero_points[0] > exact, op.got - 1, op.got + 1)
    inside = near & (op.got > -128) & (op.got < 127) & (other > -128)
    moved = np.where(inside, other, op.got)
    return key, moved.reshape(tensors[key].shape).astype(np.int8), int(inside.sum())


def _sums(graph, samples, op):
    x = samples.quantized(op.inputs[0]).centred[:, 0]
    weights = graph.tensors[op.inputs[1]].data.astype(np.int64)
    bias = graph.tensors[op.inputs[2]].data
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    sums = np.zeros((*x.shape[:3], len(weights)), np.int64)
    for i in range(3):
        for j in range(3):
            sums += padded[:, i : i + 8, j : j + 8] @ weights[:, i, j].T
    return sums + bias


def recomputed(graph, tensors, key, moved) -> dict[str, np.ndarray]:
    """Return the tensors with one altered, and all that follows from it computed rightly."""
    arrays, changed = {**tensors, key: moved}, {key}
    for op in graph.ops:
        if changed & set(op.inputs):
            result = prepared(op, Values(graph, arrays))(TFLITE_RULES[0])
            arrays[op.outputs[0]] = result.astype(tensors[op.outputs[0]].dtype)
            changed.add(op.outputs[0])
    return arrays


def test_wrong_rounding_within_every_bound_fails_the_check(coarse_export, monkeypatch):
    """What is next to a tie and rounded the wrong way is within 0.51 steps, and still wrong."""
    report = check_parity(coarse_export, ("litert",))
    (result,) = [r for r in report.results if r.artifact.endswith("int8.tflite")]
    worst = [entry.worst_sample for entry in result.outputs]  # what a check looks at first
    graph, tensors = shown(coarse_export, "tflite", "litert", worst)
    key, moved, count = on_the_other_side(graph, tensors)
    assert count >= 3
    wrong = recomputed(graph, tensors, key, moved)
    real = LiteRTRunner.infer_all

    def altered(self, inputs):
        given = real(self, inputs)
        for place, before in enumerate(tensors[key]):
            if key in given and np.array_equal(given[key], before):
                return {
                    name: wrong[name][place] if name in wrong else given[name] for name in given
                }
        return given

    monkeypatch.setattr(LiteRTRunner, "infer_all", altered)
    report = check_parity(coarse_export, ("litert",))
    (result,) = [r for r in report.results if r.artifact.endswith("int8.tflite")]
    assert not result.passed
    fault = result.faults[0]
    assert (fault.layer, fault.kind, fault.op.kind) == ("stem", "rounding", "CONV_2D")
    assert all(fault.kind == "rounding" for fault in result.faults)
    assert "rounds by no known rule" in result.reason


def test_layer_is_named(coarse_export):
    from renormlite.runtime_checks.per_op.culprit import rounding_faults
    from renormlite.runtime_checks.per_op.integer_rounding import IntegerCheck, IntegerReport
    from renormlite.runtime_checks.per_op.op_results import OpCheck

    graph, _ = shown(coarse_export, "tflite", "litert")
    op = next(op for op in graph.ops if op.kind == "CONV_2D")
    check = IntegerCheck(op, op, TFLITE_RULES[0], 1000, 7, (0, 1, 2, 3), 12.0, 13.0)
    checks = [OpCheck("stem", "stem", (), op, 0.9, 0.0, 0.0, 0.0)]
    (fault,) = rounding_faults(IntegerReport((check,)), checks)
    assert (fault.layer, fault.kind) == ("stem", "rounding")
    assert "7 / 1000 (0.7 %) integers differ, first at [0, 1, 2, 3]: got 12, expected 13" in (
        fault.message
    )
    assert "nearest rule: fp32 multiply" in fault.message


@pytest.mark.parametrize("target", ["tflite-micro"])
def test_runtime_without_tensors_is_replaced_by_one_with_the_same_bits(coarse_export, target):
    report = check_parity(coarse_export, (target,))
    (result,) = [r for r in report.results if r.artifact.endswith("int8.tflite")]
    (finding,) = [f for f in result.findings if f.check == "rounding"]
    assert "whose outputs on" in finding.message
    assert "since tflite-micro exposes no tensors" in finding.message


def test_float_kernels_may_round_to_either_side_of_a_tie():
    """A sum in float32 that ends next to a tie; a whole step farther away is wrong."""
    steps = Quantization(np.array([0.5]), np.array([3]), np.dtype(np.uint8))
    scale = GraphTensor("s", "s", (), np.dtype(np.float32), None, np.array(0.5, np.float32))
    point = GraphTensor("z", "z", (), np.dtype(np.uint8), None, np.array(3, np.uint8))
    tensors = {
        "x": GraphTensor("x", "x", (1, 3), np.dtype(np.float32), None),
        "root": GraphTensor("root", "root", (1, 3), np.dtype(np.float32), None),
        "q": GraphTensor("q", "q", (1, 3), np.dtype(np.uint8), steps),
        "s": scale,
        "z": point,
    }
    ops = (
        GraphOp(0, "Sqrt", "", ("x",), ("root",)),
        GraphOp(1, "QuantizeLinear", "", ("root", "s", "z"), ("q",)),
    )
    graph = ArtifactGraph(tensors, ("x",), ("q",), lambda: ops)
    x = np.array([[[0.5625, 4.0, 9.0]]], np.float32)  # the root of the first is 1.5 steps

    def differing(*integers: int) -> int:
        shown = {"x": x, "q": np.array([[integers]], np.uint8)}
        report = recognise(graph, "onnx", shown)
        return sum(check.differing for check in report.wrong)

    assert differing(5, 7, 9) == differing(4, 7, 9) == 0
    assert differing(6, 7, 9) == differing(5, 8, 9) == 1


def test_an_ignored_zero_point_is_named():
    """TensorFlow's XNNPACK multiplies two computed matrices without the second one's zero point."""
    dtype = np.dtype(np.int8)
    points = {"a": 0, "b": -2, "product": 5}
    tensors = {
        key: GraphTensor(
            key, key, (1, 2, 2), dtype, Quantization(np.array([0.5]), np.array([point]), dtype)
        )
        for key, point in points.items()
    }
    ops = (GraphOp(0, "BATCH_MATMUL", "", ("a", "b"), ("product",)),)
    graph = ArtifactGraph(tensors, ("a", "b"), ("product",), lambda: ops)
    a = np.array([[[[8, 4], [-4, 12]]]], np.int8)
    b = np.array([[[[6, 2], [10, -8]]]], np.int8)
    right = np.rint((a.astype(int) @ (b.astype(int) + 2)) * 0.5) + 5
    wrong = np.rint((a.astype(int) @ b.astype(int)) * 0.5) + 5
    for integers, ignored in ((right, []), (wrong, ["b"])):
        shown = {"a": a, "b": b, "product": integers.astype(np.int8)}
        report = recognise(graph, "tflite", shown)
        assert [check.ignored for check in report.wrong] == ignored


def softmax_of_integers(x: np.ndarray, scale: np.float32, step: np.float32) -> bytes:
    scalar = {"scale": (TensorProto.FLOAT, scale), "step": (TensorProto.FLOAT, step)}
    scalar |= {"zero": (TensorProto.INT8, 0), "least": (TensorProto.INT8, -128)}
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["real"]),
        helper.make_node("Softmax", ["real"], ["shares"], axis=-1),
        helper.make_node("QuantizeLinear", ["shares", "step", "least"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.INT8, x.shape) for name in "xy"]
    constants = [helper.make_tensor(name, t, [], [value]) for name, (t, value) in scalar.items()]
    graph = helper.make_graph(nodes, "softmax", ends[:1], ends[1:], constants)
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


@pytest.mark.parametrize("count", [1, 2, 10, 40])
def test_softmax_of_nearly_equal_scores_on_onnx_runtime(count, tmp_path):
    """Times 1 / step, its exponentials would exceed float32; many results are next to ties."""
    x = np.random.default_rng(0).integers(-128, 128, (300, count)).astype(np.int8)
    x[:, count // 2 :] //= 2
    contents = softmax_of_integers(x, np.float32(0.001), np.float32(1.2 / count / 255))
    path = tmp_path / "softmax.onnx"
    path.write_bytes(contents)
    (got,) = onnxruntime.InferenceSession(contents).run(None, {"x": x})
    graph = read_graph(path, "onnx")
    report = recognise(graph, "onnx", {"x": x[None], "y": got[None]})
    assert [check.core.kind for check in report.checks] == ["Softmax"]
    assert report.wrong == []
    got[7, 0] += 1 if got[7, 0] < 127 else -1
    (wrong,) = recognise(graph, "onnx", {"x": x[None], "y": got[None]}).wrong
    assert (wrong.differing, wrong.at) == (1, (0, 7, 0))
