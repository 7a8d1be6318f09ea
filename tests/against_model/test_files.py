"""Protects the check of files of other converters: healthy ones pass, faulty layers are named."""

from __future__ import annotations

import copy
import shutil

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from renormlite import UserError, check_files, check_parity

HEALTHY = {
    "float32.tflite": "float32",
    "float16.tflite": "float16",
    "int8.tflite": "int8",
    "uint8.tflite": "int8",
    "float32.onnx": "float32",
    "nchw.onnx": "float32",
    "dynamic.onnx": "dynamic",
    "int8.onnx": "int8",
    "operators.onnx": "int8",
    "simplified.onnx": "float32",
    "slimmed.onnx": "float32",
    "exported.tflite": "float32",
    "exported.onnx": "float32",
    "litert-quantizer.tflite": "dynamic",
}


@pytest.fixture(scope="module")
def report(mixed, foreign, images):
    """The check of every healthy file, with per-op checks."""
    return check_files(mixed, [foreign / name for name in HEALTHY], images, per_op=True)


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_files_pass(report, name):
    (result,) = (entry for entry in report.results if entry.artifact == name)
    assert result.passed, result.reason
    assert result.precision == HEALTHY[name]
    assert result.ops  # the operators were checked
    worst = min(entry.metrics.snr_db for entry in result.outputs)
    assert worst > (100 if HEALTHY[name] == "float32" else 15)


def notes(report, name):
    (entry,) = (a for a in report.manifest["artifacts"] if a["file"] == name)
    return entry.get("notes", [])


def test_assumptions_are_noted(report):
    assert notes(report, "float32.onnx") == []
    assert notes(report, "nchw.onnx")[0] == (
        "input 'image' is 'image', by name, with axes in another order: transpose what it is fed "
        "by (0, 3, 1, 2)"
    )
    assert "in steps of" in notes(report, "uint8.tflite")[0]


def initializer(graph, shape):
    return next(entry for entry in graph.initializer if tuple(entry.dims) == shape)


def change(entry, edit):
    value = edit(numpy_helper.to_array(entry).copy())
    entry.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), entry.name))


def node(graph, kind, place=0):
    return [entry for entry in graph.node if entry.op_type == kind][place]


def attribute(entry, name):
    return next(a for a in entry.attribute if a.name == name)


def one_value_changed(value):
    value.flat[5] *= 1.01
    return value


def exchange_pads(graph):
    pads = attribute(node(graph, "Conv", 2), "pads").ints
    pads[:] = [pads[2], pads[3], pads[0], pads[1]]


def exchange_output_names(graph):
    for entry in graph.node:
        for side in (entry.input, entry.output):
            side[:] = [{"age": "weight", "weight": "age"}.get(n, n) for n in side]


