"""Runs a command with a time limit, in a process group that ends with the call."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .base import DeviceError

_WATCHED_EVERY_S = 0.5


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: bytes
    err: bytes

    @property
    def last_line(self) -> str:
        """The last line of its output that is not empty, where programs put the reason."""
        said = (self.err.strip() or self.out.strip()).decode(errors="replace")
        return said.splitlines()[-1].strip() if said else f"exit code {self.code}"


class TimeLimitError(DeviceError):
    """The command exceeded its time limit and was ended."""


def run(
    command: Sequence[str],
    *,
    timeout_s: float,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    watch: Callable[[], None] | None = None,
) -> Finished:
    """Run a command.

    Args:
        command: Program and arguments; no shell is involved.
        timeout_s: Time limit in seconds; then the program and its children are ended.
        stdin: Bytes for its standard input.
        env: Its whole environment; None for this process' own.
        cwd: Its working directory.
        watch: Called twice a second while it runs.

    Raises:
        TimeLimitError: It did not end in time.
        DeviceError: There is no such program.
    """
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise DeviceError(f"There is no program '{command[0]}' on this machine.") from error
    with process:
        try:
            out, err = _communicate(process, stdin, timeout_s, watch)
        except subprocess.TimeoutExpired as error:
            raise TimeLimitError(
                f"'{Path(command[0]).name}' gave no answer within {timeout_s:g} s."
            ) from error
        finally:
            # Also on an interrupt: no child may outlive the call.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return Finished(process.returncode, out, err)


def _communicate(
    process: subprocess.Popen[bytes],
    stdin: bytes,
    timeout_s: float,
    watch: Callable[[], None] | None,
) -> tuple[bytes, bytes]:
    """Return what a process writes on standard output and standard error."""
    if watch is None:
        return process.communicate(stdin, timeout=timeout_s)
    end, given = time.monotonic() + timeout_s, stdin or None
    while True:
        left = end - time.monotonic()
        try:
            return process.communicate(given, timeout=min(max(left, 0), _WATCHED_EVERY_S))
        except subprocess.TimeoutExpired:
            if left <= 0:
                raise
        given = None  # it was given by the first call
        watch()
