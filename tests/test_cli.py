"""Protects the command line: help without TensorFlow, exit codes, one-line errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from renormlite import UserError
from renormlite.cli.main import COMMANDS, cli
from renormlite.files import write_text

TAKE_A_MODEL = [("inspect",), ("fold", "-o", "folded.keras"), ("export",)]


def renormlite(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "renormlite", *arguments], capture_output=True, text=True
    )


def test_help_lists_every_command_in_the_order_of_use() -> None:
    text = CliRunner().invoke(cli, ["--help"]).output
    places = [text.index(f"\n  {name} ") for name in COMMANDS]
    assert places == sorted(places)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


def test_unknown_command_exits_2_with_one_sentence() -> None:
    run = renormlite("exprot")
    assert run.returncode == 2
    assert "No such command 'exprot'. Did you mean 'export'?" in run.stderr
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


def test_errors_are_shown_without_banners() -> None:
    """TensorFlow prints about twelve lines while it loads; none of them may be shown."""
    run = renormlite("export", "no/such/model.keras")
    assert len(run.stderr.strip().splitlines()) == 1, run.stderr


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        (
            "check",
            [
                *("Samples", "Selection", "Checks", "Quality"),
                *("Against a Keras model", "Model", "Reports", "Devices"),
            ],
        ),
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
     ["inspect", "a.keras", "--picture", "a.png"], ["bundle", "a", "-o", "a.zip"],
     ["check", "a", "--html", "a.htm"], ["check", "a", "--junit", "a.txt"],
     ["compare", "a.onnx", "b.onnx", "--html", "a.pdf"], ["certify", "a.txt"]],
)  # fmt: skip
def test_a_wrong_suffix_gives_the_same_error_in_every_command(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").touch()
    with pytest.raises(
        UserError, match=r"Expected a file name that ends in \.\w+( or \.\w+)?\. Received: 'a"
    ):
        CliRunner().invoke(cli, arguments, catch_exceptions=False)


def test_a_path_that_cannot_be_written_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/out\.json cannot be written \(File exists\)"):
        write_text(tmp_path / "file" / "out.json", "{}")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match=r"folder\.json cannot be written \(Is a directory\)"):
        write_text(tmp_path / "folder.json", "{}")
    with pytest.raises(UserError, match="File name too long"):
        write_text(tmp_path / ("x" * 300), "{}")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.json"]


PROGRAM = """
import sys, click
from renormlite.cli import main
@click.command()
def command():
    {body}
