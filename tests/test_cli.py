"""Protects the command line: help without TensorFlow, exit codes, one-line errors."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from renormlite.cli.main import COMMANDS, cli

TAKE_A_MODEL = [("inspect",), ("fold", "-o", "folded.keras"), ("export",)]


def renormlite(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "renormlite", *arguments], capture_output=True, text=True
    )


def test_help_names_every_command_in_the_order_a_model_travels() -> None:
    text = CliRunner().invoke(cli, ["--help"]).output
    places = [text.index(f"\n  {name} ") for name in COMMANDS]
    assert places == sorted(places)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


def test_unknown_command_exits_2_with_one_sentence() -> None:
    run = renormlite("exprot")
    assert run.returncode == 2
    assert "No such command 'exprot'" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("command", TAKE_A_MODEL)
def test_missing_model_exits_2_with_one_sentence(command: tuple[str, ...]) -> None:
    run = renormlite(*command, "no/such/model.keras")
    assert run.returncode == 2
    assert "no/such/model.keras" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("command", TAKE_A_MODEL)
def test_broken_model_file_exits_2_with_one_sentence(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.keras"
    broken.write_bytes(b"not a model")
    run = renormlite(*command, str(broken))
    assert run.returncode == 2
    assert "broken.keras" in run.stderr
    assert "Traceback" not in run.stderr


def test_the_one_line_is_not_buried_in_banners() -> None:
    """TensorFlow prints a dozen lines while it loads; none of them may reach the user."""
    run = renormlite("export", "no/such/model.keras")
    assert len(run.stderr.strip().splitlines()) == 1, run.stderr
