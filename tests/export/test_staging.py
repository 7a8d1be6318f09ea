"""Protects that an export is there whole or the old one stays."""

from __future__ import annotations

import keras
import pytest
import renormlite as rl
from renormlite.export.progress import Progress
from renormlite.export.staging import moved_in_when_done


def _snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("stage", ["fold", "convert", "validate", "truth in float64", "run"])
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_export_leaves_the_old_files(stage, interruption, small, export):
    _, folder = export(small)
    before = _snapshot(folder)
    other = keras.models.clone_model(small)

    def interrupt(progress: Progress) -> None:
        if progress.stage == stage:
            raise interruption

    with pytest.raises(interruption):
        export(other, listener=interrupt)
    assert _snapshot(folder) == before


def test_files_the_new_export_lacks_go_and_a_users_own_stay(small, images, export):
    _, folder = export(small, formats=("tflite", "onnx", "saved_model"), precisions=("float32",))
    (folder / "notes.txt").write_text("mine")
    export(small, formats=("tflite",))
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "golden.npz",
        "manifest.json",
        "net.float32.tflite",
        "network.npz",
        "notes.txt",
    }


def test_a_manifest_from_elsewhere_cannot_remove_files_outside(small, export, tmp_path):
    _, folder = export(small, formats=("tflite",))
    treasure = tmp_path / "treasure.txt"
    treasure.write_text("keep")
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("net.float32.tflite", "../treasure.txt"))
    export(small, formats=("onnx",))
    assert treasure.read_text() == "keep"


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "net").write_text("a file")
    with pytest.raises(rl.UserError, match="a file"), moved_in_when_done(tmp_path / "net"):
        pass


def test_a_failed_conversion_leaves_nothing_in_a_new_directory(export, tmp_path):
    x = keras.Input((4,), name="x")
    y = keras.layers.Dense(3)(x)
    with pytest.raises(rl.UserError):
        export(keras.Model(x, [y, y]), formats=("tflite",))
    assert list((tmp_path / "net").iterdir()) == []
