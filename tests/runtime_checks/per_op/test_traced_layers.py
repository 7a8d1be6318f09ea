"""Protects that checks look into layers that are traced: healthy ones pass, faults are named."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from keras import layers as kl
from renormlite import check_files, check_parity, export_model
from renormlite.artifacts.directory import read_export
from renormlite.artifacts.flatbuffer import pack, parse
from renormlite.artifacts.graphs import read_graph
from renormlite.reference.file_weights import match_weights
from renormlite.reference.network import evaluate_network
from renormlite.runtime_checks.per_op.file_contents import FileContents

TARGETS = ("litert", "litert+reference", "onnxruntime")


@keras.saving.register_keras_serializable("traced")
class Scale(kl.Layer):
    """A layer of the user's own that a converter merges into the convolution before it."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), name="factor")
        self.shift = self.add_weight(shape=(shape[-1],), name="shift")

    def call(self, x):
        return x * self.factor + self.shift


def exported(folder: Path, shape, layers, precisions=("float32",)) -> Path:
    """Export a network of layers with random weights."""
    x = keras.Input(shape, name="x")
    y = x
    for layer in layers:
        y = layer(y)
    model = keras.Model(x, y, name="net")
    rng = np.random.default_rng(3)
    for variable in model.weights:
        positive = any(word in variable.path for word in ("variance", "gamma", "factor"))
        size = rng.uniform(0.5, 1.5, variable.shape) if positive else 0
        variable.assign(size if positive else rng.normal(0, 0.5, variable.shape))
    calibration = None if precisions == ("float32",) else "random"
    formats = ("tflite",) if "int16x8" in precisions else ("tflite", "onnx")
    export_model(model, folder, formats=formats, precisions=precisions, calibration=calibration)
    return folder


