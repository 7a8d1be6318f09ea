"""Protects the look at every file after it is written: what is not as asked is refused."""

from __future__ import annotations

import codecs
import dataclasses
import marshal
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
import renormlite as rl
import tensorflow as tf
from any_models import crossed_numbers
from keras import layers
from renormlite import UserError
from renormlite.export import number_limits
from renormlite.export.files import _advice
from renormlite.export.formats import flatbuffer
from renormlite.export.formats.base import Job, format_named
from renormlite.export.formats.freeze import freeze
from renormlite.export.options import ExportOptions
from renormlite.export.signature import signature_of


@pytest.fixture
def job() -> Job:
    x = keras.Input((6, 6, 2), name="x")
    y = layers.Dense(3, name="y")(layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(x)))
    model = keras.Model(x, y)
    return Job(freeze(model, signature_of(model)), "float32", ExportOptions(), "{}")


def _written(name: str, job: Job, tmp_path: Path) -> Path:
    path = tmp_path / f"net.{name}"
    format_named(name).write(job, path)
    assert format_named(name).validate(path, job).ops
    return path


def _renamed(job: Job, **change: object) -> Job:
    """Return the job as if something else had been asked for."""
    signature = job.graph.signature
    outputs = (dataclasses.replace(signature.outputs[0], **change),)
    graph = dataclasses.replace(
        job.graph, signature=dataclasses.replace(signature, outputs=outputs)
    )
    return dataclasses.replace(job, graph=graph)


@pytest.mark.parametrize("name", ["tflite", "onnx"])
@pytest.mark.parametrize(
    "change", [{"name": "z"}, {"dtype": "float16"}, {"shape": (1, 4)}], ids=lambda c: next(iter(c))
)
def test_another_name_type_or_shape_is_refused(name, change, job, tmp_path):
    path = _written(name, job, tmp_path)
    with pytest.raises(rl.UserError, match="expected output"):
        format_named(name).validate(path, _renamed(job, **change))


def test_a_dropped_output_is_refused(job, tmp_path):
    path = _written("onnx", job, tmp_path)
    model = onnx.load(path)
    extra = onnx.helper.make_tensor_value_info("flat", onnx.TensorProto.FLOAT, [1, 64])
    model.graph.node[-1].output[0] = "y"
    model.graph.output.insert(0, extra)
    model.graph.node.append(onnx.helper.make_node("Flatten", ["x"], ["flat"]))
    extra.type.tensor_type.shape.dim[1].dim_value = 72
    model.graph.output[0].CopyFrom(extra)
    onnx.save(model, path)
    with pytest.raises(rl.UserError, match="expected outputs"):
        format_named("onnx").validate(path, job)


def test_an_operator_outside_the_standard_is_refused(job, tmp_path):
    path = _written("onnx", job, tmp_path)
    model = onnx.load(path)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type, relu.domain = "Gelu", "com.microsoft"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)
    with pytest.raises(rl.UserError, match="Gelu is no standard ONNX operator"):
        format_named("onnx").validate(path, job)


def test_an_unsound_graph_is_refused(job, tmp_path):
    path = _written("onnx", job, tmp_path)
    model = onnx.load(path)
    model.graph.node[1].input[0] = "nobody"
    onnx.save(model, path)
    with pytest.raises(rl.UserError, match=r"no valid ONNX file.*nobody.*Conv"):
        format_named("onnx").validate(path, job)


def test_a_renamed_signature_is_refused(job, tmp_path):
    path = _written("tflite", job, tmp_path)
    model = flatbuffer.parse(path.read_bytes())
    model.signatureDefs[0].outputs[0].name = b"other"
    path.write_bytes(flatbuffer.pack(model))
    with pytest.raises(rl.UserError, match="signature"):
        format_named("tflite").validate(path, job)


def test_remaining_variables_are_refused(job, tmp_path):
    path = _written("tflite", job, tmp_path)
    model = flatbuffer.parse(path.read_bytes())
    model.operatorCodes[0].builtinCode = flatbuffer.schema.BuiltinOperator.READ_VARIABLE
    path.write_bytes(flatbuffer.pack(model))
    with pytest.raises(rl.UserError, match="READ_VARIABLE"):
        format_named("tflite").validate(path, job)


