"""Protects what an export says: what it left undone, and numbers that a file cannot hold."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers as kl
from renormlite.artifacts import flatbuffer

RAMP = np.linspace(-1, 1, 24 * 4).reshape(24, 4).astype(np.float32)


def _dense(*layers: keras.layers.Layer) -> keras.Model:
    return keras.Sequential([keras.Input((4,), name="x"), *layers])


def test_notes_name_a_residual_norm_and_training_true(export):
    x = keras.Input((4,), name="x")
    y = kl.Dense(3)(kl.Dropout(0.5, name="drop")(kl.Dense(4)(x), training=True))
    y = kl.BatchNormalization(name="norm")(kl.Softmax()(y))
    manifest, _ = export(keras.Model(x, kl.Softmax()(y)), formats=("tflite",))
    dropout, norm = (
        next(note for note in manifest.notes if f"'{name}'" in note) for name in ("drop", "norm")
    )
    assert "training=True" in dropout
    assert "leaves" in norm


def test_augmentation_leaves_no_note(export):
    image = keras.Input((8, 8, 3), name="image")
    augment = keras.Sequential([kl.RandomFlip(), kl.RandomRotation(0.1)])
    x = kl.Pipeline([kl.RandomFlip(), kl.RandomZoom(0.1)])(kl.RandomContrast(0.1)(augment(image)))
    x = kl.GaussianNoise(0.1)(kl.Dropout(0.1)(x))
    model = keras.Model(image, kl.Conv2D(2, 3)(x))
    manifest, _ = export(model, formats=("tflite",))
    assert not manifest.notes
    assert manifest.artifacts[0].ops == {"CONV_2D": 1}


def test_a_note_names_a_dynamic_file_without_quantized_weights(export):
    manifest, _ = export(_dense(kl.Dense(3)), formats=("tflite",), precisions=("dynamic",))
    assert "nothing is quantized" in manifest.artifacts[0].notes[0]
    manifest, _ = export(
        _dense(kl.Dense(400), kl.Dense(3)), formats=("tflite",), precisions=("dynamic",)
    )
    assert not manifest.artifacts[0].notes


def test_a_note_names_an_equalization_without_effect(export):
    manifest, _ = export(
        _dense(kl.Dense(3)), formats=("tflite",), precisions=("int8",), inputs=RAMP,
        equalize="always",
    )  # fmt: skip
    assert any("nothing was equalized" in note for note in manifest.artifacts[0].notes)


@pytest.mark.parametrize(
    ("value", "precisions", "message"),
    [
        (np.nan, ("float32",), r"1 of 12 numbers of 'weighted/kernel'"),
        (np.inf, ("float32",), r"'weighted/kernel' are NaN or infinite"),
        (1e38, ("float32", "int8"), r"int8.*1\.0e\+38 in 'weighted/kernel'"),
        (1e5, ("float16",), r"float16.*1\.0e\+05 in 'weighted/kernel'"),
    ],
)
def test_weights_that_a_file_cannot_hold_are_refused(value, precisions, message, export):
    dense = kl.Dense(3, name="weighted")
    model = _dense(dense)
    kernel = np.ones((4, 3), np.float32)
    kernel[1, 2] = value
    dense.kernel.assign(kernel)
    with pytest.raises(rl.UserError, match=message):
        export(model, precisions=precisions, inputs=RAMP)


def test_a_note_names_activations_beyond_half_precision(export):
    first, second = kl.Dense(4, name="large"), kl.Dense(3)
    model = _dense(first, second)
    first.kernel.assign(np.full((4, 4), 3e4))
    second.kernel.assign(np.full((4, 3), 1e-6))
    manifest, _ = export(model, formats=("tflite",), precisions=("float16",), inputs=RAMP)
    assert any("large (1.2e+05)" in note for note in manifest.artifacts[0].notes)


def test_int16x8_names_the_operators_that_it_computes_in_float(export):
    model = keras.Sequential(
        [keras.Input((3, 4), name="x"), kl.Masking(name="hide"), kl.LSTM(2), kl.Dense(2)]
    )
    samples = np.random.default_rng(0).normal(size=(24, 3, 4)).astype(np.float32)
    manifest, _ = export(model, formats=("tflite",), precisions=("int16x8",), inputs=samples)
    (artifact,) = manifest.artifacts
    assert any("computed in float" in note and "SELECT_V2" in note for note in artifact.notes)
    assert min(artifact.snr_db.values()) > 40


def test_buffers_after_the_flatbuffer_are_kept(export):
    _, folder = export(_dense(kl.Dense(64)), formats=("tflite",))
    model = flatbuffer.parse((folder / "net.float32.tflite").read_bytes())
    sizes = [0 if buffer.data is None else len(buffer.data) for buffer in model.buffers]
    largest = model.buffers[int(np.argmax(sizes))]
    content = bytes(bytearray(largest.data))
    largest.data = None
    largest.size = len(content)
    largest.offset = 1 << 20
    data = flatbuffer.pack(model).ljust(1 << 20, b"\0") + content
    kept = flatbuffer.parse(flatbuffer.pack(flatbuffer.parse(data))).buffers
    assert any(b.data is not None and bytes(bytearray(b.data)) == content for b in kept)
    with pytest.raises(rl.UserError, match="whole TFLite file"):
        flatbuffer.parse(data[:-1])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_norm_that_stays_of_a_chain_has_the_reasons_of_its_neighbours(count):
    x = keras.Input((4,), name="x")
    y = kl.Softmax(name="before")(x)
    for number in range(count):
        y = kl.BatchNormalization(name=f"norm{number}")(y)
    model = keras.Model(x, kl.Softmax(name="behind")(y))
    for weight in model.weights:
        weight.assign(np.linspace(0.5, 2, 4))
    kept = [record for record in rl.fold(model).report.records if record.outcome == "kept"]
    assert [record.reason for record in kept] == [
        "not into what comes before: 'before' (Softmax) is not linear; "
        "not into what follows: 'behind' (Softmax) is not linear"
    ]


def test_a_norm_that_could_only_be_replaced_by_a_copy_has_a_reason():
    x = keras.Input((4,), name="x")
    dense = kl.Dense(4, name="dense")(x)
    norm = kl.BatchNormalization(name="norm", scale=False, epsilon=0)(dense)
    model = keras.Model(x, [kl.Softmax()(norm), kl.Softmax()(dense)])
    model.get_layer("norm").moving_mean.assign(np.linspace(0.5, 2, 4))
    (record,) = rl.fold(model, copy_budget=10**6).report.records
    assert record.outcome == "kept"
    assert "not into what comes before: that would leave no fewer operations" in record.reason