def rewrite(export: Path, file: str, data: bytes) -> None:
    """Put other bytes in the place of a file and hide it."""
    (export / file).write_bytes(data)
    record = json.loads((export / "manifest.json").read_text())
    for artifact in record["artifacts"]:
        if artifact["file"] == file:
            artifact |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (export / "manifest.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory) -> Path:
    layers = [kl.LSTM(6, name="lstm"), kl.Dense(3, name="head")]
    return exported(tmp_path_factory.mktemp("recurrent") / "net", (5, 4), layers)


def test_a_recurrent_layer_is_checked_step_by_step_or_as_a_whole(recurrent):
    report = check_parity(recurrent, TARGETS, per_op=True)
    assert report.passed
    assert {check.layer for result in report.results for check in result.ops} == {"lstm", "head"}


@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
def test_an_altered_weight_inside_a_loop_names_the_layer(recurrent, tmp_path, suffix):
    export = Path(shutil.copytree(recurrent, tmp_path / "net"))
    file = f"net.float32.{suffix}"
    network = read_export(export).read_network(read_export(export).artifacts[0])
    data = (export / file).read_bytes()
    matches = match_weights(network, read_graph(export / file, suffix, data))
    assert {match.state for match in matches} == {"equal"}
    kernel = next(m for m in matches if m.role == "kernel" and m.layer == "lstm").tensor.data
    altered = kernel.copy()
    altered.reshape(-1)[3] += 0.25
    assert data.count(kernel.tobytes()) == 1
    rewrite(export, file, data.replace(kernel.tobytes(), altered.tobytes()))
    target = "litert" if suffix == "tflite" else "onnxruntime"
    (result,) = check_parity(export, (target,)).results
    assert not result.passed
    (finding,) = [found for found in result.findings if found.check == "weights"]
    assert "kernel of layer 'lstm': 1 / 96 weights" in finding.message
    assert {fault.layer for fault in result.faults} == {"lstm"}


def norm_in_training(x):
    return kl.BatchNormalization(name="norm")(x, training=True)


@pytest.mark.parametrize("affine", [lambda: Scale(name="scale"), lambda: norm_in_training])
@pytest.mark.parametrize("precision", ["float32", "float16", "dynamic"])
def test_a_merged_affine_passes(tmp_path, affine, precision):
    layers = [kl.Conv2D(6, 3, name="conv"), affine(), kl.ReLU(), kl.Flatten(), kl.Dense(3)]
    export = exported(tmp_path / "net", (8, 8, 3), layers, (precision,))
    report = check_parity(export, TARGETS, per_op=True)
    assert report.passed, [result.reason for result in report.results]


def einsum(size):
    return kl.EinsumDense("ab,bc->ac", size, bias_axes="c")


IN_FRONT = {
    "rescaling": ((8, 8, 3), lambda: [kl.Rescaling(1 / 127.5, -1), kl.Conv2D(4, 3), kl.Flatten()]),
    "depthwise": ((8, 8, 3), lambda: [kl.Rescaling(2.0, 1), kl.DepthwiseConv2D(3), kl.Flatten()]),
    "vectors": ((5,), lambda: [Scale(), kl.Dense(4)]),
    "biases": ((5,), lambda: [kl.Dense(4), kl.Dense(4), kl.Dense(3)]),
    "products": ((5,), lambda: [einsum(4), einsum(3)]),
    "quotient": ((5,), lambda: [kl.Lambda(lambda x: x / 3), kl.Dense(4)]),
}


@pytest.mark.parametrize("name", IN_FRONT)
def test_an_affine_merged_into_the_next_layer_passes(tmp_path, name):
    shape, layers = IN_FRONT[name]
    export = exported(tmp_path / "net", shape, layers())
    report = check_parity(export, TARGETS, per_op=True)
    assert report.passed, [result.reason for result in report.results]


def test_a_factor_merged_into_several_readers_passes(tmp_path):
    x = keras.Input((6,), name="x")
    scaled = kl.RMSNormalization(name="scaled")(x)
    heads = [kl.Dense(size, name=f"head{size}")(scaled) for size in (3, 2)]
    model = keras.Model(x, heads)
    model.get_layer("scaled").scale.assign([0.5, 1.5, -2, 3, 0, 1])
    export_model(model, tmp_path / "net", precisions=("float32", "int8"), calibration="random")
    contents = [contents_of(tmp_path / "net", place) for place in range(4)]
    kernels = [m for c in contents for m in c.weights if m.role == "kernel"]
    assert len(kernels) == 8
    assert all(match.state == "equal" for match in kernels)
    report = check_parity(tmp_path / "net", TARGETS, per_op=True)
    assert report.passed, [result.reason for result in report.results]


@pytest.mark.parametrize("other", ["returned", "norm", "transposed"])
def test_affines_merged_into_one_of_several_readers_pass(tmp_path, other):
    size = 1 if other == "transposed" else 5
    x = keras.Input((size,), name="x")
    y = x * 2.0 - 1.0
    turned = keras.ops.transpose(y, (0, 1)) if other == "transposed" else y
    second = y if other == "returned" else kl.RMSNormalization()(y)
    model = keras.Model(x, [kl.Dense(3, "hard_sigmoid")(turned), second], name="net")
    export_model(model, tmp_path / "net")
    report = check_parity(tmp_path / "net", TARGETS, per_op=True)
    assert report.passed, [result.reason for result in report.results]


@pytest.mark.parametrize("shared", [False, True])
def test_affines_merged_through_a_reshape_of_the_positions_pass(tmp_path, shared):
    """A SpectralNormalization of a Dense layer reads all positions as rows."""
    keras.utils.set_random_seed(0)
    x = keras.Input((4, 5, 3), name="x")
    y = kl.Activation("squareplus")(kl.Conv2D(2, 2)(x)) * 0.3 + 0.1
    z = kl.SpectralNormalization(kl.Dense(3))(y)
    model = keras.Model(x, [z, kl.RMSNormalization()(y)] if shared else z, name="net")
    export_model(model, tmp_path / "net")
    report = check_parity(tmp_path / "net", TARGETS, per_op=True)
    assert report.passed, [result.reason for result in report.results]


def test_a_table_whose_rows_are_dequantized_is_found(tmp_path):
    """The file also has as many zeros, which are zero points."""
    keras.utils.set_random_seed(0)
    x = keras.Input((5,), dtype="int32", name="x")
    y = kl.GlobalAveragePooling1D()(kl.Embedding(4, 3, name="table")(x))
    model = keras.Model(x, kl.Dense(12)(y))
    export_model(model, tmp_path / "net", formats=("onnx",), precisions=("dynamic",))
    states = {match.layer: match.state for match in contents_of(tmp_path / "net", 0).weights}
    assert states["table"] == "equal"
    assert check_parity(tmp_path / "net", ("onnxruntime", "openvino"), per_op=True).passed


def test_a_relu_after_a_relu6_passes(tmp_path):
    """The op that both may stand for declares the relu6."""
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 4, 5), name="x")
    y = keras.ops.relu(kl.Dense(1, activation="relu6")(x))
    model = keras.Model(x, kl.Concatenate()([y, y]), name="net")
    export_model(model, tmp_path / "net", precisions=("float32", "int8"), calibration="random")
    report = check_parity(tmp_path / "net", TARGETS, per_op=True)
    assert report.passed, [result.reason for result in report.results]


