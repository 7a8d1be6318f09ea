"""Protects progress bars: they count steps and are shown only on a terminal, after a delay."""

import io
import time

import pytest
from renormlite.advance import advanced, counted, listening
from renormlite.cli import progress_bar
from rich.console import Console


def test_listeners_are_called_before_and_after_each_step() -> None:
    calls: list[tuple[str, int, int]] = []
    with listening(lambda *step: calls.append(step)):
        assert list(counted(["a", "b"])) == ["a", "b"]
    assert calls == [("a", 0, 2), ("a", 1, 2), ("b", 1, 2), ("b", 2, 2)]
    advanced("nobody listens", 1, 1)
    assert len(calls) == 4


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