main.LazyGroup.get_command = lambda self, ctx, name: command
sys.argv = ["renormlite", "bench"]
main.main()
"""


def ran(body: str, **options: object) -> subprocess.Popen[str]:
    program = PROGRAM.format(body=body)
    return subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, **options
    )


def test_an_internal_error_is_called_a_bug_and_logged(tmp_path: Path) -> None:
    run = ran("raise KeyError('x\\x1b[31m')", env=os.environ | {"TMPDIR": str(tmp_path)})
    _, stderr = run.communicate()
    assert run.returncode == 3
    assert "this is a bug in renormlite (KeyError" in stderr
    assert "\x1b" not in stderr
    (log,) = tmp_path.glob("renormlite-*.log")
    assert "Traceback" in log.read_text()


def test_errors_of_the_system_are_one_line() -> None:
    run = ran("open('/nonexistent/file')")
    _, stderr = run.communicate()
    assert run.returncode == 2
    assert stderr.startswith("renormlite: /nonexistent/file: No such file or directory")
    assert len(stderr.splitlines()) == 1


def test_warnings_are_one_line_without_control_characters() -> None:
    _, stderr = ran("import warnings; warnings.warn('a\\x1b[31m\\n b')").communicate()
    assert stderr == "renormlite: warning: a\\x1b[31m b\n"


def test_too_little_memory_is_one_line() -> None:
    run = ran("raise MemoryError('Unable to allocate 9 TiB')")
    _, stderr = run.communicate()
    assert run.returncode == 2
    assert stderr.startswith("renormlite: there is too little memory (Unable to allocate 9 TiB)")
    assert len(stderr.splitlines()) == 1


def test_an_interrupt_ends_native_code_that_does_not_return() -> None:
    body = """
    import ctypes
    lock, lib = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    print("ready", file=sys.stderr, flush=True)
    for _ in range(2):  # a mutex that is locked twice is never free
        lib.pthread_mutex_lock(lock)"""
    run = ran(body)
    assert run.stderr is not None
    assert run.stderr.readline() == "ready\n"
    time.sleep(0.5)
    run.send_signal(signal.SIGTERM)
    _, stderr = run.communicate(timeout=20)
    assert run.returncode == 143
    assert stderr == "renormlite: ended by a request to terminate.\n"


def test_an_interrupt_that_a_library_swallows_still_ends_the_command() -> None:
    body = """
    import time
    while True:
        try:
            print("ready", file=sys.stderr, flush=True)
            time.sleep(30)
        except BaseException:
            pass
        else:
            break
        try:
            time.sleep(30)
        finally:
            print("cleaned", file=sys.stderr, flush=True)"""
    run = ran(body)
    assert run.stderr is not None
    assert run.stderr.readline() == "ready\n"
    run.send_signal(signal.SIGINT)
    _, stderr = run.communicate(timeout=20)
    assert run.returncode == 130
    assert stderr == "cleaned\nrenormlite: ended by Ctrl-C.\n"


@pytest.mark.parametrize("after_s", [0.05, 0.3, 1.0, 3.0])
def test_an_interrupt_at_any_moment_is_one_line(after_s: float, tmp_path: Path) -> None:
    program = (
        "import sys; from renormlite.__main__ import main; print('ready', flush=True); "
        "sys.argv = ['renormlite', 'train', 'digits', '-o', sys.argv[1]]; main()"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "m.keras")],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        text=True,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    time.sleep(after_s)
    run.send_signal(signal.SIGINT)
    _, stderr = run.communicate(timeout=60)
    assert run.returncode == 130
    assert stderr.splitlines()[-1:] == ["renormlite: ended by Ctrl-C."]
    assert "Traceback" not in stderr
    assert not list(tmp_path.iterdir())


def test_an_interrupt_after_the_end_changes_nothing() -> None:
    """Libraries take a second to unload, when Python has no handler of signals any more."""
    program = (
        "import sys, time; from renormlite.__main__ import main\n"
        "class Library:\n"
        "    def __del__(self, sleep=time.sleep, err=sys.stderr):\n"
        "        print('unloading', file=err, flush=True); sleep(2)\n"
        "library = Library(); sys.argv = ['renormlite', '--version']; main()"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stderr is not None
    assert run.stderr.readline() == "unloading\n"
    run.send_signal(signal.SIGINT)
    _, stderr = run.communicate(timeout=20)
    assert (run.returncode, stderr) == (0, "")


def test_certify_names_operators_that_are_undecided_for_one_reason_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from renormlite.reference.integer.certificate import Certificate, CertifiedOp
    from renormlite.runtime_checks.certification import FileCertificate

    ops = [CertifiedOp(index, "Sub", "x", "", why="a difference") for index in (3, 5)]
    ops.append(CertifiedOp(7, "Div", "y", "", why="a quotient"))
    found = FileCertificate("a.onnx", Certificate(tuple(ops), ("LiteRT", "ONNX Runtime")))
    monkeypatch.setattr("renormlite.cli.certify.certify", lambda path: found)
    (tmp_path / "a.onnx").touch()
    shown = CliRunner().invoke(cli, ["certify", str(tmp_path / "a.onnx")]).output
    assert "ops 3, 5 (Sub) are undecided: a difference" in shown
    assert "op 7 (Div) is undecided: a quotient" in shown