def test_both_sides_of_a_selu_in_tensors_of_their_own_pass(tmp_path):
    """In int8 .tflite files the values before it are rounded twice: the negative ones, the rest."""
    x = keras.Input((8, 4), name="x")
    y = kl.AveragePooling1D(2)(kl.Dense(8, activation="selu", name="selu")(x))
    y = kl.Dense(3, activation="softplus")(y)
    export_model(
        keras.Model(x, y),
        tmp_path / "net",
        formats=("tflite",),
        precisions=("int8",),
        calibration="random",
    )
    report = check_parity(tmp_path / "net", ("litert", "litert+reference"), per_op=True)
    assert report.passed, [result.reason for result in report.results]


def contents_of(folder: Path, place: int) -> FileContents:
    """Return what the checks know about one file of an export."""
    export = read_export(folder)
    artifact = export.artifacts[place]
    return FileContents.of(export.path / artifact.file, artifact, export.read_network(artifact))


def test_a_constant_that_float32_does_not_hold_passes(tmp_path):
    """If the constant is the result, the error of the result is that of the constant."""
    x = keras.Input((8,), name="x")
    y = kl.Dense(6, name="y")(x)
    model = keras.Model(x, [y, keras.ops.maximum(y, 0.3), keras.ops.add(y, 1e-9) - 0.1])
    export_model(model, tmp_path / "net", precisions=("float16", "int8"), calibration="random")
    report = check_parity(tmp_path / "net", TARGETS, per_op=True)
    assert report.passed, [result.reason for result in report.results]


def test_a_vector_that_keras_adds_to_another_axis_passes(tmp_path):
    """On TensorFlow, a vector as long as the last axis or axis 1 is added there as a bias."""
    x = keras.Input((8, 4), name="x")
    y = kl.EinsumDense("abc,bz->azc", (4, 4), bias_axes="z", name="y")(x)
    z = kl.EinsumDense("abc,bz->azc", (5, 4), bias_axes="z", name="z")(x)
    shifts = np.arange(4, dtype=np.float32)[:, None]
    model = keras.Model(x, [y, keras.ops.add(y, shifts), z])
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(0, 0.4, weight.shape))
    export = tmp_path / "net"
    export_model(model, export, precisions=("float32", "int8"), calibration="random")
    kernel, bias = (np.asarray(weight) for weight in model.get_layer("y").weights)
    network = read_export(export).folded_network
    samples = rng.normal(size=(2, 8, 4))
    given = evaluate_network(network, {"x": samples})["y"]
    # This is what Keras computes, not what the shape of its bias, (4, 1), says.
    np.testing.assert_allclose(given, np.einsum("abc,bz->azc", samples, kernel) + bias[:, 0])
    np.testing.assert_allclose(given, model.predict(samples, verbose=0)[0], rtol=0, atol=1e-5)
    report = check_parity(export, ("litert", "onnxruntime"), per_op=True)
    assert report.passed, [result.reason for result in report.results]


