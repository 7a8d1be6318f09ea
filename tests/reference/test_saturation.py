"""Protects that masks beyond a type's range pass, and that other numbers beyond it fail."""

from __future__ import annotations

import numpy as np
import pytest
from renormlite import check_parity, export_model

RNG = np.random.default_rng(0)
SERIES = RNG.normal(0, 1, (8, 6, 5)).astype("f4")
LENGTHS = (np.arange(6) < RNG.integers(2, 7, (8, 1))).astype("f4")


def attention(mask):
    """Attention with scores to which a mask adds a number that a softmax turns into zero."""
    import keras
    from keras import layers, ops

    keras.utils.set_random_seed(0)
    x, kept = keras.Input((6, 5), name="x"), keras.Input((6,), name="kept")
    query, key = layers.Dense(5)(x), layers.Dense(5)(x)
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 1)))
    future = np.triu(np.ones((6, 6), "f4"), 1)
    scores = scores + np.where(future > 0, np.float32(mask), np.float32(0))
    scores = scores - 1e9 * (1.0 - kept[:, None, :])
    mixed = ops.matmul(layers.Softmax()(scores), x)
    return keras.Model([x, kept], layers.GlobalAveragePooling1D()(mixed))


@pytest.mark.parametrize("mask", [-1e9, -np.inf])
def test_a_mask_beyond_the_range_is_no_fault(tmp_path, mask):
    folder = tmp_path / "net"
    inputs = {"x": SERIES, "kept": LENGTHS}
    export_model(attention(mask), folder, precisions=("float32", "float16"), inputs=inputs)
    report = check_parity(folder)
    assert len(report.results) == 4
    assert report.passed, [result.reason for result in report.results]


def test_a_product_beyond_the_range_is_one(tmp_path):
    import keras
    from keras import layers, ops

    keras.utils.set_random_seed(0)
    x = keras.Input((6, 5), name="x")
    y = layers.Dense(3, name="last")(ops.relu(layers.Dense(4)(x)) * 1e6) * 1e-6
    folder = tmp_path / "net"
    model = keras.Model(x, y)
    export_model(model, folder, formats=("tflite",), precisions=("float16",), inputs=SERIES)
    (result,) = check_parity(folder).results
    assert "beyond 65504" in result.reason
