"""Protects that samples which half precision cannot compute are not held against a file."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers as kl
from renormlite.artifacts.network import Network, Node
from renormlite.artifacts.sample_kinds import EXTREME, REAL
from renormlite.reference.file_noise import beyond_float32
from renormlite.reference.nonfinite import expected


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


# The square of 1e19 fits into float32, those of 2e19 and 1e25 do not; 1e-3 of it does.
SIZES = np.array([1.0, 1.8e19, 2e19, 1e25, 1e25])
KINDS = np.array([REAL, EXTREME, EXTREME, EXTREME, REAL])


def test_nothing_is_expected_of_extreme_samples_beyond_float32() -> None:
    shape = (None, 2)
    network = Network(
        {"x": shape},
        {"y": "y"},
        (
            Node("square", "square", "square", ("x",), shape, {}, {}),
            Node("y", "multiply", "y", ("square",), shape, {}, {}, {"constant": np.float32(1e-3)}),
        ),
    )
    x = np.stack([SIZES, np.ones(5)], axis=1).astype(np.float32)
    truth = {"y": 1e-3 * np.square(x.astype(np.float64))}
    with np.errstate(over="ignore"):
        reference = {"y": np.float32(1e-3) * np.square(x)}
    wanted = expected(network, {"x": x}, truth, reference, kind=KINDS)["y"]
    assert wanted.tolist() == [[True] * 2] * 2 + [[False, True]] * 2 + [[True] * 2]


def test_noise_of_samples_that_rounding_may_take_beyond_float32() -> None:
    greatest = float(np.finfo(np.float32).max)
    truth = {"y": np.array([[0.9, -0.9], [0.9, 0.9], [0.5, 0.5], [1e-30, 0.0]]) * greatest}
    noise = {"y": np.array([0.01, 0.03, 0.03, 0.03]) * np.abs(truth["y"]).max(axis=1)}
    kind = np.array([EXTREME] * 4)
    found = beyond_float32(noise, truth, kind)["y"]
    assert np.isinf(found).tolist() == [False, True, False, False]  # 0.9 (1 + 5 · 0.03) > 1
    assert not np.isinf(beyond_float32(noise, truth, np.array([REAL] * 4))["y"]).any()


def test_tone_curves_that_overflow(tmp_path: Path) -> None:
    """As in Zero-DCE: x + a (x² - x), eight times; ten times the usual range overflows."""
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 6, 3), name="x")
    curves = kl.Conv2D(24, 3, padding="same", activation="tanh")(x)
    y = x
    for n in range(8):
        y = y + curves[..., 3 * n : 3 * n + 3] * (y * y - y)
    model = keras.Model(x, y)
    samples = np.random.default_rng(0).uniform(0, 1, (16, 6, 6, 3)).astype(np.float32)
    rl.export_model(
        model,
        tmp_path / "net",
        inputs=samples,
        precisions=("float32", "dynamic"),
    )
    targets = ("litert", "litert+builtin", "litert+reference", "onnxruntime", "onnx-reference")
    report = rl.check_parity(tmp_path / "net", targets)
    (truth,) = report.golden.truth.values()
    assert np.isnan(truth[report.golden.kind == EXTREME]).any()
    assert [r.reason for r in report.results if not r.passed] == []
