"""Protects that denormal weights are no fault of a converter or of a file."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers

SAMPLES = np.random.default_rng(0).normal(0, 1, (16, 6)).astype("f4")


def model(after: float) -> keras.Model:
    """Return two layers: the first with denormal weights, the second multiplied by a factor."""
    keras.utils.set_random_seed(0)
    x = keras.Input((6,), name="x")
    tiny = layers.Dense(8, name="tiny", use_bias=False, activation="relu")
    scores = layers.Dense(3, name="scores")
    found = keras.Model(x, scores(tiny(x)))
    tiny.kernel.assign(np.array(tiny.kernel) * 1e-39)
    scores.kernel.assign(np.array(scores.kernel) * after)
    return found


def test_they_may_be_zero_in_a_file(tmp_path):
    rl.export_model(
        model(1.0), tmp_path / "net", precisions=("float32", "int8"), calibration=SAMPLES
    )
    report = rl.check_parity(tmp_path / "net")
    assert [result.reason for result in report.results if not result.passed] == []


def test_the_layer_is_named_where_they_matter(tmp_path):
    """TensorFlow on a processor replaces them by zero, ONNX Runtime does not."""
    with pytest.raises(rl.UserError, match=r"Weights of layer '.*tiny' are denormal numbers"):
        rl.export_model(model(1e38), tmp_path / "net", formats=("onnx",), inputs={"x": SAMPLES})