FAULTS = {
    "weight": (lambda g: change(initializer(g, (12, 8, 3, 3)), one_value_changed), "second"),
    "first weight": (lambda g: change(initializer(g, (8, 3, 3, 3)), one_value_changed), "first"),
    "weight before a norm": (
        lambda g: change(initializer(g, (8, 1, 3, 3)), one_value_changed),
        "depth",
    ),
    "blue first": (
        lambda g: change(initializer(g, (8, 3, 3, 3)), lambda w: w[:, ::-1]),
        "input channels 0 and 2 are exchanged",
    ),
    "padding": (exchange_pads, "second"),
    "activation": (lambda g: setattr(node(g, "Relu", -1), "op_type", "Tanh"), "second"),
    "outputs": (exchange_output_names, "outputs 'age' and 'weight' are exchanged"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found_and_named(mixed, foreign, images, tmp_path, fault):
    plant, named = FAULTS[fault]
    model = onnx.load(foreign / "float32.onnx")
    plant(model.graph)
    onnx.save(model, tmp_path / "net.onnx")
    (result,) = check_files(mixed, [tmp_path / "net.onnx"], images).results
    assert not result.passed
    messages = [f.message for f in result.findings if not f.passed]
    assert named in {fault.layer for fault in result.faults} or any(
        named in text for text in messages
    )


def test_a_changed_weight_does_not_hide_that_its_norm_was_not_folded(
    mixed, foreign, images, tmp_path
):
    model = onnx.load(foreign / "float32.onnx")
    change(initializer(model.graph, (8, 1, 3, 3)), one_value_changed)
    onnx.save(model, tmp_path / "net.onnx")
    (result,) = check_files(mixed, [tmp_path / "net.onnx"], images).results
    (message,) = [f.message for f in result.findings if f.check == "weights" and not f.passed]
    assert message.startswith("kernel of layer 'depth': 1 / 72 weights (1.39 %) differ")


def test_equivalent_weights_pass(mixed, foreign, images, tmp_path):
    """A layer is multiplied by factors that pass a relu, and the layers after it divide by them."""
    model = onnx.load(foreign / "float32.onnx")
    factor = np.random.default_rng(0).uniform(0.2, 5, 12).astype("f4")
    change(initializer(model.graph, (12, 8, 3, 3)), lambda w: w * factor[:, None, None, None])
    change(initializer(model.graph, (12,)), lambda b: b * factor)
    for entry in model.graph.initializer:
        if tuple(entry.dims) == (12, 4):
            change(entry, lambda w: w / factor[:, None])
    onnx.save(model, tmp_path / "net.onnx")
    (result,) = check_files(mixed, [tmp_path / "net.onnx"], images).results
    assert result.passed, result.reason
    (finding,) = (f for f in result.findings if f.check == "weights")
    assert "scaled otherwise" in finding.message


def test_a_changed_weight_without_effect_is_found(tmp_path):
    """It reads a unit that is always 0. No other layer can compensate the change of one number."""
    import keras

    layers = [keras.layers.Dense(8, "relu", name="first"), keras.layers.Dense(3, name="second")]
    model = keras.Sequential([keras.Input((4,), name="x"), *layers])
    layers[0].bias.assign([-1e3, 1, 1, 1, 1, 1, 1, 1])
    weights = dict(zip(("a", "b", "c", "d"), map(np.array, model.get_weights()), strict=True))
    weights["c"][0, 1] += 0.25
    nodes = [
        helper.make_node("Gemm", ["x", "a", "b"], ["before"]),
        helper.make_node("Relu", ["before"], ["after"]),
        helper.make_node("Gemm", ["after", "c", "d"], ["second"]),
    ]
    ends = [
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (None, size))]
        for name, size in (("x", 4), ("second", 3))
    ]
    held = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "net", *ends, held)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "net.onnx")
    (result,) = check_files(model, [tmp_path / "net.onnx"]).results
    failed = {f.check: f.subject for f in result.findings if not f.passed}
    assert failed == {"weights": "second", "ops": "second"}
    assert [fault.layer for fault in result.faults] == ["second"]
    assert "all of it" not in result.reason


def test_a_wrong_file_does_not_blame_another(mixed, foreign, images, tmp_path):
    """Which file a foreign file was made from is not known."""
    model = onnx.load(foreign / "float32.onnx")
    change(initializer(model.graph, (8, 3, 3, 3)), lambda w: w * np.nan)
    onnx.save(model, tmp_path / "a.onnx")
    files = [tmp_path / "a.onnx", foreign / "float32.onnx", foreign / "dynamic.onnx"]
    wrong, *right = check_files(mixed, files, images).results
    assert not wrong.passed
    for result in right:
        assert result.passed
        assert all("a.onnx" not in budget.sentence for budget in result.stages)
        assert {budget.cause for budget in result.stages} <= {"rounding", "quantization"}


def test_other_signatures_are_named(mixed, foreign, images, tmp_path):
    from renormlite.artifacts.flatbuffer import pack, parse

    model = parse((foreign / "float32.tflite").read_bytes())
    model.subgraphs.append(model.subgraphs[0])
    other = copy.copy(model.signatureDefs[0])
    other.signatureKey, other.subgraphIndex = b"embed", 1
    model.signatureDefs.insert(0, other)
    (tmp_path / "net.tflite").write_bytes(pack(model))
    report = check_files(mixed, [tmp_path / "net.tflite"], images)
    assert report.passed
    assert "and not 'embed'" in notes(report, "net.tflite")[-1]


def change_tflite(source, path):
    from renormlite.artifacts.flatbuffer import pack, parse

    content = parse(source.read_bytes())
    graph = content.subgraphs[0]
    kernel = next(t for t in graph.tensors if list(t.shape) == [12, 3, 3, 8])
    data = np.array(content.buffers[kernel.buffer].data, np.uint8)
    data[:8] ^= 0x40
    content.buffers[kernel.buffer].data = data
    path.write_bytes(pack(content))


