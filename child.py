"""Calls functions in a child process, so that a crash of native code does not end this process.

A converter that follows a null pointer or fails an assertion ends its process; an `except` clause
cannot prevent it. The child process is started at the first call and serves one call after the
other. It ends when its parent ends, after some idle time, or after a number of calls, since native
libraries leak memory.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, ParamSpec, TypeVar

from .errors import UserError
from .locks import temporary_folder
from .quiet import quiet_import

P = ParamSpec("P")
T = TypeVar("T")

_IDLE = 30.0  # seconds
# TensorFlow's int8 converter leaks 1.4 MB per call; this many leak no more than its own size.
_CALLS = 200
_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import {0}; {0}.serve({1!r})"
_PRINTED = "stderr"  # file in the child's folder
_PR_SET_PDEATHSIG = 1  # sys/prctl.h


class DiedError(Exception):
    """The child process ended before it answered.

    Attributes:
        code: The return code; a signal's number, negative.
        cause: The signal's name, such as `SIGSEGV`, or the exit code.
        printed: Its output on standard error.
    """

    def __init__(self, code: int, printed: str) -> None:
        """Take the child's return code and what it printed."""
        self.code = code
        self.cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self.printed = printed
        super().__init__(f"{self.cause}: {printed}" if printed else self.cause)


class Child:
    """One child process, started on first use."""

    def __init__(self) -> None:
        """Create the object; the process is not started yet."""
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = contextlib.ExitStack()
        self._folder: Path | None = None
        self._calls = 0
        self._parent = os.getpid()
        self._lock = threading.Lock()

    def warm(self, module: str) -> None:
        """Start the child if necessary, and import a module in it in the background."""
        with self._lock:
            self._running(module)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in the child.

        Args:
            function: A top-level function of a module; the child imports that module, which should
                import only what the function needs.
            args: Positional arguments; arguments and the result are copied between processes.
            kwargs: Keyword arguments.

        Raises:
            DiedError: The child ended during the call. The next call starts another one.
            Exception: The exception that the function raises.
        """
        with self._lock:
            try:
                answer = self._answer(pickle.dumps((function, args, kwargs)))
            except BaseException:  # also an interrupt: a child during a call cannot be used again
                self._end()
                raise
            self._calls += 1
            if self._calls >= _CALLS:
                self._end()
        succeeded, value = pickle.loads(answer)
        if not succeeded:
            raise value
        result: T = value
        return result

    def _answer(self, request: bytes) -> bytes:
        try:
            return self._exchange(self._running(), request)
        except DiedError as died:
            if died.code:
                raise
        # The idle child ended at the time of the call.
        self._end()
        return self._exchange(self._running(), request)

    def close(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            if self._parent == os.getpid():
                self._end()

    def kill(self) -> None:
        """End the child in the middle of a call, which raises `DiedError` in its thread."""
        process = self._process
        if process is not None and self._parent == os.getpid():
            process.kill()

    def _running(self, module: str = "") -> subprocess.Popen[bytes]:
        """Return the process; start one, which first imports a module, if there is none."""
        if self._parent != os.getpid():  # after a fork, the child belongs to the other process
            self._process, self._folder, self._parent = None, None, os.getpid()
            self._stack = contextlib.ExitStack()
        if self._process is not None and self._process.poll() is not None:
            self._end()  # it was idle for too long
        if self._process is None:
            # The child's temporary files are in this folder, so they are removed if it crashes.
            self._folder = self._stack.enter_context(temporary_folder())
            program = _PROGRAM.format(__name__, module)
            with open(self._folder / _PRINTED, "wb") as printed:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", program, json.dumps(sys.path)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=printed,
                    env=os.environ | {"TMPDIR": str(self._folder)},
                    start_new_session=True,  # Ctrl-C goes to the parent, which ends the child
                )
            self._calls = 0
        return self._process

    def _exchange(self, process: subprocess.Popen[bytes], request: bytes) -> bytes:
        assert process.stdin is not None
        assert process.stdout is not None
        assert self._folder is not None
        try:
            _send(process.stdin, request)
            return _receive(process.stdout)
        except (EOFError, BrokenPipeError):
            code = process.wait()
            printed = (self._folder / _PRINTED).read_text(errors="replace").strip()
            raise DiedError(code, printed) from None

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(BrokenPipeError), process:
                pass  # closes the pipes and waits
        self._folder = None
        self._stack.close()


#: The child process shared by all code of this process, so that modules are imported once.
shared = Child()
atexit.register(shared.close)


def serve(module: str) -> None:
    """Serve calls from standard input until it closes or nothing has come for a while.

    Args:
        module: The module to import first; empty for none.
    """
    if sys.platform == "linux":  # also if the parent is killed during a call
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the output of native code must not mix with the answers
    if module:
        quiet_import(module)
    while select.select([requests], [], [], _IDLE)[0]:
        try:
            _send(answers, _answer(requests))
        except EOFError:
            return


def _answer(requests: IO[bytes]) -> bytes:
    """Receive one call; return its pickled outcome: whether it succeeded, and result or exception.

    No copy of the request is in memory during the call.

    Raises:
        EOFError: The stream has ended.
    """
    request = _receive(requests)
    try:
        function, args, kwargs = pickle.loads(request)
        del request
        return pickle.dumps((True, function(*args, **kwargs)))
    except Exception as error:
        # Exception types of libraries may not be picklable; their text is.
        whole = isinstance(error, (UserError, ImportError)) or type(error).__module__ == "builtins"
        return pickle.dumps((False, error if whole else RuntimeError(str(error))))


def _send(stream: IO[bytes], data: bytes) -> None:
    stream.write(len(data).to_bytes(8, "little"))
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes:
    return _exactly(stream, int.from_bytes(_exactly(stream, 8), "little"))


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data
