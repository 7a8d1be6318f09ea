"""Protects that random commands in bad surroundings end with a result or one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import renormlite
from renormlite import UserError
from renormlite.artifacts.archive import Archive
from renormlite.artifacts.class_names import read_lines
from renormlite.artifacts.graphs import read_graph
from renormlite.files import regular
from renormlite.runtime_checks.report.json_report import read

FUZZER = Path(renormlite.__file__).parent / "benchmarks" / "fuzz_commands.py"


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork and /dev/full")
def test_random_commands_end_with_a_result_or_one_sentence():
    """A share of what the benchmark runs: the first 120 commands."""
    run = subprocess.run(
        [sys.executable, str(FUZZER), "--count", "120"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert "'commands': 120" in run.stdout


@pytest.mark.parametrize(
    ("output", "said"),
    [("/dev/full", "No space left on device"), (None, "Standard output was closed")],
)
def test_output_that_cannot_be_written_is_one_sentence_and_exit_2(output, said):
    """Exit code 1 would mean that a check failed."""
    reading, writing = os.pipe()
    os.close(reading)
    target = os.open(output, os.O_WRONLY) if output else writing
    run = subprocess.run(
        [sys.executable, "-m", "renormlite", "targets"],
        stdout=target,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.returncode == 2
    assert said in run.stderr
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize("kind", ["pipe", "endless"])
@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("golden.npz", Archive),
        ("report.json", read),
        ("labels.txt", read_lines),
        ("x.tflite", lambda path: read_graph(path, "tflite")),
    ],
)
def test_pipes_and_devices_are_not_read(kind, name, reader, tmp_path):
    """A pipe would wait for ever, and a device such as /dev/zero would fill the memory."""
    path = tmp_path / name
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises((OSError, UserError), match="a pipe or a device"):
        reader(path)


def test_regular_files_missing_files_and_folders_are_passed_on(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "missing", tmp_path):
        assert regular(path) == path


@pytest.mark.parametrize(
    "text",
    ["tool = 1", "[tool]\nrenormlite = []", "[tool.renormlite]\ntargets = 1", "x = " + "[" * 9999],
)
def test_defaults_that_are_no_tables_are_one_sentence(text, tmp_path):
    (tmp_path / "pyproject.toml").write_text(text)
    run = subprocess.run(
        [sys.executable, "-m", "renormlite", "targets"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(FUZZER.parents[2])},
    )
    assert run.returncode == 2
    assert run.stderr.startswith("renormlite: ")
    assert "pyproject.toml" in run.stderr
