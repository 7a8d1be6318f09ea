"""Protects operators that TensorFlow's quantizer alone gives wrong steps, ranges or kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import pytest
import renormlite as rl
from ai_edge_litert.interpreter import Interpreter
from keras import layers as kl
from keras import ops

Function = Callable[[keras.KerasTensor], object]


def of_floats(function: Function) -> keras.Model:
    x = keras.Input((6,), name="x")
    return keras.Model(x, function(kl.Dense(5, name="h")(x)))


def of_integers(function: Function, size: int = 4) -> keras.Model:
    x = keras.Input((size,), dtype="int32", name="x")
    return keras.Model(x, function(x))


def of_masked(function: Function) -> keras.Model:
    x = keras.Input((4, 6), name="x")
    return keras.Model(x, function(kl.Masking()(x)))


def encoded(mode: str) -> Function:
    return lambda x: kl.Dense(3)(kl.CategoryEncoding(6, output_mode=mode)(x))


def of_images(function: Function) -> keras.Model:
    x = keras.Input((6, 6, 2), name="x")
    return keras.Model(x, kl.Dense(3)(function(x)))


def patches(size: int, strides: int) -> Function:
    return lambda x: ops.image.extract_patches(x, size=size, strides=strides)


def of_neighbours(x: keras.KerasTensor) -> object:
    weights = np.random.default_rng(2).uniform(size=(4, 4)).astype(np.float32)
    return kl.Dense(5, activation="relu")(ops.einsum("nm,bmf->bnf", weights, x))


# Name to the model and the least ratio of signal to noise, in decibels: eight bits give 38 to 48 of
# such networks, and the faults that these models once had gave -5 to 20.
EIGHT_BITS = {
    "maximum of a vector that is read too": (of_floats, lambda h: [h, ops.max(h, -1)], 35),
    "maximum with a constant": (of_floats, lambda h: [h, ops.maximum(h, 0.3)], 35),
    "logsumexp": (of_floats, lambda h: ops.logsumexp(h, -1), 35),
    "selu": (of_floats, ops.selu, 35),
    "softplus": (of_floats, ops.softplus, 35),
    "mish": (of_floats, lambda h: ops.multiply(h, ops.tanh(ops.softplus(h))), 30),
    "log-softmax of large numbers": (of_floats, lambda h: ops.log_softmax(50 * h), 35),
    "counted categories": (of_integers, encoded("count"), 35),
    "categories": (of_integers, encoded("multi_hot"), 35),
    "one category": (lambda f: of_integers(f, 1), encoded("one_hot"), 35),
    "one-hot maximum": (
        of_floats,
        lambda h: kl.Dense(2)(3 * ops.one_hot(ops.argmax(h, -1), 5)),
        35,
    ),
    "comparison of large numbers": (
        of_floats,
        lambda h: ops.cast(ops.greater(400 * h, 100.0), "float32"),
        35,
    ),
    "comparison with a large number": (
        of_floats,
        lambda h: ops.cast(ops.less(h, 1000.0), "float32"),
        35,
    ),
    "equal whole numbers": (
        of_floats,
        lambda h: ops.cast(ops.equal(ops.round(h), 1), "float32"),
        35,
    ),
    "finite numbers": (of_floats, lambda h: ops.cast(ops.isfinite(h), "float32"), 35),
    "sums over the neighbours in a graph": (of_masked, of_neighbours, 30),
    "dead units": (of_floats, lambda h: [h, kl.Dense(3)(ops.relu(h - 1000.0)) + h[:, :3]], 35),
    "patches": (of_images, patches(3, 3), 35),
    "overlapping patches": (of_images, patches(3, 1), 35),
    "masked mean": (of_masked, lambda x: kl.GlobalAveragePooling1D()(x), 25),
}
SIXTEEN_BITS = {
    "sum": (of_floats, lambda h: ops.sum(h, -1), 40),
    "logsumexp": (of_floats, lambda h: ops.logsumexp(h, -1), 40),
    "softplus": (of_floats, ops.softplus, 45),
    "gelu": (of_floats, lambda h: ops.gelu(h, approximate=False), 45),
    "selu": (of_floats, ops.selu, 45),
    "rows of a table": (of_integers, lambda x: kl.Dense(3)(kl.Embedding(6, 4)(x)), 40),
    "categories": (of_integers, encoded("multi_hot"), 40),
    "PReLU": (of_floats, kl.PReLU(keras.initializers.RandomUniform(0.1, 0.4, seed=1)), 40),
    "untrained PReLU": (of_floats, kl.PReLU(), 40),
    "patches": (of_images, patches(3, 3), 45),
    "overlapping patches": (of_images, patches(3, 1), 40),
}


def samples(model: keras.Model) -> np.ndarray:
    generator = np.random.default_rng(0)
    (tensor,) = model.inputs
    if tensor.dtype == "int32":
        return generator.integers(0, 6, (60, *tensor.shape[1:])).astype(np.int32)
    values = generator.normal(size=(60, *tensor.shape[1:])).astype(np.float32)
    if values.ndim == 4:  # images are smooth
        return np.cumsum(np.cumsum(values, 1), 2) / 3
    if values.ndim == 3:  # sequences with padding, one of them all padding
        values[::2, -2:] = 0
        values[0] = 0
    return values


def ratios(model: keras.Model, precision: str, folder: Path) -> list[float]:
    """Return the signal-to-noise ratio of each output that the file's own kernels compute."""
    data = samples(model)
    manifest = rl.export_model(
        model, folder, formats=("tflite",), precisions=(precision,), calibration=data, inputs=data
    )
    report = rl.check_parity(folder, targets=("litert",), per_op=True)
    assert report.passed, report
    golden = np.load(folder / "golden.npz")
    real = golden["kind"] == "real"
    (inputs,) = (golden[name][real] for name in golden if name.startswith("input:"))
    found = []
    for name, truth in zip(model.output_names, keras.tree.flatten(model(inputs)), strict=True):
        got = golden[f"artifact:{manifest.artifacts[0].file}:{name}"][real]
        truth = np.asarray(truth, np.float64)
        known = np.isfinite(truth)
        error = np.square(got - truth)[known].sum()
        found.append(10 * np.log10(np.square(truth)[known].sum() / max(error, 1e-30)))
    return found


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_int8(name: str, tmp_path: Path) -> None:
    build, function, least = EIGHT_BITS[name]
    keras.utils.set_random_seed(1)
    assert min(ratios(build(function), "int8", tmp_path / "file")) > least


