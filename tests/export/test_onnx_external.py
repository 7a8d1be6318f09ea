"""Protects ONNX files whose weights lie in a second file, which models above 2 GB need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
import renormlite as rl
from renormlite.artifacts.manifest import FILE
from renormlite.export import number_limits
from renormlite.export.formats import onnx_external
from renormlite.runtime_checks.bundle.write import write_bundle

WEIGHTS = "net.float32.onnx.data"


def model(units: int = 40) -> keras.Model:
    keras.utils.set_random_seed(2)
    image = keras.Input((8, 8, 3), name="image")
    x = rl.BatchRenormalization()(keras.layers.Conv2D(8, 3, activation="relu")(image))
    x = keras.layers.Dense(units, activation="relu")(keras.layers.Flatten()(x))
    return keras.Model(image, keras.layers.Dense(5, name="scores")(x), name="net")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """An export as of a large model: the limit is lowered instead."""
    folder = tmp_path_factory.mktemp("external") / "net"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_external, "MOST_INSIDE", 4096)
        rl.export_model(model(), folder, formats=("onnx",))
    return folder


@pytest.fixture
def export(made, tmp_path) -> Path:
    """A copy to damage."""
    folder = tmp_path / "net"
    folder.mkdir()
    for path in made.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_the_weights_lie_beside_the_file_and_are_in_the_manifest(made):
    (entry,) = json.loads((made / FILE).read_text())["artifacts"]
    assert entry["weights"]["file"] == WEIGHTS
    assert entry["bytes"] == (made / "net.float32.onnx").stat().st_size < 8192
    assert (made / WEIGHTS).stat().st_size > 40_000
    locations = {
        pair.value
        for tensor in onnx.load(
            made / "net.float32.onnx", load_external_data=False
        ).graph.initializer
        for pair in tensor.external_data
        if pair.key == "location"
    }
    assert locations == {WEIGHTS}


@pytest.mark.parametrize(
    "targets", [("onnxruntime", "onnxruntime+disabled", "onnx-reference", "openvino")]
)
def test_every_check_reads_them(made, targets):
    report = rl.check_parity(made, targets, per_op=True)
    assert report.passed, report.failures
    assert all(result.ops for result in report.results)


def test_the_weights_are_those_of_a_file_that_holds_them(made, tmp_path):
    rl.export_model(model(), tmp_path / "net", formats=("onnx",))
    whole = onnx.load(tmp_path / "net" / "net.float32.onnx").graph.initializer
    beside = onnx.load(made / "net.float32.onnx").graph.initializer
    for expected, got in zip(whole, beside, strict=True):
        np.testing.assert_array_equal(
            onnx.numpy_helper.to_array(expected), onnx.numpy_helper.to_array(got)
        )


def test_a_bundle_carries_them(made, tmp_path):
    bundle = write_bundle(made, tmp_path / "net.pyz")
    run = subprocess.run([sys.executable, str(bundle)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_damage_is_a_failed_check(export):
    data = bytearray((export / WEIGHTS).read_bytes())
    data[5000] ^= 1
    (export / WEIGHTS).write_bytes(bytes(data))
    report = rl.check_parity(export, ("onnxruntime",))
    assert not report.passed
    assert f"{WEIGHTS}, which holds the weights of net.float32.onnx" in report.results[0].reason


def test_a_missing_file_is_a_failed_check(export):
    (export / WEIGHTS).unlink()
    report = rl.check_parity(export, ("onnxruntime",))
    assert not report.passed
    assert f"{WEIGHTS} is missing" in report.results[0].reason


def test_the_next_export_removes_them(export):
    rl.export_model(model(), export, formats=("onnx",))
    assert not (export / WEIGHTS).exists()


def pointing_to(path: Path, location: str) -> None:
    altered = onnx.load(path, load_external_data=False)
    for tensor in altered.graph.initializer:
        for pair in tensor.external_data:
            if pair.key == "location":
                pair.value = location
    path.write_bytes(altered.SerializeToString())


@pytest.mark.parametrize("where", ["../secret", "/etc/hostname", "a/b", "..", ""])
def test_weights_outside_of_the_folder_are_refused(export, where):
    (export.parent / "secret").write_bytes((export / WEIGHTS).read_bytes())
    path = export / "net.float32.onnx"
    pointing_to(path, where)
    with pytest.raises(rl.UserError, match="plain name of a file"):
        rl.compare_files(path, path)


def test_a_foreign_file_with_its_weights_beside_it(export, tmp_path):
    path = export / "net.float32.onnx"
    assert rl.check_files(model(), [path]).passed
    kept = tmp_path / "kept"
    rl.check_files(model(), [path], keep=kept)
    assert (kept / WEIGHTS).is_file()
    assert rl.check_parity(kept).passed
    assert rl.compare_files(path, path).passed


def test_limits_are_reported_before_the_conversion(monkeypatch, tmp_path):
    monkeypatch.setattr(number_limits, "_LARGEST_FILE", 4096)
    for formats, precisions in ((("tflite",), ("float32",)), (("onnx",), ("dynamic",))):
        with pytest.raises(rl.UserError, match=f"Files of {formats[0]} {precisions[0]} are"):
            rl.export_model(model(), tmp_path / "net", formats=formats, precisions=precisions)
    rl.export_model(model(), tmp_path / "net", formats=("onnx",))
