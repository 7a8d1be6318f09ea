"""Protects progress bars: they count steps and are shown only on a terminal, after a delay."""

import io
import sys
import time

import pytest
from renormlite.advance import advanced, counted, listening, partly_done, within
from renormlite.artifacts.directory import read_export
from renormlite.cli import progress_bar
from renormlite.devices import process
from renormlite.devices.base import report_progress
from renormlite.devices.program import write_program
from rich.console import Console


def test_listeners_are_called_before_and_after_each_step() -> None:
    calls: list[tuple[str, int, int]] = []
    with listening(lambda *step: calls.append(step)):
        assert list(counted(["a", "b"])) == ["a", "b"]
    assert calls == [("a", 0, 2), ("a", 1, 2), ("b", 1, 2), ("b", 2, 2)]
    advanced("nobody listens", 1, 1)
    assert len(calls) == 4


def test_parts_of_a_step_are_fractions_of_the_whole_task() -> None:
    calls: list[tuple[str, float, int]] = []
    with listening(lambda *step: calls.append(step)):
        partly_done(0.5)  # of no step
        with within("net.onnx", 2, 8):
            partly_done(0.5)
            with within("with 4 threads", 1, 2):
                partly_done(0.5)
        with within("three files on a device", 3, 8, steps=3):
            partly_done(1.0)
    device = "three files on a device"
    assert calls == [("net.onnx", 2.5, 8), ("net.onnx", 2.75, 8), (device, 6.0, 8)]


@pytest.mark.parametrize("after", [0.0, 60.0])
def test_a_bar_is_shown_only_after_a_delay(after: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bar, "_SHOWN_AFTER_S", after)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    with progress_bar.progress_bar("checking", console):
        time.sleep(0.3)
        advanced("net.onnx on [b]onnxruntime", 1, 4)
        time.sleep(0.3)
    shown = "net.onnx on [b]onnxruntime" in screen.getvalue()
    assert shown == (after == 0)


def test_nothing_is_shown_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bar, "_SHOWN_AFTER_S", 0.0)
    screen = io.StringIO()
    with progress_bar.progress_bar("checking", Console(file=screen)):
        advanced("net.onnx", 1, 4)
    assert screen.getvalue().strip() == ""


def test_a_program_on_a_device_writes_the_share_that_is_done(
    healthy_export, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(process, "_WATCHED_EVERY_S", 0.05)  # the program may end in half a second
    export = read_export(healthy_export)
    files = [entry for entry in export.artifacts if entry.format == "tflite"]
    inputs = export.read_golden().inputs
    program = write_program(export, files, inputs, tmp_path / "run.pyz")
    written = {name: tmp_path / name for name in ("json", "outputs", "progress")}
    options = [word for name, path in written.items() for word in (f"--{name}", str(path))]
    watched: list[bool] = []
    done = process.run(
        [sys.executable, str(program), "--runtime", "litert", *options],
        timeout_s=300,
        watch=lambda: watched.append(True),
    )
    assert done.code == 0, done.err
    assert watched
    share = written["progress"].read_bytes()
    calls: list[float] = []
    with listening(lambda what, part, of: calls.append(part)), within("device", 0, 1):
        for said in (share, b"", b"nan", b"-1", b"7", b"no number"):
            report_progress(said)
    assert calls == [float(share)]
    assert 0 < float(share) <= 1
