"""Protects against silence on files that do not compute the trained model."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers
from renormlite.export.formats import tflite
from renormlite.export.wrong_files import notes_on_outputs

TRUTH = np.linspace(-1, 1, 40).reshape(4, 10)


def test_no_float32_file_of_a_faulty_converter_is_left(tmp_path: Path, monkeypatch) -> None:
    # Without this rewrite, TFLite's converter makes a bias of one element for three channels.
    monkeypatch.setattr(tflite, "with_vector_sums", lambda graph_def: graph_def)
    image = keras.Input((4, 4, 3))
    up = layers.Conv2DTranspose(3, 3, use_bias=False, name="up")(image) + 0.7
    message = r"66\.7 % of output 'add[_0-9]*' differ .* nan instead .* layer 'add[_0-9]*' wrongly"
    with pytest.raises(rl.UserError, match=message):
        rl.export_model(keras.Model(image, up), tmp_path / "net", formats=("tflite",))
    assert list((tmp_path / "net").iterdir()) == []


def test_notes_say_what_is_far(tmp_path: Path) -> None:
    def notes(precision: str, given: np.ndarray, ratio: float = 100.0) -> tuple[str, ...]:
        single = TRUTH.astype(np.float32)
        described = dataclasses.replace(artifact, precision=precision, snr_db={"y": ratio})
        return notes_on_outputs(described, {"y": given}, {"y": TRUTH}, {"y": single})

    x = keras.Input((10,), name="x")
    model = keras.Model(x, layers.Dense(10, name="y")(x))
    (artifact,) = rl.export_model(model, tmp_path, formats=("tflite",)).artifacts
    one = TRUTH.copy()
    one[1, 2] += 0.5
    assert notes("float32", TRUTH + 1e-4) == ()
    assert "1 of 40 elements of output 'y' differ" in notes("float32", one)[0]
    with pytest.raises(rl.UserError, match="100 % of output 'y' differ"):
        notes("float32", TRUTH + 0.5)
    with pytest.raises(rl.UserError, match="100 % of output 'y' differ"):
        notes("float32", np.full_like(TRUTH, np.nan))
    assert notes("int8", TRUTH + 0.5, 30.0) == ()
    assert "-5.0 dB from the trained model" in notes("int8", TRUTH + 0.5, -5.0)[0]
    assert "NaN or infinite" in notes("float16", TRUTH * np.inf, 30.0)[0]


def test_outputs_of_integers_have_no_ratio_but_a_share(tmp_path: Path) -> None:
    x = keras.Input((8,), name="x")
    scores = layers.Dense(6, name="scores")
    model = keras.Model(x, keras.ops.argmax(scores(x), axis=-1))
    samples = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32) ** 3
    manifest = rl.export_model(
        model, tmp_path / "net", precisions=("int8",), calibration="random", inputs=samples
    )
    golden = np.load(tmp_path / "net" / "golden.npz")
    real = golden["kind"] == "real"
    label = manifest.outputs[0].name
    wanted = np.asarray(model(golden["input:x"]))[real]
    for artifact in manifest.artifacts:
        assert artifact.snr_db == {label: None}
        text = " ".join(artifact.notes)
        assert not re.search(r"dB (on the real samples|from)", text)
        share = float((golden[f"artifact:{artifact.file}:{label}"][real] == wanted).mean())
        assert 0 < share < 1
        assert f"{100 * share:.3g} % of output {label!r} equal the trained model's" in text
