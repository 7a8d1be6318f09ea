"""Protects the README: every command and program in it runs as written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import renormlite

ROOT = Path(renormlite.__file__).parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the README's code blocks of one language."""
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)
    return found


def run(*command: str, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_python_program_runs(tmp_path: Path) -> None:
    (program,) = blocks("python")
    run(sys.executable, "-c", program, folder=tmp_path)
    assert (tmp_path / "build/mine/mine.float32.tflite").is_file()
    assert (tmp_path / "build/mine/mine.float32.onnx").is_file()


def test_the_command_line_runs(tmp_path: Path) -> None:
    (script,) = [block for block in blocks("sh") if "renormlite train" in block]
    run("bash", "-euc", script, folder=tmp_path)
    assert (tmp_path / "build/digits/report.html").is_file()
