"""Protects `make check` on real data: train, fold, export, check."""

import json
import os
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
import renormlite as rl
from renormlite.models import digits

ROOT = Path(rl.__file__).parent


def make(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run make in the checkout, with ``out`` as the folder for all it builds."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    return subprocess.run(
        ["make", f"OUT={out}", *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """`make check` with an empty folder: the folder and the printed text."""
    out = tmp_path_factory.mktemp("build") / "digits"
    run = make(out, "check")
    assert run.returncode == 0, run.stdout + run.stderr
    return out, run.stdout


def operators(folder: Path) -> dict[str, dict[str, int]]:
    """Return the operator counts of every artifact, from the manifest of a folder."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return {artifact["format"]: artifact["ops"] for artifact in manifest["artifacts"]}


def test_test_accuracy_is_printed_and_at_least_97_percent(built: tuple[Path, str]) -> None:
    line = next(line for line in built[1].splitlines() if line.startswith("test accuracy"))
    assert float(line.split()[2]) >= 0.97


def test_every_target_has_a_verdict_in_the_table(built: tuple[Path, str]) -> None:
    for target in ("litert", "tf-lite", "onnxruntime"):
        assert any(target in line and "pass" in line.lower() for line in built[1].splitlines())


def test_the_report_is_one_self_contained_page(built: tuple[Path, str]) -> None:
    page = (built[0] / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert 'src="http' not in page
    assert 'href="http' not in page


def test_the_artifacts_have_the_operators_of_the_network_without_norms(
    built: tuple[Path, str], tmp_path: Path
) -> None:
    rl.export_model(digits.build(None), tmp_path / "twin")
    assert operators(built[0]) == operators(tmp_path / "twin")


def test_all_norms_folded_and_proved(built: tuple[Path, str]) -> None:
    fold = json.loads((built[0] / "manifest.json").read_text())["fold"]
    trained = rl.load_model(built[0] / "digits.keras")
    norms = [x.name for x in trained.layers if isinstance(x, rl.BatchRenormalization)]
    assert sorted(record["name"] for record in fold["records"]) == sorted(norms)
    assert len(norms) == 5
    assert not [record for record in fold["records"] if record["remaining_ops"]]


def test_the_statistics_differ_from_the_initial_ones(built: tuple[Path, str]) -> None:
    """Norms close to the identity would not show a wrong fold."""
    trained = rl.load_model(built[0] / "digits.keras")
    for norm in (x for x in trained.layers if isinstance(x, rl.BatchRenormalization)):
        assert np.abs(np.asarray(norm.moving_mean)).max() > 0.05
        assert np.ptp(np.asarray(norm.moving_variance)) > 0.01


def test_a_second_run_rebuilds_nothing(built: tuple[Path, str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in built[0].glob("digits.*")}
    run = make(built[0], "check")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "renormlite train" not in run.stdout
    assert "renormlite export" not in run.stdout
    assert {file: file.stat().st_mtime_ns for file in built[0].glob("digits.*")} == before


def test_a_changed_option_repeats_the_export_but_not_the_training(built: tuple[Path, str]) -> None:
    run = make(built[0], "--dry-run", "check", "FORMATS=tflite")
    assert "renormlite export" in run.stdout
    assert "renormlite train" not in run.stdout


def test_a_model_of_the_user(tmp_path: Path) -> None:
    model = keras.Sequential(
        [
            keras.Input((12, 3), name="samples"),
            keras.layers.Conv1D(8, 3, padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(2, name="state"),
        ]
    )
    model.save(tmp_path / "mine.keras")
    run = make(tmp_path / "mine", f"MODEL={tmp_path / 'mine.keras'}", "check")
    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "mine" / "report.html").is_file()
    assert (tmp_path / "mine" / "mine.float32.tflite").is_file()


def test_a_missing_model_is_refused_in_one_line(tmp_path: Path) -> None:
    run = make(tmp_path / "none", "MODEL=no/such.keras", "check")
    assert run.returncode == 2
    assert "there is no such file" in run.stdout
