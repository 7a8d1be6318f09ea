"""Protects the command line: help without TensorFlow, exit codes, one-line errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from renormlite import UserError
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


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("check", ["What is checked", "Samples", "How it is checked", "Reports", "Devices"]),
        ("export", ["Model", "Files", "Samples", "Quantization", "About the model"]),
    ],
)
def test_help_lists_options_in_groups(name: str, groups: list[str]) -> None:
    lines = CliRunner().invoke(cli, [name, "--help"]).output.splitlines()
    headings = [line[:-1] for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == [*groups, "Options"]


@pytest.mark.parametrize("command", [["check", "--html", "page.html"], ["bench", "--rounds", "1"]])
def test_json_goes_to_a_file_or_alone_to_standard_output(
    healthy_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*command, str(healthy_export), "--json"]
    printed = CliRunner().invoke(cli, [*arguments, "-"], catch_exceptions=False)
    CliRunner().invoke(cli, [*arguments, "out.json"], catch_exceptions=False)
    records = [json.loads(printed.stdout), json.loads(Path("out.json").read_text())]
    keys = [record[0].keys() if command[0] == "bench" else record.keys() for record in records]
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    "arguments",
    [["train", "digits", "-o", "a.h5"], ["fold", "a.keras", "-o", "a.h5"],
     ["inspect", "a.keras", "--picture", "a.png"]],
)  # fmt: skip
def test_a_wrong_suffix_is_the_same_kind_of_error_everywhere(arguments: list[str]) -> None:
    with pytest.raises(UserError, match=r"Expected a file name that ends in \.\w+\. Received: 'a"):
        CliRunner().invoke(cli, arguments, catch_exceptions=False)
