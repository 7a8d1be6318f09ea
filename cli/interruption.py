"""Ends a command on Ctrl-C or a termination signal, after all clean-up code has run."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator

import click

_AGAIN_S = 1.0
_NAMES: dict[int, str] = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "a request to terminate"}


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into SystemExit inside the block.

    The exit code is 128 plus the number of the signal. Native code that calls back into Python can
    swallow the exception, and so can an `except` in a library; the exit is therefore requested
    again every second until it takes effect. It is not requested again while the stack unwinds, so
    that clean-up is not interrupted.
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
        yield
    except SystemExit:
        if received:
            click.echo(f"renormlite: ended by {_NAMES[received[0]]}.", err=True)
        raise
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