def test_a_bias_moved_to_one_of_several_readers_passes(tmp_path):
    """Nor is the 3 of a hard sigmoid in a bias, or the range of the relu6 that is left of it."""
    x = keras.Input((8,), name="x")
    both = kl.Dense(6, name="both")(x)
    gate = kl.Dense(6, activation="hard_sigmoid", name="gate")(both)
    y = kl.Dense(3)(kl.Multiply()([gate, kl.Maximum()([both, gate])]))
    model = keras.Model(x, y)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(0, 0.4, weight.shape))
    samples = rng.normal(size=(32, 8)).astype(np.float32)
    export = tmp_path / "net"
    export_model(
        model,
        export,
        formats=("tflite",),
        precisions=("float32", "float16", "int8"),
        calibration=samples,
        inputs=samples,
    )
    report = check_parity(export, ("litert",), per_op=True)
    assert report.passed, [result.reason for result in report.results]
    (float16,) = [a.file for a in read_export(export).artifacts if a.precision == "float16"]
    values = read_graph(export / float16, "tflite").constants
    bias = next(t.data for t in values if t.data.shape == (6,) and t.data.min() > 1)
    altered = bias.copy()
    altered[2] += 0.01
    data = (export / float16).read_bytes()
    rewrite(export, float16, data.replace(bias.tobytes(), altered.tobytes()))
    (result,) = check_parity(export, ("litert",), precisions=("float16",)).results
    assert not result.passed
    assert result.faults[0].layer == "gate"


def test_a_bias_moved_with_wrong_numbers_fails(tmp_path):
    layers = [kl.Dense(5, name="first"), kl.Dense(3, name="last")]
    export = exported(tmp_path / "net", (4,), layers)
    opened = read_export(export)
    (artifact,) = [a for a in opened.artifacts if a.format == "tflite"]
    (bias,) = [
        tensor.data
        for tensor in read_graph(export / artifact.file, "tflite").constants
        if tensor.data is not None and tensor.data.shape == (3,)
    ]
    altered = bias + np.float32([0, 0.01, 0])
    data = (export / artifact.file).read_bytes()
    rewrite(export, artifact.file, data.replace(bias.tobytes(), altered.tobytes()))
    (result,) = check_parity(export, ("litert",)).results
    assert not result.passed
    assert result.faults


def test_a_merged_affine_with_wrong_numbers_fails(tmp_path):
    layers = [kl.Conv2D(6, 3, name="conv"), Scale(name="scale"), kl.Flatten(), kl.Dense(3)]
    export = exported(tmp_path / "net", (8, 8, 3), layers)
    opened = read_export(export)
    (artifact,) = [a for a in opened.artifacts if a.format == "tflite"]
    contents = FileContents.of(export / artifact.file, artifact, opened.read_network(artifact))
    assert contents.conclusive(artifact)
    match = next(m for m in contents.weights if m.layer == "conv" and m.role == "kernel")
    data = (export / artifact.file).read_bytes()
    altered = match.tensor.data.copy()
    altered[2] *= 1.01
    rewrite(export, artifact.file, data.replace(match.tensor.data.tobytes(), altered.tobytes()))
    (result,) = check_parity(export, ("litert",)).results
    assert not result.passed
    assert result.faults[0].layer == "conv"


def test_nan_of_an_empty_sample_names_layer_and_op(tmp_path):
    """XNNPACK's reciprocal square root of zero is NaN; TensorFlow's own converter keeps it."""
    x = keras.Input((4, 3), name="x")
    y = kl.Dense(4, use_bias=False)(kl.Flatten()(x))
    model = keras.Model(x, kl.UnitNormalization(name="unit")(y))
    stock = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    (tmp_path / "stock.tflite").write_bytes(stock)
    report = check_files(model, [tmp_path / "stock.tflite"], targets=TARGETS[:2])
    on_xnnpack, on_reference = report.results
    assert on_reference.passed
    assert not on_xnnpack.passed
    fault = on_xnnpack.faults[0]
    assert (fault.layer, fault.op.kind) == ("unit", "RSQRT")
    assert "it gave nan" in fault.message


def test_an_op_that_lost_its_activation_is_named_and_not_the_next_op(tmp_path):
    layers = [
        kl.Conv2D(4, 3, padding="same", activation="relu", name="first"),
        kl.DepthwiseConv2D(3, padding="same", activation="relu", name="second"),
        kl.Flatten(),
        kl.Dense(3),
    ]
    export = exported(tmp_path / "net", (6, 6, 3), layers)
    file = "net.float32.tflite"
    model = parse((export / file).read_bytes())
    options = model.subgraphs[0].operators[0].builtinOptions
    assert options.fusedActivationFunction == 1
    options.fusedActivationFunction = 0
    rewrite(export, file, pack(model))
    (result,) = check_parity(export, ("litert",)).results
    fault = result.faults[0]
    assert (fault.layer, fault.op.index, fault.kind) == ("first", 0, "activation")
    assert "it computes no activation instead" in fault.message