def test_a_file_that_is_not_tflite_is_refused(job, tmp_path):
    path = tmp_path / "net.tflite"
    path.write_bytes(b"\0" * 64)
    with pytest.raises(rl.UserError, match="TFL3"):
        format_named("tflite").validate(path, job)


def test_an_operator_that_tflite_lacks_is_refused_by_name(export):
    x = keras.Input((4,), name="x")
    with pytest.raises(rl.UserError, match=r"Erfinv.*--allow-flex"):
        export(keras.Model(x, keras.ops.erfinv(x)), formats=("tflite",))


def test_flex_operators_are_written_on_request(tmp_path):
    x = keras.Input((3, 3), name="x")
    model = keras.Model(x, keras.ops.inv(x))
    job = Job(freeze(model, signature_of(model)), "float32", ExportOptions(allow_flex=True), "{}")
    path = tmp_path / "net.tflite"
    format_named("tflite").write(job, path)
    ops = format_named("tflite").validate(path, job).ops
    assert any(op.startswith("Flex") for op in ops)


class Own(layers.Layer):
    """Multiplies by a variable and adds a constant that Keras knows nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self._hidden = [tf.Variable([2.0, 3.0, 5.0]), tf.constant([1.0, 0.0, -1.0])]

    def call(self, x: object) -> object:
        return x * self._hidden[0] + self._hidden[1]


class Counts(layers.Layer):
    """Changes a variable of its own at every call."""

    def __init__(self) -> None:
        super().__init__()
        self._hidden = [tf.Variable(0.0)]

    def call(self, x: object) -> object:
        return x * self._hidden[0].assign_add(1.0)


@pytest.mark.parametrize("name", ["tflite", "onnx", "saved_model"])
def test_variables_and_constants_of_a_layers_own_become_constants(name, tmp_path):
    x = keras.Input((3,), name="x")
    model = keras.Model(x, layers.Dense(2, name="y")(Own()(x)))
    job = Job(freeze(model, signature_of(model)), "float32", ExportOptions(), "{}")
    path = _written(name, job, tmp_path)
    data = np.array([[0.5, -1, 2]], np.float32)
    with format_named(name).runner(path) as runner:
        found = runner.infer({"x": data})["y"]
    np.testing.assert_allclose(found, model(data), rtol=1e-5)


def test_state_that_changes_is_refused_in_a_sentence():
    x = keras.Input((3,), name="x")
    model = keras.Model(x, Counts()(x))
    with pytest.raises(rl.UserError, match="add_weight"):
        freeze(model, signature_of(model))


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    x = keras.Input((3,), name="x")
    model = keras.Model(x, layers.Dense(2)(x))
    with pytest.raises(rl.UserError, match="KERAS_BACKEND=tensorflow"):
        freeze(model, signature_of(model))


def test_layer_names_are_put_back_when_tracing_fails():
    x = keras.Input((3,), name="x")
    model = keras.Model(x, layers.Dense(2, name="own")(Counts()(x)), name="net")
    with pytest.raises(rl.UserError):
        freeze(model, signature_of(model))
    assert model.name == "net"
    assert model.layers[-1].name == "own"


@pytest.mark.parametrize(
    ("formats", "precision"), [(("tflite",), "float32"), (("saved_model", "onnx"), "dynamic")]
)
def test_a_model_beyond_a_formats_limit_is_refused_before_any_work(
    formats, precision, small, export, monkeypatch
):
    monkeypatch.setattr(number_limits, "_LARGEST_FILE", 100)
    stages = []
    with pytest.raises(UserError, match=f"{formats[-1]} {precision} are written from at most"):
        export(
            small,
            formats=formats,
            precisions=(precision,),
            listener=lambda progress: stages.append(progress.stage),
        )
    assert set(stages) == {"prepare"}


def test_files_that_are_possible_are_written_beside_refused_ones(tmp_path):
    x = keras.Input((258, 1), name="x")
    model = keras.Model(x, keras.layers.SimpleRNN(2)(x))
    (tmp_path / "net").mkdir()
    with pytest.raises(rl.PartialExportError, match=r"net\.int8\.tflite was not written: .* 256"):
        rl.export_model(
            model,
            tmp_path / "net",
            formats=("tflite",),
            precisions=("int8", "float32"),
            calibration="random",
        )
    manifest = rl.Manifest.load(tmp_path / "net")
    assert list(manifest.refused) == ["net.int8.tflite"]
    assert [artifact.file for artifact in manifest.artifacts] == ["net.float32.tflite"]
    assert not (tmp_path / "net" / "net.int8.tflite").exists()
    assert rl.check_parity(tmp_path / "net").passed


def test_samples_for_a_network_that_is_cut_at_its_text_are_computed(export, tmp_path):
    codes = {name: np.arange(4, dtype=np.int64)[:, None] for name in "ab"}
    np.savez(tmp_path / "codes.npz", **codes)
    model = crossed_numbers()
    export(model, formats=("tflite",), inputs=tmp_path / "codes.npz")
    golden = np.load(next(tmp_path.rglob("golden.npz")))
    real = golden["input:cross"][golden["kind"] == "real"]
    assert real.tolist() == np.asarray(model.get_layer("cross")(tuple(codes.values()))).tolist()


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`:UserWarning")
@pytest.mark.parametrize("default", [None, 0.5])
def test_a_refusal_shows_no_serialized_code(default, tmp_path):
    x = keras.Input((4,), name="x")
    initializer = lambda shape, dtype=default: keras.ops.ones(shape)  # noqa: E731
    model = keras.Model(x, keras.layers.Dense(3, kernel_initializer=initializer, name="y")(x))
    with pytest.raises(
        rl.UserError, match=r"layer 'y'.* initializer identifier: a lambda\."
    ) as told:
        rl.export_model(model, tmp_path)
    assert "AAAA" not in str(told.value)


def test_code_is_removed_from_any_message_and_nothing_else():
    def function(first, second=2):
        return first + second

    code = codecs.encode(marshal.dumps(function.__code__), "base64").decode()
    in_one_line = code.replace("\n", "")
    told = rl.UserError(f"Cannot read {code!r}, of {in_one_line!r}.")
    assert str(told) == "Cannot read (code), of (code)."
    path = f"'4wEAAA/{'models/' * 20}net'"
    assert str(rl.UserError(path)) == path


@pytest.mark.parametrize("file_format", ["onnx", "tflite"])
def test_values_beyond_float32_in_the_calibration_are_named(file_format, tmp_path):
    """Their scale is infinite; the file is not damaged, and no norm is to blame."""
    x = keras.Input((4,), name="x")
    y = layers.Activation("tanh")(layers.Dense(5, name="big")(x))
    model = keras.Model(x, layers.Dense(3)(y))
    rng = np.random.default_rng(0)
    kernel = np.clip(rng.normal(size=(4, 5)) * 4e18, -8e18, 8e18)
    model.get_layer("big").set_weights([kernel.astype(np.float32), np.zeros(5, np.float32)])
    samples = (rng.normal(size=(40, 4)).cumsum(axis=0) * 9e18).astype(np.float32)
    with pytest.raises(UserError) as refusal:
        rl.export_model(
            model,
            tmp_path / "net",
            formats=(file_format,),
            precisions=("int8",),
            calibration=samples,
            inputs=samples[:16],
        )
    sentence = str(refusal.value)
    assert "exceeded float32 (3.4e38) when the file was calibrated" in sentence
    assert "Copy it again" not in sentence
    assert "norms" not in sentence


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("unsupported scale value (inf) in channel 0", "below that"),
        ("unsupported scale value (1e-40) in channel 0", "of the usual size"),
        ("kernel_util.cc:403 scale_diff / output_scale <= 0.02 was not true.", "input_norms"),
        ("node 3 failed to prepare", "Export another precision"),
    ],
)
def test_advice_is_given_for_the_cause_that_the_runtime_names(reason, advice):
    found = _advice(reason, "int8")
    assert advice in found
    assert ("norms" in found) is (advice == "input_norms")
