"""Protects what is expected of runtimes that compute files of integers in floats."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import renormlite as rl
from ai_edge_litert.interpreter import Interpreter
from renormlite.artifacts.directory import read_export
from renormlite.artifacts.golden_set import read_golden
from renormlite.artifacts.samples import SampleSet
from renormlite.runtime_checks.own_samples import with_samples


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    keras.utils.set_random_seed(0)
    x = keras.Input((6,), name="x")
    y = keras.layers.Dense(4, activation="relu", name="y", bias_initializer="normal")(x)
    folder = tmp_path_factory.mktemp("floats") / "net"
    options = {"formats": ("tflite",), "calibration": "random"}
    rl.export_model(keras.Model(x, y), folder, precisions=("int16x8", "int8"), **options)
    return read_export(folder)


def dequantized(path) -> dict[tuple[int, ...], np.ndarray]:
    """Return the constants of a file by shape, as LiteRT reads them."""
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    found = {}
    for entry in interpreter.get_tensor_details():
        scales = entry["quantization_parameters"]["scales"].astype(np.float64)
        if entry["name"] and scales.size and tuple(entry["shape"]) in ((4, 6), (4,)):
            numbers = interpreter.get_tensor(entry["index"]).astype(np.float64)
            found[numbers.shape] = numbers * scales.reshape(-1, *[1] * (numbers.ndim - 1))
    return found


def test_they_have_the_weights_of_the_file_and_round_nothing_else(export):
    golden = read_golden(export.golden, ["y"])
    (file,) = golden.in_floats
    assert file.endswith(".int16x8.tflite")  # int8 is computed in integers everywhere
    constants = dequantized(export.path / file)
    finite = golden.kind != "nonfinite"
    x = golden.inputs["x"][finite].astype(np.float64)
    expected = np.maximum(x @ constants[4, 6].T + constants[4,], 0)
    found = golden.in_floats[file]["y"][finite]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert np.abs(found - golden.truth["y"][finite]).max() > 1e-4  # the rounding of the weights


def test_own_samples_are_added(export):
    golden = read_golden(export.golden, ["y"])
    own = SampleSet({"x": np.array(golden.inputs["x"][:3])}, "own", "all")
    (both,) = with_samples(golden, export, own).in_floats.values()
    assert len(both["y"]) == golden.samples + 3
    np.testing.assert_allclose(both["y"][-3:], both["y"][:3], rtol=1e-12)
