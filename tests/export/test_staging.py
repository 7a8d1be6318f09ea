"""Protects that an export is there whole or the old one stays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import keras
import pytest
import renormlite as rl
from renormlite.export.progress import Progress
from renormlite.export.staging import moved_in_when_done

PROGRAM = Path(__file__).with_name("staging_program.py")


def _killed_at_every_step(folder, where):
    """Return what was found after a kill before each change to the disk; see the program."""
    command = [sys.executable, str(PROGRAM), str(folder), where]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    *killed, finished = [json.loads(line) for line in run.stdout.splitlines()]
    assert all(state["killed"] for state in killed)
    assert not finished["killed"]
    assert finished["at_once"] == "new"
    return killed


def test_a_killed_export_leaves_all_old_files_or_all_new_ones(tmp_path):
    states = _killed_at_every_step(tmp_path, "outside")
    seen = [state["at_once"] for state in states]
    assert set(seen) == {"old", "new"}
    assert seen == sorted(seen, reverse=True)  # and never turns back
    assert [state["next"] for state in states] == seen


def test_if_directories_cannot_be_swapped_the_next_export_completes_the_move(tmp_path):
    # A shell that stands in the directory must not be left in one that is gone.
    states = _killed_at_every_step(tmp_path, "inside")
    assert {state["next"] for state in states} == {"old", "new"}
    for state in states:
        assert state["next"] == "new" or state["at_once"] == "old"


def test_other_files_in_the_directory_are_not_touched(small, export):
    _, folder = export(small, formats=("tflite",))
    (folder / "logs").mkdir()
    (folder / "logs" / "today.txt").write_text("mine")
    (folder / "elsewhere").symlink_to("nowhere")
    folder.chmod(0o750)
    with open(folder / "logs" / "today.txt", "a") as log:
        export(small, formats=("onnx",))
        log.write(" still")
    assert (folder / "logs" / "today.txt").read_text() == "mine still"
    assert (folder / "elsewhere").readlink() == Path("nowhere")
    assert folder.stat().st_mode & 0o777 == 0o750
    assert [p.name for p in folder.parent.iterdir() if p.name.startswith(".")] == []


def _snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("stage", ["fold", "convert", "validate", "truth in float64", "run"])
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_export_keeps_the_old_files(stage, interruption, small, export):
    _, folder = export(small)
    before = _snapshot(folder)
    other = keras.models.clone_model(small)

    def interrupt(progress: Progress) -> None:
        if progress.stage == stage:
            raise interruption

    with pytest.raises(interruption):
        export(other, listener=interrupt)
    assert _snapshot(folder) == before


def test_outdated_files_are_removed_and_other_files_are_kept(small, images, export):
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
    model = keras.Model(x, keras.ops.erfinv(x))  # TFLite has no such operator
    with pytest.raises(rl.UserError, match="Erfinv"):
        export(model, formats=("tflite",))
    assert list((tmp_path / "net").iterdir()) == []
