"""Protects `bench`: a row a file and target, ratios to the first, and its refusals."""

from pathlib import Path

import keras
import pytest
import renormlite as rl
from renormlite.runtime_checks.bench import measure_latency


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = keras.Sequential([keras.Input((8,), name="x"), keras.layers.Dense(4, name="y")])
    folder = tmp_path_factory.mktemp("build") / "tiny"
    rl.export_model(model, folder)
    return folder


def test_every_file_is_timed_on_every_target_that_loads_it(exported: Path) -> None:
    rows = measure_latency(exported, ("litert", "onnxruntime"), rounds=3)
    assert [(row.target, row.artifact) for row in rows] == [
        ("litert", "tiny.float32.tflite"),
        ("onnxruntime", "tiny.float32.onnx"),
    ]
    assert rows[0].ratio == 1.0
    assert all(0 < row.median_ms <= row.p90_ms and row.load_ms > 0 for row in rows)


def test_a_directory_without_an_export_says_so(tmp_path: Path) -> None:
    with pytest.raises(rl.UserError, match=r"manifest\.json"):
        measure_latency(tmp_path, ("litert",))