@pytest.mark.parametrize("name", SIXTEEN_BITS)
def test_int16x8(name: str, tmp_path: Path) -> None:
    build, function, least = SIXTEEN_BITS[name]
    keras.utils.set_random_seed(1)
    assert min(ratios(build(function), "int16x8", tmp_path / "file")) > least


def test_values_that_are_overwritten_in_place_have_their_own_ranges(tmp_path: Path) -> None:
    # TensorFlow's calibrator gave a relu the range of the sum that is computed in its place.
    model = of_floats(lambda h: ops.relu(h) + 3 * kl.Dense(5)(h))
    rl.export_model(
        model, tmp_path, formats=("tflite",), precisions=("int8",), calibration=samples(model)
    )
    (file,) = tmp_path.glob("*.tflite")
    details = Interpreter(str(file)).get_tensor_details()
    (relu,) = (tensor for tensor in details if "relu" in tensor["name"])
    hidden = keras.Model(model.inputs, model.get_layer("h").output)
    greatest = float(np.max(hidden.predict(samples(model), verbose=0)))
    assert relu["quantization"][1] == -128
    assert relu["quantization"][0] == pytest.approx(greatest / 255, rel=1e-4)


def test_softplus_does_not_overflow_in_float32(tmp_path: Path) -> None:
    x = keras.Input((3,), name="x")
    data = np.array([[-200.0, 0.5, 200.0], [89.0, -89.0, -5.0]], np.float32)
    model = keras.Model(x, [ops.softplus(x), ops.log_sigmoid(x)])
    manifest = rl.export_model(
        model, tmp_path, formats=("tflite",), precisions=("float32",), inputs=data
    )
    assert min(manifest.artifacts[0].snr_db.values()) > 130


