"""Protects the features of all commands: --quiet, --verbose, --json, defaults, suggestions."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from renormlite import UserError
from renormlite.cli.main import COMMANDS, cli
from renormlite.cli.project_defaults import project_defaults


def renormlite(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "renormlite", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
    )


def leaves() -> list[tuple[str, click.Command]]:
    """Return every command without sub-commands, with the words that call it."""
    found = []
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        parts = command.commands if isinstance(command, click.Group) else {"": command}
        found += [(f"{name} {part}".strip(), leaf) for part, leaf in parts.items()]
    return found


def test_every_command_has_quiet_verbose_and_json() -> None:
    for name, command in leaves():
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert {"--quiet", "--verbose", "--json"} <= flags, name


def damage(export: Path) -> None:
    """Change the ONNX file, so that its check fails."""
    file = export / "tiny.float32.onnx"
    file.write_bytes(file.read_bytes().replace(b"down_relu", b"down_rElu"))


def test_quiet_prints_only_failures(export: Path, tmp_path: Path) -> None:
    done = renormlite("check", export, "--quiet", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = renormlite("check", export, "-q", "--json", "-", folder=tmp_path)
    assert json.loads(done.stdout)["verdict"] == "pass"
    assert done.stderr == ""
    damage(export)
    done = renormlite("check", export, "--quiet", folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert lines
    assert all(line.startswith("FAIL tiny.float32.onnx on onnxruntime: ") for line in lines)


def test_failures_are_printed_as_annotations_of_github(export: Path, tmp_path: Path) -> None:
    done = renormlite("check", export, "--github", folder=tmp_path)
    assert "::notice title=tiny::2 files on their targets passed\n" in done.stdout
    damage(export)
    done = renormlite("check", export, "--github", folder=tmp_path)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("::")]
    assert line.startswith("::error title=tiny.float32.onnx on onnxruntime::")
    assert done.returncode == 1


def test_verbose_shows_the_output_of_native_code(tmp_path: Path) -> None:
    program = (
        "import os\nfrom renormlite.quiet import held_back_stderr, nothing_held_back\n"
        "with held_back_stderr(): os.write(2, b'first ')\n"
        "with nothing_held_back():\n  with held_back_stderr(): os.write(2, b'second')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == "second"


def test_bundle_and_verify_bundle_write_json(export: Path, tmp_path: Path) -> None:
    bundled = renormlite("bundle", export, "-o", "tiny.pyz", "--json", "-", folder=tmp_path)
    record = json.loads(bundled.stdout)
    assert record["bytes"] == (tmp_path / "tiny.pyz").stat().st_size
    verified = renormlite("verify-bundle", "tiny.pyz", "--json", "-", folder=tmp_path)
    assert json.loads(verified.stdout)["sha256"] == record["sha256"]


def test_options_come_from_the_defaults_of_the_project(export: Path, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[tool.renormlite]\non = ["litert", "onnxruntime+disabled"]\nrounds = 7\n'
        '[tool.renormlite.check]\nmin-snr = 12.5\njunit = "out/junit.xml"\n'
    )
    inner = tmp_path / "src"
    inner.mkdir()
    done = renormlite("check", export, "--json", "report.json", folder=inner)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((inner / "report.json").read_text())
    assert {result["target"] for result in report["results"]} == {"litert", "onnxruntime+disabled"}
    assert "at least 12.5 dB" in " ".join(done.stdout.split())
    assert (tmp_path / "out/junit.xml").is_file()
    # The command line has priority.
    done = renormlite("check", export, "--on", "litert", "--json", "r.json", folder=inner)
    report = json.loads((inner / "r.json").read_text())
    assert {result["target"] for result in report["results"]} == {"litert"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "[tool.renormlite.chekc]\non = 'litert'",
            "there is no such command. Did you mean 'check'?",
        ),
        (
            "[tool.renormlite.check]\nmin-srn = 3",
            "is not an option of check. Did you mean 'min-snr'?",
        ),
        ("[tool", "is not a TOML file"),
        ("[tool.renormlite.check]\nmin-snr = 'much'", "'much' is not a valid float"),
    ],
)
def test_wrong_defaults_are_refused_in_one_sentence(
    text: str, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    done = renormlite("check", "somewhere", folder=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_project_file_sets_only_options_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'mine'\n")
    assert project_defaults("check", click.Command("check"), COMMANDS, tmp_path) == {}
    (tmp_path / "pyproject.toml").write_text("[tool.renormlite]\non = 'litert'\n")
    assert project_defaults("check", click.Command("check"), COMMANDS, tmp_path) == {}
    (tmp_path / "pyproject.toml").write_text("[tool.renormlite.check]\non = 'litert'\n")
    with pytest.raises(UserError, match="not an option"):
        project_defaults("check", click.Command("check"), COMMANDS, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["chekc"], "Did you mean 'check'?"),
        (["train", "digts"], "Did you mean 'digits'?"),
        (["device", "setup", "qemu-arch64"], "Did you mean 'qemu-aarch64'?"),
        (["check", "{export}", "--on", "litertt"], "Did you mean 'litert'?"),
        (["check", "{export}", "--on", "litert@qemu-aarch46"], "Did you mean 'qemu-aarch64'?"),
        (["check", "{export}", "--artifact", "tiny.float32.onx"], "'tiny.float32.onnx'?"),
        (["check", "{export}", "--min-snrr", "3"], "Did you mean '--min-snr'?"),
    ],
)
def test_a_mistyped_word_gets_a_suggestion(
    arguments: list[str], suggestion: str, healthy_export: Path
) -> None:
    words = [str(healthy_export) if word == "{export}" else word for word in arguments]
    run = CliRunner().invoke(cli, words)
    assert suggestion in run.output + str(run.exception)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--unsafe"], "--unsafe concerns the model: add --model"),
        (["--shape", "image=8,8"], "--shape concerns the model: add --model"),
        (["--map-input", "a=b"], "--map-input is for FILEs"),
        (["--model", "net.keras", "--keep", "kept"], "--keep is for FILEs"),
    ],
)
def test_a_check_refuses_options_without_effect(options: list[str], sentence: str) -> None:
    run = CliRunner().invoke(cli, ["check", "somewhere", *options])
    assert isinstance(run.exception, UserError)
    assert sentence in str(run.exception)