@pytest.mark.parametrize("per_op", [False, True])
def test_ops_that_are_not_evaluated_are_counted_and_named(tmp_path, per_op):
    class Odd(kl.Layer):
        """A layer with an operation that has no primitive."""

        def call(self, x):
            return tf.raw_ops.MatrixDiag(diagonal=x)

        def compute_output_shape(self, shape):
            return (*shape, shape[-1])

    layers = [Odd(name="odd"), kl.Dense(3, name="last")]
    export = exported(tmp_path / "net", (5, 4), layers)
    report = check_parity(export, ("litert",), per_op=per_op)
    assert report.passed, [result.reason for result in report.results]
    (note,) = [finding for finding in report.findings if finding.check == "evaluated"]
    assert "2 of 2 operators are not evaluated in float64: 'odd' (no primitive" in note.message
    assert json.loads(report.to_json())["findings"][0]["message"] == note.message


def test_resizing_images_whose_neighbours_are_unlike_passes(tmp_path):
    """A position rounded in float32 counts by the difference of the pixels around it."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = kl.ReLU()(kl.BatchNormalization()(kl.Conv2D(4, 3)(kl.Resizing(6, 6)(image))))
    model = keras.Model(image, kl.Dense(3)(kl.GlobalAveragePooling2D()(x)))
    samples = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)
    export_model(model, tmp_path / "net", inputs=samples)
    report = check_parity(tmp_path / "net", TARGETS)
    assert report.passed, [result.reason for result in report.results]


@pytest.mark.parametrize("size", [(6, 5), (32, 32)])
@pytest.mark.parametrize(
    ("file_format", "precision"), [("onnx", "dynamic"), ("tflite", "int4"), ("tflite", "dynamic")]
)
def test_resizing_stays_in_floats_where_only_weights_are_quantized(
    tmp_path, file_format, precision, size
):
    x = keras.Input((*size, 3), name="x")
    y = kl.UpSampling2D(2, interpolation="bicubic", name="y")(x)
    model = keras.Model(x, [y, kl.Conv2D(4, 3)(y)], name="net")
    (artifact,) = export_model(
        model, tmp_path, formats=(file_format,), precisions=(precision,)
    ).artifacts
    assert artifact.snr_db["y"] > 120  # 40 with a matrix of 8 bits, 21 with one of 4 bits
    target = {"onnx": "onnxruntime", "tflite": "litert"}[file_format]
    report = check_parity(tmp_path, (target,), per_op=True)
    assert report.passed, [result.reason for result in report.results]


@keras.saving.register_keras_serializable("traced")
class Spectrum(kl.Layer):
    """Absolute values of a Fourier transform, which files compute as products with sines."""

    def call(self, x):
        real, imaginary = keras.ops.rfft(x)
        return keras.ops.sqrt(real * real + imaginary * imaginary + 1e-3)


@pytest.mark.parametrize(
    ("file_format", "precision"), [("onnx", "dynamic"), ("tflite", "int4"), ("tflite", "dynamic")]
)
def test_sines_stay_in_floats_where_only_weights_are_quantized(tmp_path, file_format, precision):
    x = keras.Input((64,), name="x")
    y = Spectrum(name="y")(x)
    model = keras.Model(x, [y, kl.Dense(3)(y)], name="net")
    (artifact,) = export_model(
        model, tmp_path, formats=(file_format,), precisions=(precision,)
    ).artifacts
    assert artifact.snr_db["y"] > 120  # 47 with sines of 8 bits, 28 with sines of 4 bits


@pytest.mark.parametrize(
    ("file_format", "precision"), [("onnx", "dynamic"), ("tflite", "int4"), ("tflite", "dynamic")]
)
def test_the_waves_of_a_spectrogram_stay_in_floats(tmp_path, file_format, precision):
    x = keras.Input((256, 1), name="x")
    y = kl.STFTSpectrogram("log", 64, 32, 64, name="y")(x)
    model = keras.Model(x, [y, kl.Dense(40)(y)], name="net")
    floats, quantized = export_model(
        model, tmp_path, formats=(file_format,), precisions=("float32", precision)
    ).artifacts
    assert quantized.snr_db["y"] > 120  # 28 with waves of 8 bits, 16 with waves of 4 bits
    assert quantized.bytes < floats.bytes + 1000  # no second copy of the waves
    target = {"onnx": "onnxruntime", "tflite": "litert"}[file_format]
    report = check_parity(tmp_path, (target,), per_op=True)
    assert report.passed, [result.reason for result in report.results]


def test_a_matrix_that_a_converter_computes_is_that_of_float32(tmp_path):
    """The frequencies of the bands, in float32, are 7e-6 from those of float64."""
    x = keras.Input((2000,), name="x")
    y = kl.MelSpectrogram(256, 128, num_mel_bins=32, sampling_rate=8000, power_to_db=False)(x)
    sounds = np.random.default_rng(0).normal(size=(16, 2000)).astype("f4")
    export_model(keras.Model(x, y, name="net"), tmp_path, inputs=sounds)
    report = check_parity(tmp_path, TARGETS, per_op=True)
    assert report.passed, [result.reason for result in report.results]


def test_parts_of_a_layer_with_names_of_one_scope_are_told_apart(tmp_path):
    """An op "…/add_2" adds a map to the statistics "…/add_1", which is no rounding of them."""
    layers = [kl.Conv2D(4, 3), kl.GroupNormalization(2), kl.Flatten(), kl.Dense(5)]
    x = keras.Input((8, 8, 3), name="x")
    y = x
    for layer in layers:
        y = layer(y)
    samples = np.random.default_rng(0).uniform(size=(16, 8, 8, 3)).astype("f4").cumsum(1)
    export_model(
        keras.Model(x, y),
        tmp_path / "net",
        formats=("onnx",),
        precisions=("int8",),
        calibration=samples,
    )
    report = check_parity(tmp_path / "net", ("onnxruntime+disabled",), per_op=True)
    assert report.passed, [result.reason for result in report.results]


def test_two_tensors_that_hold_a_value_pass_if_one_of_them_is_read(tmp_path):
    """The file has exp(x) - 1 in two forms: both are near, and the result of one is selected."""
    layers = [kl.Dense(24, "log_sigmoid"), kl.Activation("celu"), kl.GroupNormalization(1)]
    export = exported(tmp_path / "net", (12,), layers)
    report = check_parity(export, TARGETS, per_op=True)
    assert report.passed, [result.reason for result in report.results]


def test_a_loop_whose_bound_is_wide_passes_by_its_result(tmp_path):
    """One channel that is 15 times as large as the others makes the steps of the inputs large."""
    keras.utils.set_random_seed(0)
    x = keras.Input((4,), name="x")
    y = kl.BatchNormalization(name="norm")(x)
    steps = kl.RepeatVector(2)(y)
    model = keras.Model(x, [kl.LSTM(4)(steps), steps], name="net")
    rng = np.random.default_rng(0)
    shift, mean = rng.normal(size=(2, 4))
    variance = rng.uniform(0.5, 1.5, 4)
    model.get_layer("norm").set_weights([np.array([1, 1, -1, 15]), shift, mean, variance])
    export_model(model, tmp_path, formats=("tflite",), precisions=("int4",))
    report = check_parity(tmp_path, ("litert+builtin", "litert"), per_op=True)
    assert report.passed, [result.reason for result in report.results]


def read_twice(kind: str) -> keras.Model:
    """Floats that some ops read as they are, and others rounded to integers."""
    ops = keras.ops
    if kind == "embedding":
        x = keras.Input((4,), dtype="int32", name="x")
        shared = kl.AveragePooling1D(2, padding="same")(kl.Embedding(6, 5)(x))
        others = [kl.BatchNormalization()(ops.where(shared > 0.1, shared, shared))]
    else:
        x = keras.Input((4, 5), name="x")
        shared = x if kind == "input" else ops.sin(x)
        others = [ops.cos(shared), ops.cos(kl.Reshape((5, 4))(shared)), ops.sin(kl.ReLU()(shared))]
    return keras.Model(x, [kl.Dense(3, name="dense")(shared), *others], name="net")


@pytest.mark.parametrize("kind", ["embedding", "input", "function"])
def test_floats_that_some_ops_read_rounded_and_others_as_they_are_pass(kind, tmp_path):
    model, rng = read_twice(kind), np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(np.abs(rng.normal(0.5, 0.2, weight.shape)))
    for precision in ("int8", "int16x8"):
        export = tmp_path / precision
        formats = ("tflite", "onnx") if precision == "int8" else ("tflite",)
        export_model(model, export, formats=formats, precisions=(precision,), calibration="random")
        report = check_parity(export, TARGETS if precision == "int8" else TARGETS[:2], per_op=True)
        assert report.passed, [result.reason for result in report.results]


@pytest.mark.parametrize(
    "layer",
    [
        kl.Dense(4, activation="log_sigmoid", name="y"),
        kl.DepthwiseConv1D(3, activation="log_sigmoid", name="y"),
        kl.Conv1D(4, 2, dilation_rate=2, activation="log_sigmoid", name="y"),
        kl.Conv1DTranspose(4, 2, activation="log_sigmoid", name="y"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_sign_merged_into_the_layer_before_it_passes(layer, tmp_path):
    """-log(1 + exp(-(W x + b))): in 16 bits the file has the weights -W and -b."""
    export = exported(tmp_path / "net", (6, 3), [layer], ("int16x8",))
    report = check_parity(export, TARGETS[:2], per_op=True)
    assert report.passed, [result.reason for result in report.results]


@pytest.mark.parametrize("function", ["hard_sigmoid", "hard_silu"])
def test_floats_computed_from_a_rounded_part_of_a_function(tmp_path, function):
    """An int8 .onnx file rounds relu6(x + 3) and divides it in floats at the end."""
    keras.utils.set_random_seed(0)
    x = keras.Input((6,), name="x")
    gate = kl.Dense(12, function, bias_initializer="normal", name="gate")
    model = keras.Model(x, gate(x), name="net")
    export = tmp_path / "net"
    options = {"formats": ("onnx",), "precisions": ("int8",), "calibration": "random"}
    export_model(model, export, **options)
    report = check_parity(export, ("onnxruntime",), per_op=True)
    assert report.passed, [result.reason for result in report.results]
    if function == "hard_silu":
        return
    assert "gate" in {check.layer for check in report.results[0].ops}
    file = onnx.load(export / "net.int8.onnx")
    (number,) = [
        entry
        for entry in file.graph.initializer
        if not entry.dims and onnx.numpy_helper.to_array(entry).item() == 6
    ]
    divisors = np.where(np.arange(12) == 3, 6.5, 6).astype(np.float32)
    number.CopyFrom(onnx.numpy_helper.from_array(divisors, number.name))
    rewrite(export, "net.int8.onnx", file.SerializeToString())
    (result,) = check_parity(export, ("onnxruntime",), per_op=True).results
    assert any(entry.check == "ops" and not entry.passed for entry in result.findings)


@pytest.mark.parametrize(
    ("sizes", "axis"), [((6, 1), 1), ((2, 3), 1), ((2, 3), 2), ((1, 6), 1), ((3, 2, 1), 2)]
)
def test_an_affine_along_one_of_the_axes_that_channels_were_split_into(tmp_path, sizes, axis):
    """The converter may merge it into the kernel before the reshape."""
    keras.utils.set_random_seed(0)
    x = keras.Input((4,), name="x")
    y = kl.Reshape(sizes)(kl.SpectralNormalization(kl.Dense(6))(x))
    norm = kl.BatchNormalization(axis=axis)
    y = norm(y)
    for weight in norm.weights:
        weight.assign(np.random.default_rng(0).uniform(1, 2, weight.shape))
    model = keras.Model(x, kl.Reshape(sizes[::-1])(y), name="net")
    precisions = ("float32", "int8")
    export_model(
        model, tmp_path / "net", formats=("tflite",), precisions=precisions, calibration="random"
    )
    report = check_parity(tmp_path / "net", ("litert",), per_op=True)
    assert report.passed, [result.reason for result in report.results]
    if sizes == (6, 1):
        states = [m.state for i in (0, 1) for m in contents_of(tmp_path / "net", i).weights]
        assert set(states) == {"equal"}
