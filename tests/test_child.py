"""Protects the process from crashes of native code: a child process crashes instead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
import renormlite as rl
from renormlite.child import Child, DiedError


def double(value: int) -> int:
    return 2 * value


def process() -> int:
    return os.getpid()


def die(number: int) -> None:
    os.write(2, b"assertion x > 0 failed\n")
    tempfile.mkdtemp()
    os.kill(os.getpid(), number)


def refuse() -> None:
    raise rl.UserError("Expected a number.")


def print_a_lot() -> str:
    os.write(1, b"not an answer" * 10_000)
    return "an answer"


class OwnError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def fail() -> None:
    raise OwnError("both", "words")


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    child = Child()
    yield child
    child.close()
    assert not list(tmp_path.iterdir())


def test_calls_run_in_one_child_process(child: Child) -> None:
    assert child.call(double, 21) == 42
    assert child.call(double, value=4) == 8
    assert child.call(process) == child.call(process) != os.getpid()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_is_an_exception_and_the_next_call_starts_a_new_process(
    child: Child, number: int
) -> None:
    with pytest.raises(DiedError, match="assertion x > 0 failed") as died:
        child.call(die, number)
    assert died.value.cause == signal.Signals(number).name
    assert child.call(double, 1) == 2


def test_exceptions_are_raised_in_the_caller(child: Child) -> None:
    with pytest.raises(rl.UserError, match=r"Expected a number\."):
        child.call(refuse)
    with pytest.raises(RuntimeError, match="both words"):
        child.call(fail)


def test_output_of_native_code_does_not_disturb_results(child: Child) -> None:
    assert child.call(print_a_lot) == "an answer"


def test_a_child_is_replaced_after_many_calls(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("renormlite.child._CALLS", 2)
    first = child.call(process)
    assert child.call(process) == first
    assert child.call(process) != first


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_the_parent_ends_both_processes(number: int, tmp_path: Path) -> None:
    program = f"""
        import sys
        sys.path[:] = {sys.path!r}
        import time
        from renormlite.child import shared
        import os
        import signal
        # A background job inherits an ignored SIGINT.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print(shared.call(os.getpid), flush=True)
        shared.call(time.sleep, 60)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    with parent:
        pid = int(parent.stdout.readline())
        time.sleep(0.2)  # until the second call runs
        parent.send_signal(number)
        parent.wait(10)
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child process is still running")
    if number == signal.SIGINT:
        assert not list(tmp_path.iterdir())
