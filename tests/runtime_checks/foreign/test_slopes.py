"""Protects that a wrong slope is found in integers, which hide it where they saturate."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers as kl
from renormlite.artifacts.flatbuffer import operator_kind, pack, parse


@pytest.mark.parametrize(("slope", "passes"), [(0.1, True), (0.3, False)])
def test_a_greater_slope_than_the_calibrated_one(
    slope: float, passes: bool, tmp_path: Path
) -> None:
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3), name="x")
    y = kl.LeakyReLU(0.1, name="leaky")(kl.Conv2D(12, 3, name="conv")(x))
    model = keras.Model(x, kl.Dense(5, name="y")(kl.GlobalAveragePooling2D()(y)))
    generator = np.random.default_rng(0)
    samples = np.cumsum(generator.normal(0, 0.3, (32, 8, 8, 3)), axis=2).astype(np.float32)
    rl.export_model(
        model, tmp_path / "net", calibration=samples, formats=("tflite",), precisions=("int8",)
    )
    file = tmp_path / "net" / "net.int8.tflite"
    changed = parse(file.read_bytes())
    for operator in changed.subgraphs[0].operators:
        if operator_kind(changed, operator) == "LEAKY_RELU":
            operator.builtinOptions.alpha = slope
    file.write_bytes(pack(changed))
    report = rl.check_files(model, [file], inputs=samples)
    assert report.passed is passes
    messages = [finding.message for result in report.results for finding in result.findings]
    named = "has the slope 0.3 where the network has 0.1"
    assert any("'leaky'" in message and named in message for message in messages) is not passes
