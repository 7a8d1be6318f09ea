"""Protects healthy files whose converter merged a function with the layer before it."""

from pathlib import Path

import keras
import numpy as np
import renormlite as rl
from keras import layers


def test_merged_functions_are_no_faults(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 4), name="x")
    y = layers.Conv1D(6, 3, activation="hard_sigmoid", bias_initializer="normal")(x)
    # Behind a relu, a PReLU is written out with the negative slope.
    y = layers.PReLU(shared_axes=[1], alpha_initializer="normal")(layers.ReLU()(y))
    model = keras.Model(x, layers.Dense(3, name="y")(y))
    samples = np.random.default_rng(0).normal(0, 2, (32, 8, 4)).astype(np.float32)
    rl.export_model(
        model,
        tmp_path / "net",
        formats=("tflite",),
        precisions=("float32", "int8"),
        inputs=samples,
    )
    report = rl.check_parity(tmp_path / "net", targets=("litert", "litert+builtin"))
    assert not [f.message for result in report.results for f in result.findings if not f.passed]