def test_rows_of_a_table_that_no_sample_reads_are_kept(tmp_path: Path) -> None:
    table = np.array([[0.1, -0.1]] * 8 + [[5.0, -3.0]], np.float32)
    model = of_integers(lambda x: kl.Embedding(9, 2, weights=[table])(x))
    data = np.zeros((20, 4), np.int32)
    rl.export_model(model, tmp_path, formats=("tflite",), precisions=("int8",), calibration=data)
    (file,) = tmp_path.glob("*.tflite")
    interpreter = Interpreter(str(file))
    interpreter.allocate_tensors()
    interpreter.set_tensor(
        interpreter.get_input_details()[0]["index"], np.full((1, 4), 8, np.int32)
    )
    interpreter.invoke()
    got = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(got[0], [[5, -3]] * 4, atol=8 / 255)


@pytest.mark.parametrize("function", [ops.elu, lambda h: h / (ops.abs(h) + 1), ops.square])
def test_int16x8_computes_in_float_what_has_no_16_bit_form(function, tmp_path) -> None:
    model = of_floats(function)
    manifest = rl.export_model(
        model, tmp_path, formats=("tflite",), precisions=("int16x8",), calibration=samples(model)
    )
    (artifact,) = manifest.artifacts
    assert min(artifact.snr_db.values()) > 40


def test_equal_biases_of_int16x8_get_the_steps_of_their_own_layers(tmp_path) -> None:
    # TensorFlow's converter shares equal constants, and quantized them once.
    bias = np.array([0.3, 0.9], np.float32)
    keras.utils.set_random_seed(0)
    x = keras.Input((6,))
    h = kl.Dense(2, kernel_initializer=keras.initializers.RandomNormal(0, 9))(x)
    model = keras.Model(x, kl.Dense(2)(h))
    for layer in model.layers[1:]:
        layer.bias.assign(bias)
    data = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    manifest = rl.export_model(
        model, tmp_path, formats=("tflite",), precisions=("int16x8",), calibration=data
    )
    assert min(manifest.artifacts[0].snr_db.values()) > 45


def searched(x: keras.KerasTensor, side: str, edges: Sequence[float] = ()) -> keras.KerasTensor:
    # TensorFlow's searchsorted takes one row.
    places = ops.searchsorted(ops.convert_to_tensor(edges or EDGES), ops.reshape(x, (-1,)), side)
    return ops.reshape(places, (-1, 1))


EDGES = [18.0, 25.0, 40.0, 65.0]
AGES = np.arange(10.0, 90.0, dtype=np.float32)[:, None]


def bins(read: Function) -> keras.Model:
    age = keras.Input((1,), name="age")
    return keras.Model(age, ops.cast(read(age), "float32"))


@pytest.mark.parametrize(
    "read",
    [
        lambda x: kl.Discretization(EDGES)(x),
        lambda x: ops.digitize(x, np.array(EDGES, np.float32)),
        lambda x: searched(x, side="right"),
        lambda x: len(EDGES) - searched(-x, side="left", edges=[-e for e in EDGES[::-1]]),
        lambda x: ops.sum(ops.cast(x >= np.array(EDGES, np.float32), "int32"), -1, keepdims=True),
    ],
)
def test_numbers_on_the_edge_of_a_bin_stay_in_it(read: Function, tmp_path: Path) -> None:
    manifest = rl.export_model(
        bins(read), tmp_path, precisions=("int8",), calibration=AGES, inputs=AGES
    )
    golden = np.load(tmp_path / "golden.npz")
    real = golden["kind"] == "real"
    (ages,) = (golden[name][real] for name in golden if name.startswith("input:"))
    for artifact in manifest.artifacts:
        (output,) = artifact.outputs
        got = golden[f"artifact:{artifact.file}:{output.keras_name}"][real]
        wanted = sum((ages >= edge).astype(int) for edge in EDGES)
        np.testing.assert_allclose(got, wanted, atol=4 / 255)


def test_integer_inputs_that_are_compared_are_named(tmp_path: Path) -> None:
    manifest = rl.export_model(
        bins(lambda x: kl.Discretization(EDGES)(x)),
        tmp_path,
        formats=("tflite",),
        precisions=("int8",),
        calibration=AGES,
        quantized_io="integer",
    )
    assert any(
        "'age' is rounded or compared" in note and "steps of 0.349" in note
        for note in manifest.artifacts[0].notes
    )


