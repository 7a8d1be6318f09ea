"""Protects the examples: each runs as its docstring says and prints the expected verdict."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import renormlite as rl

EXAMPLES = Path(rl.__file__).parent / "examples"


def run(name: str, folder: Path, *options: str) -> str:
    """Run an example as a user does, from another folder, and return the printed text."""
    result = subprocess.run(
        [sys.executable, EXAMPLES / name, folder, *options],
        cwd=folder.parent,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    return result.stdout


def test_every_example_is_tested() -> None:
    tested = {
        "mobilenet_renorm.py",
        "own_norm.py",
        "own_runtime.py",
        "quantize_digits.py",
        "several_workers.py",
    }
    assert {file.name for file in EXAMPLES.glob("*.py")} == tested


def test_mobilenet_renorm(tmp_path: Path) -> None:
    options = ("--epochs", "1", "--images", "320")
    printed = run("mobilenet_renorm.py", tmp_path / "mobilenet", *options)
    assert "inference is unchanged, bit for bit: True" in printed
    for norm in ("batch normalization", "batch renormalization"):
        (accuracy,) = printed.partition(f"accuracy with {norm}: ")[2].splitlines()[0].split()
        assert 0 <= float(accuracy) <= 1
    assert "parity on litert and onnxruntime: passed" in printed
    manifest = json.loads((tmp_path / "mobilenet" / "manifest.json").read_text())
    records = manifest["fold"]["records"]
    assert len(records) == 52
    assert not [record["name"] for record in records if record["remaining_ops"]]
    assert (tmp_path / "mobilenet" / "diagnostics.png").stat().st_size > 50_000


def test_own_norm(tmp_path: Path) -> None:
    printed = run("own_norm.py", tmp_path / "own")
    accuracy = float(printed.partition("test accuracy ")[2].split()[0])
    assert accuracy > 0.9
    assert printed.count(": folded into ") == 5
    assert "parity on litert and onnxruntime: passed" in printed
    manifest = json.loads((tmp_path / "own" / "manifest.json").read_text())
    for artifact in manifest["artifacts"]:
        assert not {name.upper() for name in artifact["ops"]} & {"MUL", "ADD", "SUB", "DIV"}


def test_own_runtime(tmp_path: Path) -> None:
    printed = run("own_runtime.py", tmp_path / "own")
    assert printed.splitlines() == ["onnxruntime: passed", "bfloat16-accelerator: FAILED"]


def test_quantize_digits(tmp_path: Path) -> None:
    printed = run("quantize_digits.py", tmp_path / "four")
    lines = dict(
        line.rsplit(" ", 1) for line in printed.splitlines() if line[:5] in ("float", "4-bit")
    )
    assert float(lines["4-bit weights, trained"]) > 0.9
    assert printed.splitlines()[-1] == "passed"


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_several_workers(backend: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", backend)
    assert "2 workers have equal weights" in run("several_workers.py", tmp_path / "none")
