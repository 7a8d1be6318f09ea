"""Ends a command on Ctrl-C or a termination signal, after all clean-up code has run."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import click

_AGAIN_S = 1.0
_NATIVE_S = 3.0  # in which native code returns, or the process ends without clean-up
_NAMES: dict[int, str] = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "a request to terminate"}


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into SystemExit inside the block.

    The exit code is 128 plus the number of the signal. Native code that calls back into Python can
    swallow the exception, and so can an `except` in a library; the exit is therefore requested
    again every second until it takes effect. It is not requested again while the stack unwinds, so
    that clean-up is not interrupted. Native code that does not return, such as a runtime in an
    endless loop of a file, would never let Python handle the signal; the process then ends without
    clean-up, and the next command removes its temporary files.
    """
    received: list[int] = []

    def end(number: int, _frame: object) -> None:
        if number in (signal.SIGINT, signal.SIGTERM):
            received.append(number)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        if not isinstance(sys.exc_info()[1], SystemExit):
            sys.exit(128 + received[0])

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGALRM"):
        numbers.append(signal.SIGALRM)
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        with _despite_native_code(received):
            yield
    except SystemExit:
        if received:
            click.echo(_sentence(received[0]), err=True)
        raise
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _sentence(number: int) -> str:
    return f"renormlite: ended by {_NAMES[number]}."


@contextlib.contextmanager
def _despite_native_code(received: list[int]) -> Iterator[None]:
    """End the process if Python does not handle a signal in time.

    Args:
        received: Where the handler of Python notes the signals.
    """
    reading, writing = socket.socketpair()
    writing.setblocking(False)

    def watch() -> None:
        while number := int.from_bytes(reading.recv(1), "big"):
            if number in _NAMES and not handled.wait(_NATIVE_S) and not received:
                os.write(2, f"{_sentence(number)}\n".encode())
                os._exit(128 + number)

    handled = threading.Event()
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        handled.set()
        signal.set_wakeup_fd(before)
        writing.close()
        watcher.join()
        reading.close()


def _forget_watcher() -> None:
    """Keep the signals of a forked process from the watcher of its parent."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_watcher)