def test_narrow_columns_of_a_wide_input_have_their_own_steps(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    ids, numbers = generator.integers(0, 1000, (64, 2)), generator.normal(size=(64, 3))
    data = np.concatenate([ids, numbers], 1).astype(np.float32)
    x = keras.Input((5,), name="x")
    rows = kl.Flatten()(kl.Embedding(1000, 4, embeddings_initializer="normal")(x[:, :2]))
    model = keras.Model(x, kl.Dense(3)(kl.Concatenate()([rows, x[:, 2:]])))
    manifest = rl.export_model(model, tmp_path, precisions=("int8",), calibration=data)
    for artifact in manifest.artifacts:
        assert min(artifact.snr_db.values()) > 30, artifact.file


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("beside", ["columns", "all"])
def test_ids_beside_numbers_are_read_unrounded(first: bool, beside: str, tmp_path: Path) -> None:
    # In steps of 30/255, or clipped to the range of the numbers, most ids would become others.
    generator = np.random.default_rng(0)
    ids, numbers = generator.integers(0, 31, (64, 2)), generator.normal(size=(64, 3))
    data = np.concatenate([ids, numbers], 1).astype(np.float32)
    x = keras.Input((5,), name="x")
    table = kl.Embedding(31, 4, embeddings_initializer=keras.initializers.RandomNormal(0, 1, 0))

    def rows() -> keras.KerasTensor:
        return kl.Flatten()(table(ops.flip(x[:, :2], axis=1)))

    found = rows() if first else None
    rest = x[:, 2:] if beside == "columns" else kl.Dense(3, name="dense")(x) * 0.01
    found = rows() if found is None else found
    model = keras.Model(x, kl.Concatenate()([found, rest]))
    manifest = rl.export_model(
        model, tmp_path, formats=("tflite",), precisions=("int8",), calibration=data, inputs=data
    )
    golden = np.load(tmp_path / "golden.npz")
    real = golden["kind"] == "real"
    (artifact,), (output,) = manifest.artifacts, manifest.outputs
    got = golden[f"artifact:{artifact.file}:{output.name}"][real][:, :8]
    chosen = golden["input:x"][real][:, 1::-1].astype(int)
    wanted = np.asarray(table.embeddings)[chosen].reshape(len(chosen), 8)
    np.testing.assert_allclose(got, wanted, atol=8 / 255)
    assert rl.check_parity(tmp_path, targets=["litert", "litert+reference"]).passed


def test_a_value_that_replaces_another_without_its_gradient_keeps_its_steps(tmp_path: Path) -> None:
    # A vector-quantized code: x + stop_gradient(q - x), with q far smaller than x. In steps of x,
    # nothing of q would be left.
    x = keras.Input((6,), name="x")
    h = 50 * kl.Dense(5, name="h")(x)
    q = ops.sigmoid(h) * 0.05
    keras.utils.set_random_seed(0)
    model = keras.Model(x, kl.Dense(2)(h + ops.stop_gradient(q - h)))
    manifest = rl.export_model(model, tmp_path, precisions=("int8",), calibration=samples(model))
    for artifact in manifest.artifacts:
        assert min(artifact.snr_db.values()) > 27, artifact.file


@pytest.mark.parametrize("options", [{"precisions": ("int16x8",)}, {"keep_int16": ("norm*",)}])
def test_a_sum_far_below_its_operands(options, tmp_path):
    """TFLite's 16-bit kernels abort if a sum has less than 2^-14 of the range of an operand.

    A normalization over one feature gives only its shift; its variance of zero gets a range up to
    1, and 1e-6 is added to it.
    """
    x = keras.Input((8, 1), name="x")
    norm = keras.layers.LayerNormalization(epsilon=1e-6, name="norm")
    model = keras.Model(x, norm(x))
    norm.beta.assign([0.3])
    samples = np.cumsum(np.random.default_rng(0).normal(0, 1, (16, 8, 1)), 1).astype(np.float32)
    options = {"precisions": ("int8",), **options}
    rl.export_model(model, tmp_path / "net", formats=("tflite",), calibration=samples, **options)
    [file] = (tmp_path / "net").glob("*.tflite")
    interpreter = Interpreter(str(file))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], samples[:1])
    interpreter.invoke()
    got = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    # The operands of the last sum are up to 1,000 times the samples, in steps of 2^-15 of that.
    np.testing.assert_allclose(got, 0.3, atol=2 * 1000 * np.abs(samples).max() / 2**15)
