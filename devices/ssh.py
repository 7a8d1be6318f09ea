"""Devices reached by ssh, using the user's ssh with its keys, known hosts and configuration."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from .base import ConnectionLostError, DeviceError, DeviceOptions, TargetStatus
from .process import Finished, TimeLimitError, run
from .shell import ShellDevice

_OPTIONS = {
    "BatchMode": "yes",  # a prompt that nobody can answer must be an error, not a hang
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
}
# HOST, USER@HOST, or [IPv6], each with an optional port; never something that ssh reads as an
# option.
_ADDRESS = r"(?P<host>[^\s:\[\]-][^\s:\[\]]*|(?:[^\s:-]\S*@)?\[\S+\])(?::(?P<port>\d+))?"
_FAILED = 255  # ssh's own exit code; all others come from the device


class SshDevice(ShellDevice):
    """`ssh:USER@HOST[:PORT]`; the user may be left out and the host an alias of ssh_config."""

    kind = "ssh"

    def __init__(self, address: str, program: Path, options: DeviceOptions) -> None:
        super().__init__(address, program, options)
        found = re.fullmatch(_ADDRESS, address)
        if found is None:
            raise DeviceError(
                f"A device reached by ssh is ssh:[USER@]HOST[:PORT]. Received: 'ssh:{address}'."
            )
        self._host = found["host"].replace("[", "").replace("]", "")
        port = ["-p", found["port"]] if found["port"] else []
        settings = [part for key, value in _OPTIONS.items() for part in ("-o", f"{key}={value}")]
        self._ssh = ["ssh", "-T", *settings, *port, "--", self._host]
        # The command that a user can run to see the error.
        self._by_hand = " ".join(["ssh", *port, self._host, "true"])

    @classmethod
    def statuses(cls) -> Iterator[TargetStatus]:
        """Yield whether ssh is installed; the device itself is examined when it is used."""
        usable = shutil.which("ssh") is not None
        command = "" if usable else "sudo apt install openssh-client"
        yield TargetStatus("RUNTIME@ssh:USER@HOST", usable, "", "any machine with Python", command)

    def _call(self, command: str, *, stdin: bytes = b"", timeout_s: float = 60.0) -> Finished:
        # The login shell may be any shell; commands always run in the POSIX shell.
        try:
            found = run(
                [*self._ssh, f"sh -c {shlex.quote(command)}"], timeout_s=timeout_s, stdin=stdin
            )
        except TimeLimitError as error:
            raise ConnectionLostError(f"{self.name} gave no answer within {timeout_s:g} s") from (
                error
            )
        if found.code != _FAILED:
            return found
        said = found.err.decode(errors="replace")
        if "Permission denied" in said:
            raise DeviceError(
                f"{self.name} refused the login ({found.last_line}): make `{self._by_hand}` "
                "work without a password first, for instance with ssh-copy-id."
            )
        if "verification failed" in said or "IDENTIFICATION HAS CHANGED" in said:
            raise DeviceError(
                f"ssh does not know the host key of {self.name}, or knows another one: run "
                f"`{self._by_hand}` once by hand and confirm it."
            )
        raise ConnectionLostError(f"{self.name} cannot be reached: {found.last_line}")
