"""Masked scores are close to the others in files of integers, and get no weight."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers as kl
from keras import ops

KEPT = np.tril(np.ones((6, 6), bool))


def attention(masked):
    x = keras.Input((6, 4), name="x")
    scores = masked(ops.matmul(x, ops.transpose(x, (0, 2, 1))))
    return keras.Model(x, kl.Dense(3)(ops.matmul(ops.softmax(scores), x)))


def causal():
    x = keras.Input((6, 4), name="x")
    return keras.Model(x, kl.Dense(3)(kl.MultiHeadAttention(2, 2)(x, x, use_causal_mask=True)))


@pytest.mark.parametrize(
    "build",
    [
        causal,
        lambda: attention(lambda s: ops.where(KEPT, s, -1e9)),
        lambda: attention(lambda s: ops.where(~KEPT, s - 1e9, s)),
        lambda: attention(lambda s: s + np.where(KEPT, 0, -np.inf).astype("float32")),
    ],
    ids=["MultiHeadAttention", "selected", "lowered", "added"],
)
def test_int8_files_keep_the_scores_beside_a_mask(build, tmp_path):
    keras.utils.set_random_seed(0)
    data = np.random.default_rng(0).normal(size=(32, 6, 4)).astype(np.float32)
    manifest = rl.export_model(build(), tmp_path, precisions=("int8",), calibration=data)
    assert all(min(artifact.snr_db.values()) > 25 for artifact in manifest.artifacts)
    report = rl.check_parity(tmp_path, targets=["litert"])
    assert report.passed


IDS = np.where(
    np.random.default_rng(1).random((64, 6)) < 0.2,
    0,
    np.random.default_rng(2).integers(1, 9, (64, 6)),
).astype(np.int32)
IDS[:, 0] = 3  # every sequence has a word


def words(masked):
    ids = keras.Input((6,), dtype="int32", name="ids")
    h = kl.Dense(8)(kl.Embedding(9, 8, embeddings_initializer="normal")(ids))
    kept = ops.cast(ops.not_equal(ids, 0), "float32")[:, :, None]
    return keras.Model(ids, kl.Dense(3)(masked(h, kept)))


def attended(h, kept):
    scores = ops.matmul(h, ops.transpose(h, (0, 2, 1)))
    scores += (1.0 - ops.transpose(kept, (0, 2, 1))) * -1e9
    return ops.mean(ops.matmul(ops.softmax(scores), h), axis=1)


@pytest.mark.parametrize(
    "masked",
    [
        lambda h, kept: kl.GlobalMaxPooling1D()(h + (1 - kept) * -1e9),
        lambda h, kept: ops.max(-1e9 * (1 - kept) + h, axis=1),
        lambda h, kept: ops.max(h + ops.where(kept > 0.5, 0.0, -1e9), axis=1),
        lambda h, kept: ops.sum(h * kept, axis=1) / (ops.sum(kept, axis=1) + 1e-9),
        lambda h, kept: ops.sum(h * kept, axis=1) / ops.maximum(ops.sum(kept, axis=1), 1e-9),
        attended,
    ],
    ids=["maximum", "reversed", "selected", "mean", "mean of some", "softmax"],
)
def test_int8_files_keep_the_values_beside_a_computed_mask(masked, tmp_path):
    keras.utils.set_random_seed(0)
    model = words(masked)
    rl.export_model(model, tmp_path, precisions=("int8",), calibration=IDS, inputs=IDS)
    golden = np.load(tmp_path / "golden.npz")
    real = golden["kind"] == "real"
    truth = model.predict(golden["input:ids"][real], verbose=0)
    files = [name for name in golden if name.startswith("artifact:")]
    assert len(files) == 2
    for name in files:
        error = np.square(golden[name][real] - truth).sum()
        assert 10 * np.log10(np.square(truth).sum() / error) > 25, name
    report = rl.check_parity(tmp_path, targets=["litert", "onnxruntime"])
    assert all(result.passed for result in report.results), [r.reason for r in report.results]


def test_a_constant_minus_a_transposed_vector_is_converted(tmp_path):
    # TFLite's converter moves the transposition, which is a reshape, and computes x - 1.
    x = keras.Input((6, 1), name="x")
    model = keras.Model(x, 1.0 - ops.transpose(x, (0, 2, 1)))
    data = np.random.default_rng(0).normal(size=(32, 6, 1)).astype(np.float32)
    precisions = ("float32", "dynamic", "int8", "int16x8")
    manifest = rl.export_model(model, tmp_path, precisions=precisions, inputs=data)
    assert len(manifest.artifacts) == 7
    for artifact in manifest.artifacts:
        assert min(artifact.snr_db.values()) > 35, artifact.file


def test_a_number_that_is_added_elsewhere_is_kept(tmp_path):
    x = keras.Input((4,), name="x")
    flag = ops.cast(x > 0, "float32")
    model = keras.Model(x, ops.mean(x + flag * -2e4, axis=-1))
    data = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    manifest = rl.export_model(model, tmp_path, precisions=("int8",), calibration=data)
    assert all(min(artifact.snr_db.values()) > 30 for artifact in manifest.artifacts)