def change_onnx(source, path):
    model = onnx.load(source)
    kernel = initializer(model.graph, (12, 8, 3, 3))
    change(kernel, lambda w: np.concatenate([w[:1] ^ np.int8(0x40), w[1:]]))
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("name", "edit"), [("int8.tflite", change_tflite), ("operators.onnx", change_onnx)]
)
def test_changed_integer_weights_are_found(mixed, foreign, images, tmp_path, name, edit):
    edit(foreign / name, tmp_path / name)
    (result,) = check_files(mixed, [tmp_path / name], images).results
    assert not result.passed
    assert "second" in {fault.layer for fault in result.faults}


@pytest.fixture(scope="module")
def reversed_outputs(mixed, tmp_path_factory):
    """A file whose outputs have arbitrary names and the reverse order."""
    import keras
    import tensorflow as tf

    model = keras.Model(mixed.input, mixed.outputs[::-1])
    path = tmp_path_factory.mktemp("reversed") / "net.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    return path


def test_outputs_are_matched_by_value_where_names_are_arbitrary(
    mixed, images, report, reversed_outputs
):
    """Outputs of two files in opposite orders are both matched correctly."""
    other = check_files(mixed, [reversed_outputs], images)
    assert other.passed
    hows = {
        note.split(", ")[1]
        for note in (*notes(other, "net.tflite")[1:], *notes(report, "float32.tflite")[1:])
    }
    assert hows == {"by order", "by its values"}


def test_options_of_the_user_override_the_matching(mixed, images, reversed_outputs):
    assumed = notes(check_files(mixed, [reversed_outputs], images), "net.tflite")[1:]
    names = [note.split("'")[3] for note in assumed]
    mapped = dict(zip(("age", "weight"), names[::-1], strict=True))
    report = check_files(mixed, [reversed_outputs], images, map_outputs=mapped)
    assert not report.passed
    assert notes(report, "net.tflite")[1].endswith("as asked for")
    with pytest.raises(UserError, match="has no tensor 'nothing'"):
        check_files(mixed, [reversed_outputs], images, map_outputs={"age": "nothing"})


def test_a_file_of_another_interface_fails_alone(mixed, foreign, images, tmp_path, healthy_export):
    shutil.copy(healthy_export / "tiny.float32.onnx", tmp_path / "alien.onnx")
    (tmp_path / "damaged.tflite").write_bytes(b"no model")
    files = [tmp_path / "alien.onnx", tmp_path / "damaged.tflite", foreign / "float32.tflite"]
    report = check_files(mixed, files, images)
    assert {r.artifact: r.passed for r in report.results} == {
        "alien.onnx": False,
        "damaged.tflite": False,
        "float32.tflite": True,
    }
    assert "of which none can be the model's" in notes(report, "alien.onnx")[0]


def test_kept_files_are_an_export(mixed, foreign, images, tmp_path):
    check_files(mixed, [foreign / "float32.tflite"], images, keep=tmp_path / "kept")
    assert check_parity(tmp_path / "kept").passed


def test_missing_files_and_other_suffixes_are_refused(mixed, tmp_path):
    text = tmp_path / "labels.txt"
    text.write_text("zero\n")
    for files, message in (
        ([], "Expected at least one"),
        ([tmp_path / "none.onnx"], "There is no file"),
        ([tmp_path], "There is no file"),
        ([text], "Expected a file name that ends in .tflite or .onnx"),
    ):
        with pytest.raises(UserError, match=message):
            check_files(mixed, files)


def test_a_file_without_its_weights_is_named(mixed, images, tmp_path):
    """`from_concrete_functions` leaves the variables of Keras models out."""
    import tensorflow as tf

    traced = tf.function(lambda image: mixed(image, training=False))
    function = traced.get_concrete_function(tf.TensorSpec((1, 8, 8, 3), name="image"))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], mixed)
    (tmp_path / "net.tflite").write_bytes(converter.convert())
    (result,) = check_files(mixed, [tmp_path / "net.tflite"], images).results
    assert not result.passed
    assert "its converter left the weights out" in "".join(f.message for f in result.findings)


def test_a_file_that_would_fill_the_memory_is_not_run(mixed, images, tmp_path):
    size = numpy_helper.from_array(np.array([2 * 10**9]), "s")
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["b"]),
        helper.make_node("ReduceMax", ["b"], ["m"], keepdims=0),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]
    ends = [
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, 4))] for name in ("x", "y")
    ]
    graph = helper.make_graph(nodes, "net", *ends, [size])
    opset = [helper.make_opsetid("", 17)]
    path = tmp_path / "big.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    with pytest.raises(UserError, match=r"^big\.onnx computes 8 GB from \d+ bytes"):
        check_files(mixed, [path], images)
