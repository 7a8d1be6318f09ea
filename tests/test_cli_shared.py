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


def defaults(text: str, command: str, folder: Path) -> dict[str, object]:
    (folder / "pyproject.toml").write_text(text)
    found: dict[str, object] = project_defaults(cli, command, folder)
    return found.get(command, {})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[tool", "is not a TOML file"),
        ("x = " + "9" * 5000, "is not a TOML file"),
        ("tool = 1", "Expected a table as [tool] in"),
        ("[tool]\nrenormlite = []", "Expected a table as [tool.renormlite] in"),
        ("[tool.renormlite]\ncheck = 3", "Expected a table as [tool.renormlite.check] in"),
        ("[[tool.renormlite.export]]", "Expected a table as [tool.renormlite.export] in"),
        ("[tool.renormlite.chekc]\non = 'a'", "no such command. Did you mean 'check'?"),
        ("[tool.renormlite.device.stup]", "no such command. Did you mean 'setup'?"),
        ("[tool.renormlite]\nonn = 'litert'", "not an option of any command. Did you mean 'on'?"),
        ("[tool.renormlite]\nmin_snr = 3", "any command. Did you mean 'min-snr'?"),
        ("[tool.renormlite]\nchekc = 3", "any command. Did you mean 'check'?"),
        ("[tool.renormlite]\nversion = true", "not an option of any command."),
        ("[tool.renormlite]\no = 'net.keras'", "not an option of any command."),
        ("[tool.renormlite.check]\nmin-srn = 3", "option of check. Did you mean 'min-snr'?"),
        ("[tool.renormlite.check]\nrounds = 3", "is not an option of check."),
        ("[tool.renormlite.export]\nrounds = 3", "is not an option of export."),
        ("[tool.renormlite.device.setup]\nsurce = 'x'", "of setup. Did you mean 'source'?"),
        ("[tool.renormlite.check]\nmin-snr = 'much'", "'much' is not a valid float."),
        ("[tool.renormlite.check]\nmin-snr = true", "Expected text or a number as 'min-snr'"),
        ("[tool.renormlite.check]\nmin-snr = 2020-02-02", "Expected text or a number as 'min-snr'"),
        ("[tool.renormlite.check]\nmin-snr = [1, 2]", "'1,2' is not a valid float."),
        ("[tool.renormlite.check]\nsamples = 2.5", "'2.5' is not a valid integer range."),
        ("[tool.renormlite.check]\nsamples = 0", "0 is not in the range x>=1."),
        (f"[tool.renormlite.check]\nsamples = 0x{'f' * 5000}", "Expected text or a number as"),
        ("[tool.renormlite.check]\nper-op = 'yes'", "Expected true or false as 'per-op'"),
        ("[tool.renormlite.check]\nquiet = 1", "Expected true or false as 'quiet'"),
        ("[tool.renormlite.check]\non = [['litert']]", "Expected text or a number as 'on'"),
        ("[tool.renormlite.check]\non = ['litert', 'litert']", "'litert' is given twice."),
        ("[tool.renormlite.check.on]\nx = 1", "Expected text or a number as 'on'"),
        ("[tool.renormlite.check]\nhtml = 5", "Expected text as 'html'"),
        ("[tool.renormlite.check]\nhtml = ['a.html']", "Expected one text as 'html'"),
        ("[tool.renormlite.check]\nhtml = 'page.txt'", "a file name that ends in .html."),
        ('[tool.renormlite.check]\nhtml = "\\u0000.html"', "Expected text as 'html'"),
        ("[tool.renormlite.check]\nmap-input = 'x'", "expected NAME=NAME, got 'x'."),
        ("[tool.renormlite]\nthreads = 'many'", "'threads' under [tool.renormlite] in"),
    ],
)
def test_wrong_defaults_are_refused_in_one_sentence(
    text: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        defaults(text, "check", tmp_path)
    assert sentence in str(error.value)
    assert str(tmp_path / "pyproject.toml") in str(error.value)


def test_a_wrong_default_ends_the_command_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.renormlite]\nmin-srn = 3\n")
    done = renormlite("check", "somewhere", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"renormlite: 'min-srn' under [tool.renormlite] in {tmp_path}/pyproject.toml is not an "
        "option of any command. Did you mean 'min-snr'?\n"
    )


def test_a_project_file_sets_only_options_of_the_command(tmp_path: Path) -> None:
    assert defaults("[project]\nname = 'mine'\n", "check", tmp_path) == {}
    text = "[tool.renormlite]\nrounds = 7\nthreads = 2\n[tool.renormlite.bench]\nthreads = 4\n"
    assert defaults(text, "train", tmp_path) == {}
    assert defaults(text, "check", tmp_path) == {"threads": "2"}
    assert defaults(text, "bench", tmp_path) == {"rounds": "7", "threads": "4"}


def test_the_values_of_a_project_file_have_the_form_of_the_command_line(tmp_path: Path) -> None:
    text = (
        "[tool.renormlite]\nimport = ['one', 'two']\nmean = [1, 2.5, 3]\nper-op = true\n"
        "json = '-'\njunit = 'out/junit.xml'\ninputs = 'real.npz'\nmap-input = 'a=b'\n"
    )
    assert defaults(text, "check", tmp_path) == {
        "imports": ["one", "two"],
        "mean": "1,2.5,3",
        "per_op": True,
        "json_path": "-",
        "junit": f"{tmp_path}/out/junit.xml",
        "inputs": f"{tmp_path}/real.npz",
        "map_inputs": ["a=b"],
    }
    for source in ("random", "module:function"):
        assert defaults(f"[tool.renormlite]\ninputs = '{source}'", "check", tmp_path) == {
            "inputs": source
        }


def test_defaults_reach_the_commands_of_a_group(tmp_path: Path) -> None:
    text = "[tool.renormlite]\nbrowser = 'chrome'\n[tool.renormlite.device.setup]\nsource = 'x'\n"
    assert defaults(text, "device", tmp_path) == {
        "setup": {"browser": f"{tmp_path}/chrome", "source": "x"},
        "remove": {},
    }


def test_a_project_can_be_quiet(export: Path, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.renormlite]\nquiet = true\n")
    done = renormlite("check", export, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


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
