"""Protects that samples whose values are beyond the floats of a file blame no operator."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers, ops
from renormlite.runtime_checks.end_to_end.comparison import compare_output


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """Curves x + a (x² - x), one after the other, as in low-light enhancement.

    Extreme samples overflow float16 after three of them, and float32 after six.
    """
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 2), name="image")
    curve = layers.Conv2D(2, 3, padding="same", activation="tanh")(image)
    x = image
    for _ in range(8):
        x = x + curve * (ops.square(x) - x)
    target = tmp_path_factory.mktemp("curves") / "net"
    samples = np.random.default_rng(0).uniform(0, 1, (16, 6, 6, 2)).astype("float32")
    rl.export_model(
        keras.Model(image, x), target, precisions=("float32", "float16"), inputs=samples
    )
    return target


def test_samples_that_overflow_blame_no_operator(curves):
    report = rl.check_parity(curves, ["litert", "onnxruntime"], per_op=True)
    assert [result.reason for result in report.results if not result.passed] == []
    assert all(result.ops for result in report.results)


def test_the_mean_of_nothing_blames_no_operator_of_integers(tmp_path):
    """Of a sequence of padding alone it is NaN, which no 8-bit integer holds."""
    ids = keras.Input((6,), dtype="int32", name="ids")
    rows = layers.Embedding(9, 4, mask_zero=True, embeddings_initializer="normal")(ids)
    mean = layers.GlobalAveragePooling1D()(rows)
    samples = np.random.default_rng(0).integers(1, 9, (6, 6)).astype(np.int32)
    samples[::2] = 0
    model = keras.Model(ids, layers.Dense(3)(mean))
    rl.export_model(model, tmp_path / "net", precisions=("dynamic",), inputs=samples)
    report = rl.check_parity(tmp_path / "net", ["litert", "onnxruntime"], per_op=True)
    assert [result.reason for result in report.results if not result.passed] == []


def test_metrics_of_numbers_whose_squares_overflow():
    truth = np.array([[1e200, -1e200], [3e200, 4e200]])
    found = compare_output("y", truth * (1 + 1e-3), truth)
    assert found.snr_db == pytest.approx(60)  # an error of a thousandth
    # The range of the truth is 5e200; the errors are 1e197 times 1, 1, 3 and 4.
    assert found.psnr_db == pytest.approx(20 * np.log10(5e3 / np.sqrt(27 / 4)))
