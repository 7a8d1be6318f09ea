"""Protects norms of raw features: in front of files of few bits where that measures better."""

from __future__ import annotations

import keras
import numpy as np
import onnx
import pytest
import renormlite as rl
from keras import layers as kl

STD = 10.0 ** np.arange(-2, 6)
FILES = {("tflite", "float16"), ("onnx", "float16"), ("onnx", "dynamic"), ("tflite", "int8"),
         ("onnx", "int8")}  # fmt: skip


def _raw_features() -> keras.Model:
    features = keras.Input((8,), name="features")
    norm = kl.BatchNormalization(name="norm")
    x = kl.Dense(32, activation="relu")(norm(features))
    model = keras.Model(features, kl.Dense(3, name="y")(kl.Dense(32, activation="relu")(x)))
    norm.moving_mean.assign(STD)
    norm.moving_variance.assign(STD**2)
    return model


def _samples() -> np.ndarray:
    noise = np.random.default_rng(0).normal(1, 1, (100, 8))
    return (STD * noise).astype(np.float32)


def test_the_norm_is_kept_if_that_measures_better(tmp_path):
    manifest = rl.export_model(
        _raw_features(),
        tmp_path / "net",
        precisions=("float32", "float16", "dynamic", "int8"),
        inputs=_samples(),
        equalize="never",
    )
    kept = [
        a for a in manifest.artifacts if any("norms of inputs kept" in note for note in a.notes)
    ]
    assert {(a.format, a.precision) for a in kept} == FILES
    for artifact in kept:
        assert artifact.network.file == "network.input-norms-kept.npz"
        assert artifact.snr_db["y"] > (55 if artifact.precision == "float16" else 25)
    report = rl.check_parity(tmp_path / "net", targets=("litert", "onnxruntime"))
    assert not [f.message for r in report.results for f in r.findings if not f.passed]


def test_the_statistics_of_the_norm_describe_the_inputs(tmp_path):
    """Without samples, those that the norm turns into normal numbers are measured."""
    (artifact,) = rl.export_model(
        _raw_features(), tmp_path / "net", formats=("onnx",), precisions=("dynamic",)
    ).artifacts
    assert any("norms of inputs kept" in note for note in artifact.notes)


@pytest.mark.parametrize(("choice", "count"), [("fold", 0), ("keep", 1)])
def test_the_user_can_choose(choice, count, tmp_path):
    manifest = rl.export_model(
        _raw_features(), tmp_path / "net", formats=("onnx",), input_norms=choice
    )
    assert [note.count("norms of inputs are kept") for note in manifest.notes] == [1] * count
    assert manifest.artifacts[0].ops.get("Mul", 0) == count


def test_a_norm_of_pixels_folds_into_integers_untried(tmp_path):
    image = keras.Input((8, 8, 3), name="image")
    x = kl.Conv2D(4, 3, activation="relu")(kl.Rescaling(1 / 127.5, -1)(image))
    model = keras.Model(image, kl.Dense(3)(kl.GlobalAveragePooling2D()(x)))
    samples = np.random.default_rng(0).uniform(0, 255, (20, 8, 8, 3)).astype(np.float32)
    samples = np.cumsum(samples, axis=1) / 8
    (artifact,) = rl.export_model(
        model, tmp_path / "net", formats=("tflite",), precisions=("int8",), inputs=samples
    ).artifacts
    assert not any("norms of inputs" in note for note in artifact.notes)


def test_every_call_of_a_norm_that_stays_computes_in_float32(tmp_path):
    inputs = [keras.Input((4,), name=name) for name in ("left", "right")]
    norm = kl.BatchNormalization(name="norm")
    x = kl.Concatenate()([norm(tensor) for tensor in inputs])
    model = keras.Model(inputs, kl.Dense(3, name="y")(x))
    norm.moving_mean.assign([0.0, 1.0, 1e3, 1e5])
    norm.moving_variance.assign([1e-6, 1.0, 1e4, 1e10])
    (artifact,) = rl.export_model(
        model, tmp_path / "net", formats=("onnx",), precisions=("float16",), input_norms="keep"
    ).artifacts
    file = onnx.load(tmp_path / "net" / artifact.file)
    numbers = {weight.name: weight.data_type for weight in file.graph.initializer}
    added = [numbers[node.input[1]] for node in file.graph.node if node.op_type == "Add"]
    assert added == [onnx.TensorProto.FLOAT] * 2


def test_the_norm_of_one_column_is_kept_beside_categories(tmp_path):
    # Folded, a Concatenate in integers holds ages up to 80 beside the ones of a category.
    generator = np.random.default_rng(0)
    age, city = keras.Input((1,), name="age"), keras.Input((1,), dtype="int32", name="city")
    scaled = keras.layers.Normalization(mean=40.0, variance=400.0)(age)
    encoded = keras.layers.CategoryEncoding(4, output_mode="one_hot")(city)
    keras.utils.set_random_seed(0)
    joined = keras.layers.Concatenate()([scaled, encoded])
    model = keras.Model([age, city], keras.layers.Dense(2)(joined))
    data = {
        "age": generator.integers(18, 80, (64, 1)).astype(np.float32),
        "city": generator.integers(0, 4, (64, 1)).astype(np.int32),
    }
    manifest = rl.export_model(model, tmp_path, precisions=("int8",), calibration=data, inputs=data)
    for artifact in manifest.artifacts:
        assert min(artifact.snr_db.values()) > 35, artifact.file
