"""Protects text as samples: the layers that a file lacks compute its inputs at export."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers as kl

TEXTS = np.array([["a good film"], ["a bad film"], ["good"], ["unknown words here and there"]] * 6)
CITIES = np.array([["Rome"], ["Oslo"], ["Bern"], ["Rome"]] * 6)


def reviews() -> keras.Model:
    text = keras.Input((1,), dtype="string", name="text")
    vocabulary = ["a", "good", "bad", "film"]
    words = kl.TextVectorization(vocabulary=vocabulary, output_sequence_length=4, name="words")
    x = kl.Embedding(6, 3, embeddings_initializer="normal")(words(text))
    return keras.Model(text, kl.Dense(2, name="y")(kl.GlobalAveragePooling1D()(x)))


def table() -> keras.Model:
    age, city = keras.Input((1,), name="age"), keras.Input((1,), dtype="string", name="city")
    ids = kl.StringLookup(vocabulary=["Rome", "Oslo"], output_mode="one_hot", name="id")(city)
    return keras.Model({"age": age, "city": city}, kl.Dense(2)(kl.Concatenate()([age, ids])))


@pytest.mark.parametrize("form", ["npz", "npy", "bytes", "rows", "list", "arrays"])
def test_text_is_processed_by_the_removed_layers(form, tmp_path):
    samples = {"bytes": TEXTS.astype("S"), "rows": TEXTS[:, 0]}.get(form, TEXTS)
    if form in ("arrays", "list"):
        source = {"text": samples} if form == "arrays" else TEXTS[:, 0].tolist()
    elif form == "npy":
        source = tmp_path / "samples.npy"
        np.save(source, samples)
    else:
        source = tmp_path / "samples.npz"
        np.savez(source, text=samples)
    manifest = rl.export_model(reviews(), tmp_path / "net", precisions=("int8",), inputs=source)
    golden = np.load(tmp_path / "net" / "golden.npz")
    real = golden["input:words"][golden["kind"] == "real"]
    rows = {tuple(row) for row in real}
    # 0 is padding, 1 an unknown word; the vocabulary begins at 2.
    assert rows == {(2, 3, 5, 0), (2, 4, 5, 0), (3, 0, 0, 0), (1, 1, 1, 1)}
    name = "arrays" if form in ("arrays", "list") else "samples.npz"
    assert manifest.calibration["source"] == name
    assert rl.check_parity(tmp_path / "net").passed


def test_text_beside_numbers(tmp_path):
    ages = np.linspace(20, 60, 24, dtype=np.float32)[:, None]
    np.savez(tmp_path / "s.npz", age=ages, city=CITIES)
    rl.export_model(table(), tmp_path / "net", inputs=tmp_path / "s.npz")
    golden = np.load(tmp_path / "net" / "golden.npz")
    real = golden["kind"] == "real"
    assert {tuple(row) for row in golden["input:id"][real]} == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}
    assert set(golden["input:age"][real].ravel()) <= set(ages.ravel())
    with pytest.raises(
        rl.UserError, match=r"age, id\. .* the app must compute the output of the layer"
    ):
        rl.check_parity(tmp_path / "net", inputs=tmp_path / "s.npz")


@pytest.mark.parametrize("source", [TEXTS, {"text": TEXTS}, {"words": TEXTS}, TEXTS[:, 0].tolist()])
def test_a_check_with_text_says_what_to_pass(source, tmp_path):
    rl.export_model(reviews(), tmp_path)
    with pytest.raises(
        rl.UserError,
        match=r"input 'words', int64 of shape \(N, 4\)\. Check with these outputs, or give ",
    ):
        rl.check_parity(tmp_path, inputs=source)
    ids = np.array([[2, 3, 5, 0], [1, 1, 0, 0]])
    assert rl.check_parity(tmp_path, inputs={"words": ids}).passed
