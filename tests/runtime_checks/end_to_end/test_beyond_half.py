"""Protects that samples which half precision cannot compute are not held against a file."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers as kl


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float16 file of a network whose squares exceed 65504 in the extreme samples alone."""
    keras.utils.set_random_seed(0)
    x = keras.Input((6,), name="x")
    wide = kl.Rescaling(50.0)(x)
    model = keras.Model(x, kl.Dense(3, activation="softmax", name="y")(wide * wide))
    model.get_layer("y").kernel.assign(np.random.default_rng(1).normal(0, 1e-3, (6, 3)))
    samples = np.random.default_rng(0).uniform(-2, 2, (16, 6)).astype(np.float32)
    folder = tmp_path_factory.mktemp("half") / "net"
    rl.export_model(model, folder, inputs=samples, precisions=("float16",), formats=("onnx",))
    return folder


def test_nothing_is_expected_of_samples_beyond_half(squares: Path) -> None:
    golden = np.load(squares / "golden.npz")
    noise = golden["file-noise:net.float16.onnx:y"]
    size = np.square(50.0 * golden["input:x"]).max(axis=1)
    assert set(golden["kind"][np.isinf(noise)]) == {"extreme"}
    others = np.isfinite(noise) & np.isfinite(size)
    assert size[np.isinf(noise)].min() > 65504 > size[others].max()
    assert rl.check_parity(squares, ("onnxruntime", "onnx-reference")).passed
