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
