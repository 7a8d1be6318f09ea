"""Protects the wheel's extras: in an empty environment, each is enough for its purpose."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
import renormlite

pytestmark = pytest.mark.devices
ROOT = Path(renormlite.__file__).parent
LIMIT_MB = 200
# A Python without this checkout and without the packages of this Python.
CLEAN = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of this checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "SetuptoolsDeprecationWarning" not in built.stdout + built.stderr
    assert "Package would be ignored" not in built.stdout + built.stderr
    return next(out.glob("*.whl"))


class Environment:
    """A separate environment with the wheel and one extra."""

    def __init__(self, folder: Path, wheel: Path, extra: str) -> None:
        self.folder = folder
        venv.create(folder, with_pip=False)
        self.python = folder / "bin/python"
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--quiet"]
        subprocess.run([*pip, f"{wheel}[{extra}]" if extra else str(wheel)], check=True, env=CLEAN)

    def run(self, *words: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run `renormlite` there."""
        command = [str(self.folder / "bin/renormlite"), *map(str, words)]
        return subprocess.run(command, cwd=folder, env=CLEAN, capture_output=True, text=True)

    @property
    def megabytes(self) -> float:
        """Size of the installed files, without bytecode."""
        files = (f for f in self.folder.rglob("*") if f.is_file() and f.suffix != ".pyc")
        return sum(f.lstat().st_size for f in files) / 1e6


@pytest.mark.parametrize(("extra", "suffix"), [("litert", ".tflite"), ("onnx", ".onnx")])
def test_a_light_install_can_check(
    extra: str, suffix: str, wheel: Path, healthy_export: Path, tmp_path: Path
) -> None:
    there = Environment(tmp_path / "env", wheel, extra)
    assert there.megabytes < LIMIT_MB
    export = shutil.copytree(healthy_export, tmp_path / "tiny")
    done = there.run("check", export, "--per-op", "--json", "report.json", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "report.json").read_text())["results"]
    assert results
    assert {Path(result["artifact"]).suffix for result in results} == {suffix}
    (file,) = sorted(export.glob(f"*.float32{suffix}"))
    for command in (
        ("compare", file, file),
        ("inspect", file),
        ("bundle", export),
        ("bench", export, "--rounds", "2"),
        ("targets",),
    ):
        done = there.run(*command, folder=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    for command in (
        ("train", "digits"),
        ("fold", "net.keras", "-o", "folded.keras"),
        ("export", "net.keras"),
        ("inspect", "net.keras"),
        ("check", file, "--model", "net.keras"),
    ):
        done = there.run(*command, folder=tmp_path)
        assert done.returncode == 2
        assert "pip install 'renormlite[tensorflow]'" in done.stderr
        assert "Traceback" not in done.stderr


# Extra to the modules that it brings.
SINGLE = {
    "browser": "playwright",
    "int4": "ai_edge_quantizer",
    "parquet": "pyarrow",
    "ray": "ray",
    "runtimes": "openvino, tflite_micro",
    "tensorboard": "tensorboard",
}


@pytest.mark.timeout(1800)  # pip takes minutes on a busy machine
@pytest.mark.parametrize("extra", SINGLE)
def test_each_extra_installs_what_it_names(
    extra: str, wheel: Path, healthy_export: Path, tmp_path: Path
) -> None:
    there = Environment(tmp_path / "env", wheel, extra)
    program = f"import renormlite, {SINGLE[extra]}"
    subprocess.run([there.python, "-c", program], check=True, cwd=tmp_path, env=CLEAN)
    assert there.run("--help", folder=tmp_path).returncode == 0
    if extra != "runtimes":
        return
    done = there.run("check", healthy_export, "--on", "openvino,tflite-micro", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_extra_is_installed_by_a_test() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tested = {*SINGLE, "litert", "onnx", "tensorflow", "all"}
    assert project["optional-dependencies"].keys() - {"dev"} == tested


def test_without_a_runtime_the_check_says_what_to_install(
    wheel: Path, healthy_export: Path, tmp_path: Path
) -> None:
    there = Environment(tmp_path / "env", wheel, "browser")
    assert there.run("--help", folder=tmp_path).returncode == 0
    done = there.run("check", healthy_export, folder=tmp_path)
    assert done.returncode == 2
    assert "pip install ai-edge-litert" in done.stderr
    program = "import playwright, renormlite; renormlite.fold"
    failed = subprocess.run(
        [there.python, "-c", program], cwd=tmp_path, env=CLEAN, capture_output=True, text=True
    )
    assert "renormlite.fold needs keras" in failed.stderr
    assert "pip install 'renormlite[tensorflow]'" in failed.stderr


def test_the_large_extras_train_export_and_check(wheel: Path, tmp_path: Path) -> None:
    """`[tensorflow]` is enough for all steps; `[all]` adds every other runtime."""
    there = Environment(tmp_path / "env", wheel, "tensorflow")
    for words in (
        ("train", "digits", "--epochs", "1"),
        ("inspect", "build/digits/digits.keras", "--picture", "fold.svg"),
        ("export", "build/digits/digits.keras", "--inputs", "build/digits/digits.samples.npz"),
        ("check", "build/digits"),
    ):
        done = there.run(*words, folder=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "oneDNN" not in done.stderr
    pip = [sys.executable, "-m", "pip", "--python", str(there.python), "install", "--quiet"]
    subprocess.run([*pip, f"{wheel}[all]"], check=True, env=CLEAN)
    modules = "ai_edge_quantizer, openvino, playwright, tensorboard, tflite_micro"
    subprocess.run([there.python, "-c", f"import {modules}"], check=True, env=CLEAN)
    done = there.run("targets", "--json", "targets.json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    usable = {
        entry["target"]
        for entry in json.loads((tmp_path / "targets.json").read_text())
        if entry["usable"]
    }
    assert {"litert", "tf-lite", "onnxruntime", "openvino", "tflite-micro"} <= usable
