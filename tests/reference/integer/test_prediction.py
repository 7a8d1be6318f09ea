"""Protects predictions of integer files: whole networks, bit for bit as the runtimes give them."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import renormlite as rl
from keras import layers
from renormlite.artifacts.directory import read_export
from renormlite.artifacts.golden_set import read_golden
from renormlite.artifacts.graphs import read_graph
from renormlite.artifacts.graphs.base import ArtifactGraph, GraphOp
from renormlite.reference.integer.base import Values
from renormlite.reference.integer.prediction import predict
from renormlite.reference.integer.tflite_ops import TFLITE_OPS, prepared
from renormlite.reference.rounding.quantized import NotKnownError
from renormlite.runtime_checks.end_to_end import findings, target_check, ties
from renormlite.runtime_checks.end_to_end.findings import judge_outputs
from renormlite.runtime_checks.end_to_end.integer_agreement import integer_agreement, must_agree
from renormlite.runtimes import Target
from renormlite.runtimes.isolated import environment
from renormlite.runtimes.run import run_target

RUNTIMES = {
    "tflite": (
        "litert",
        "litert+builtin",
        "litert+reference",
        "litert-compiled",
        "tf-lite+builtin",
        "tflite-micro",
    ),
    "onnx": ("onnxruntime",),
}


def network() -> keras.Model:
    """Return a network of the commonest integer ops, sums and tables among them."""
    x = image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    y = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Add()([x, layers.LeakyReLU(0.1)(y)])
    x = layers.MaxPooling2D()(x)
    y = layers.Conv2D(8, 1, activation="sigmoid")(x)
    x = layers.Multiply()([x, y])
    x = layers.Concatenate()([x, layers.AveragePooling2D(2, 1, padding="same")(x)])
    x = layers.Conv2D(6, 3, strides=2, padding="same", activation="tanh")(x)
    x = layers.ZeroPadding2D(1)(x)
    x = layers.GlobalAveragePooling2D()(x)
    # TensorFlow's kernels sum 16-bit integers in another way where there is no bias.
    x = layers.Dense(12, activation="relu", use_bias=False)(x)
    return keras.Model(image, layers.Dense(5, activation="softmax", name="digit")(x))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    keras.utils.set_random_seed(4)
    model = network()
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if "bias" in weight.path:
            weight.assign(generator.normal(0, 0.3, weight.shape))
    x = generator.normal(size=(32, 8, 8, 3))
    for axis in (1, 2):
        x = x + np.roll(x, 1, axis)
    target = tmp_path_factory.mktemp("integers") / "net"
    rl.export_model(model, target, precisions=("int8", "int16x8"), calibration=x.astype(np.float32))
    return target


def loaded(directory, precision: str, file_format: str):
    export = read_export(directory)
    golden = read_golden(export.golden, [spec.name for spec in export.outputs])
    artifact = next(
        a for a in export.artifacts if a.precision == precision and a.format == file_format
    )
    return export, golden, artifact


@pytest.mark.parametrize(
    ("precision", "file_format", "target"),
    [
        (precision, file_format, target)
        for precision, file_format in (("int8", "tflite"), ("int16x8", "tflite"), ("int8", "onnx"))
        for target in RUNTIMES[file_format]
    ],
)
def test_every_runtime_equals_the_prediction_of_one_rule(directory, precision, file_format, target):
    export, golden, artifact = loaded(directory, precision, file_format)
    run = run_target(export.path / artifact.file, artifact, golden.inputs, Target.parse(target))
    assert not run.problem, run.problem
    agreed = integer_agreement(artifact, run.outputs, golden)
    assert agreed.kernels, agreed.sentence
    assert agreed.elements == 5 * (golden.samples - 2)
    assert agreed.sentence.startswith("equal to the bit")


@pytest.mark.parametrize("size", [4, 8])
def test_average_over_the_whole_map_equals_a_global_pool(tmp_path, size):
    """ONNX Runtime sums integers where one window is the whole map, floats elsewhere."""
    steps = {"scale": np.float32(0.0417), "zero": np.uint8(3)}
    nodes = [
        onnx.helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["real"]),
        onnx.helper.make_node("AveragePool", ["real"], ["mean"], kernel_shape=[4, 4]),
        onnx.helper.make_node("QuantizeLinear", ["mean", "scale", "zero"], ["y"]),
    ]
    shapes = {"x": (1, 512, size, size), "y": (1, 512, size - 3, size - 3)}
    infos = [onnx.helper.make_tensor_value_info(k, 2, shape) for k, shape in shapes.items()]
    constants = [onnx.numpy_helper.from_array(np.array(v), k) for k, v in steps.items()]
    graph = onnx.helper.make_graph(nodes, "pool", infos[:1], infos[1:], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "pool.onnx")
    x = np.random.default_rng(0).integers(0, 60, shapes["x"]).astype(np.uint8)
    expected = onnxruntime.InferenceSession(tmp_path / "pool.onnx").run(None, {"x": x})[0]
    found = predict(read_graph(tmp_path / "pool.onnx", "onnx"), "onnx", [{"x": x}])
    (fused,) = (one for one in found if "ONNX Runtime" in one.kernels)
    np.testing.assert_array_equal(fused.outputs["y"], expected)


def test_rules_are_distinguished(directory):
    """A prediction that is equal for all rules would prove little."""
    _, golden, artifact = loaded(directory, "int8", "tflite")
    found = golden.predictions[artifact.file].by_rule
    assert len({outputs["digit"].tobytes() for outputs in found.values()}) > 1


def test_one_wrong_integer_is_found_and_placed(directory):
    export, golden, artifact = loaded(directory, "int8", "tflite")
    run = run_target(export.path / artifact.file, artifact, golden.inputs, Target.parse("litert"))
    outputs = {"digit": run.outputs["digit"].copy()}
    outputs["digit"][7, 2] += golden.predictions[artifact.file].steps["digit"]
    agreed = integer_agreement(artifact, outputs, golden)
    assert not agreed.kernels
    assert (agreed.differing, agreed.first) == (1, ("digit", (7, 2)))
    assert "no known rounding rule" in agreed.sentence
    assert must_agree(artifact, golden, run.ran, "", export.manifest.versions)
    assert not must_agree(artifact, golden, run.ran, "builtin", export.manifest.versions)
    other = {**run.ran, "versions": {"ai-edge-litert": "0.0"}}
    assert not must_agree(artifact, golden, other, "", export.manifest.versions)


def test_an_unknown_rule_is_distinguished_from_a_wrong_kernel(directory):
    """An unknown rule is as far from the known ones as these are from each other."""
    _, golden, artifact = loaded(directory, "int8", "tflite")
    predictions = golden.predictions[artifact.file]
    base, step = predictions.by_rule["XNNPACK"]["digit"], predictions.steps["digit"]

    def moved(samples: int, steps: float):
        array = base.copy()
        array[:samples] += np.float32(steps * step)
        return {"digit": array}

    def judged(outputs, rules):
        known = dataclasses.replace(predictions, by_rule=rules)
        changed = dataclasses.replace(golden, predictions={artifact.file: known})
        findings, _ = judge_outputs(outputs, changed, artifact)
        (finding,) = (f for f in findings if f.check == "integers")
        return finding

    three = {"a": moved(0, 0), "b": moved(2, 1), "c": moved(2, -1)}
    for rule in three:
        assert judged(three[rule], three).passed
    unknown = judged(moved(4, 2), three)
    assert unknown.passed
    assert "no known rounding rule" in unknown.message
    wrong = judged(moved(5, 2), three)
    assert not wrong.passed
    assert "25 lie outside the range of all known rules, where rounding explains 20" in (
        wrong.message
    )
    # Two rules span no range: the outputs are held to the limit alone.
    assert judged(moved(5, 2), {"a": three["a"], "b": three["b"]}).passed


def test_wrong_kernel_without_tensors_fails_the_check(directory, monkeypatch):
    """A device with a wrong slope exposes only outputs; its integers reveal the fault."""
    import renormlite.runtime_checks.parity as parity

    real = parity.run_target

    def wrong(path, artifact, inputs, target, **options):
        run = real(path, artifact, inputs, target, **options)
        outputs = {name: array.copy() for name, array in run.outputs.items()}
        if artifact.file.endswith("int8.tflite"):
            outputs["digit"][3, 1] += np.float32(1 / 256)
        return dataclasses.replace(run, outputs=outputs)

    monkeypatch.setattr(parity, "run_target", wrong)
    report = rl.check_parity(directory, ("litert",))
    (result,) = [r for r in report.results if r.artifact.endswith("int8.tflite")]
    assert not result.passed
    assert "no known rounding rule gives these integers: 1 of" in result.reason


def test_predictions_are_stored_in_the_golden_set(directory):
    _, golden, artifact = loaded(directory, "int16x8", "tflite")
    found = golden.predictions[artifact.file]
    assert not found.reason
    assert found.steps["digit"] == 2.0**-15
    half = golden.select(np.arange(4)).predictions[artifact.file]
    for rule, outputs in half.by_rule.items():
        np.testing.assert_array_equal(outputs["digit"], found.by_rule[rule]["digit"][:4])


def test_unknown_op_is_named(directory):
    export, _, artifact = loaded(directory, "int8", "tflite")
    graph = read_graph(export.path / artifact.file, "tflite")
    place = next(op.index for op in graph.ops if op.kind == "LOGISTIC")
    ops = tuple(
        dataclasses.replace(op, kind="SVDF") if op.index == place else op for op in graph.ops
    )
    altered = ArtifactGraph(graph.tensors, graph.inputs, graph.outputs, lambda: ops)
    lost = {ops[place].outputs[0]}
    for op in ops:  # and all that read its result
        if lost & set(op.inputs):
            lost |= set(op.outputs)
    count = rf"SVDF is not known \({len(lost)} of {len(ops)} operators"
    with pytest.raises(NotKnownError, match=count):
        predict(altered, "tflite", [{graph.inputs[0]: np.zeros((1, 8, 8, 3), np.float32)}])


@pytest.mark.parametrize("kind", sorted(TFLITE_OPS))
def test_op_with_unsupported_attributes_is_unknown(kind):
    """Whatever a file holds, an op is computed or named; nothing else is raised."""
    op = GraphOp(0, kind, "", ("a", "b", "c"), ("y",), {})
    graph = ArtifactGraph({}, (), ("y",), lambda: (op,))
    with pytest.raises(NotKnownError):
        prepared(op, Values(graph, {"a": np.zeros((2, 3), np.int8)}))


def test_samples_beyond_the_calibrated_ranges_are_known(directory):
    """Their sums saturate on every runtime of integers, and not on one that computes in floats."""
    export = read_export(directory)
    golden = export.read_golden()
    artifact = next(a for a in export.artifacts if a.file.endswith("int16x8.tflite"))
    saturated = golden.predictions[artifact.file].saturated
    assert saturated is not None
    assert not saturated.all()
    # The last extreme sample is ten times beyond the range of the input.
    assert saturated[np.flatnonzero(golden.kind == "extreme")[-1]]
    chosen = golden.select(np.flatnonzero(saturated)[:2])
    both = chosen.predictions[artifact.file].joined(golden.predictions[artifact.file])
    np.testing.assert_array_equal(both.saturated, [True, True, *saturated])


@pytest.mark.parametrize("precision", ["int8", "int16x8"])
def test_rare_operators_equal_the_prediction_of_one_rule(tmp_path, precision):
    keras.utils.set_random_seed(5)
    x = keras.Input((6, 4), name="x")
    y = layers.Dense(8)(x)
    product = keras.ops.prod(layers.Activation("tanh")(y), axis=1)
    sums = keras.ops.cumsum(y, axis=1)
    chosen = sums * keras.ops.one_hot(keras.ops.argmax(y, axis=-1), 8)
    outputs = [layers.Dense(3, name="product")(product), layers.Dense(3, name="chosen")(chosen)]
    if precision == "int8":  # there is no kernel for 16 bits
        outputs.append(layers.Activation("log_softmax", name="logs")(y))
    samples = np.random.default_rng(0).normal(0, 1, (16, 6, 4)).astype("f4")
    rl.export_model(
        keras.Model(x, outputs),
        tmp_path / "net",
        formats=("tflite",),
        precisions=(precision,),
        calibration=samples,
    )
    report = rl.check_parity(tmp_path / "net", RUNTIMES["tflite"][:4], per_op=True)
    assert report.passed, [result.reason for result in report.results]
    for result in report.results:
        (finding,) = (f for f in result.findings if f.check == "integers")
        assert finding.message.startswith("equal to the bit"), finding.message
        assert "not predicted" not in finding.message


def test_an_output_in_floats_does_not_cost_the_others_their_prediction(tmp_path):
    """A device with wrong integers in the other output is still found."""
    keras.utils.set_random_seed(2)
    x = keras.Input((6,), name="x")
    y = layers.Dense(8, activation="relu")(x)
    wave = layers.Activation(keras.ops.sin, name="wave")(layers.Dense(3)(y))
    model = keras.Model(x, [layers.Dense(4, name="scores")(y), wave])
    samples = np.random.default_rng(0).normal(0, 1, (16, 6)).astype("f4")
    rl.export_model(
        model, tmp_path / "net", formats=("tflite",), precisions=("int8",), calibration=samples
    )
    report = rl.check_parity(tmp_path / "net", ("litert", "litert+reference"))
    assert report.passed, [result.reason for result in report.results]
    for result in report.results:
        (finding,) = (f for f in result.findings if f.check == "integers")
        assert "equal to the bit" in finding.message
        assert "; not predicted: 'wave' (" in finding.message
    export = read_export(tmp_path / "net")
    golden, (artifact,) = export.read_golden(), export.artifacts
    outputs = {name: array.copy() for name, array in golden.artifacts[artifact.file].items()}
    outputs["scores"][3, 1] += np.float32(golden.predictions[artifact.file].steps["scores"])
    agreed = integer_agreement(artifact, outputs, golden)
    assert agreed is not None
    assert not agreed.kernels
    assert agreed.differing == 1


def test_integers_are_compared_with_their_predictions_once(directory, monkeypatch):
    export, golden, artifact = loaded(directory, "int8", "onnx")
    run = run_target(export.path / artifact.file, artifact, golden.inputs, Target.parse("openvino"))
    seen = []

    def counted(artifact, outputs, *rest, **options):
        seen.append(outputs)
        return integer_agreement(artifact, outputs, *rest, **options)

    for module in (target_check, findings, ties):
        monkeypatch.setattr(module, "integer_agreement", counted, raising=False)
    options = {"with_ties": ties.with_ties_turned}
    result = target_check.judge_run(
        export, artifact, golden, Target.parse("onnxruntime"), run, **options
    )
    assert len(seen) == 1
    assert result.integers.elements == 5 * (golden.samples - 2)


def test_saturation_is_known_where_an_output_is_computed_in_floats(tmp_path):
    """A runtime of floats is held to no range there."""
    keras.utils.set_random_seed(2)
    x = keras.Input((6,), name="x")
    wave = layers.Activation(keras.ops.sin, name="wave")(layers.Dense(3, use_bias=False)(x))
    samples = np.random.default_rng(0).uniform(-1, 1, (16, 6)).astype("f4")
    rl.export_model(
        keras.Model(x, wave),
        tmp_path / "net",
        formats=("tflite",),
        precisions=("int16x8",),
        calibration=samples,
    )
    golden = read_export(tmp_path / "net").read_golden()
    (found,) = golden.predictions.values()
    assert found.none
    # The first integers are those of the input, whose range is that of the calibration.
    size = np.abs(golden.inputs["x"]).max(axis=1)
    beyond = np.isfinite(size) & (size > 1.1 * np.abs(samples).max())
    assert beyond.any()
    assert found.saturated[beyond].all()
    assert not found.saturated.all()
    both = found.joined(found)
    np.testing.assert_array_equal(both.saturated, np.tile(found.saturated, 2))


def test_micro_computes_roots_of_16_bits_in_fixed_point(tmp_path):
    keras.utils.set_random_seed(3)
    x = keras.Input((6, 4), name="x")
    y = layers.LayerNormalization()(layers.Dense(8)(x))
    samples = np.random.default_rng(0).normal(0, 1, (16, 6, 4)).astype("f4")
    rl.export_model(
        keras.Model(x, layers.Dense(3)(y)),
        tmp_path / "net",
        formats=("tflite",),
        precisions=("int16x8",),
        calibration=samples,
    )
    report = rl.check_parity(tmp_path / "net", ("litert", "tflite-micro"))
    kernels = [result.integers.kernels for result in report.results]
    assert kernels[1] == ("TFLite Micro",)
    assert "XNNPACK" in kernels[0]


@pytest.mark.parametrize("channels", [8, 20])
def test_averages_that_keep_the_axes_round_sixteen_channels_at_once(channels, tmp_path):
    """TFLite's optimized kernel rounds groups of sixteen half up, the rest half away from zero.

    tflite-runtime 2.14 rounds all of them half away from zero.
    """
    x = keras.Input((4, 4, channels), name="x")
    mean = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
    samples = np.random.default_rng(0).normal(size=(96, 4, 4, channels)).astype(np.float32)
    rl.export_model(
        keras.Model(x, mean),
        tmp_path / "net",
        formats=("tflite",),
        precisions=("int8",),
        calibration="random",
    )
    targets = ["litert+builtin", "litert+reference"]
    targets += ["tflite-runtime"] if environment("tflite-runtime") is not None else []
    report = rl.check_parity(tmp_path / "net", targets, samples)
    for result in report.results:
        assert result.integers.kernels, (result.target, result.integers.sentence)


@pytest.mark.parametrize("kind", ["If", "Loop"])
def test_loops_and_branches_are_named_and_cost_no_other_output(kind, tmp_path):
    make, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    floats, truth = onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL

    def branch(name: str, op: str) -> onnx.GraphProto:
        nodes = [make(op, ["real"], [name])]
        return onnx.helper.make_graph(nodes, name, [], [info(name, floats, None)])

    if kind == "If":
        part = make("If", ["positive"], ["out"], then_branch=branch("t", "Identity"),
                    else_branch=branch("e", "Neg"))  # fmt: skip
    else:
        body = onnx.helper.make_graph(
            [make("Identity", ["go"], ["on"]), make("Add", ["v", "v"], ["w"])],
            "body",
            [info("i", onnx.TensorProto.INT64, []), info("go", truth, []), info("v", floats, None)],
            [info("on", truth, []), info("w", floats, None)],
        )
        part = make("Loop", ["times", "positive", "real"], ["out"], body=body)
    nodes = [
        make("DequantizeLinear", ["x", "scale", "point"], ["real"]),
        make("ReduceSum", ["real"], ["sum"], keepdims=0),
        make("Greater", ["sum", "zero"], ["positive"]),
        part,
        make("QuantizeLinear", ["out", "scale", "point"], ["y"]),
        make("Identity", ["x"], ["same"]),
    ]
    values = {"scale": np.float32(0.05), "point": np.uint8(3), "zero": np.float32(0)}
    constants = [onnx.numpy_helper.from_array(np.array(v), k) for k, v in values.items()]
    constants.append(onnx.numpy_helper.from_array(np.array(2), "times"))
    ends = [info(name, onnx.TensorProto.UINT8, (1, 4)) for name in ("x", "y", "same")]
    graph = onnx.helper.make_graph(nodes, "net", ends[:1], ends[1:], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "net.onnx")
    x = np.array([[0, 3, 7, 20]], np.uint8)
    found = predict(read_graph(tmp_path / "net.onnx", "onnx"), "onnx", [{"x": x}])
    for prediction in found:
        assert prediction.reason.startswith(f"{kind} in floats (1 of 6 operators")
        assert list(prediction.outputs) == ["same"]
        np.testing.assert_array_equal(prediction.outputs["same"], x)
