"""Android devices, reached through the user's adb.

`adb:SERIAL` runs the program with a Python of the device: one that the shell user can start, or
Termux's, where Android lets the shell act as that app. A device without Python runs
LiteRT's `benchmark_model` instead (`benchmark_model.py`).
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from .base import ConnectionLostError, DeviceError, DeviceOptions, TargetStatus
from .process import Finished, TimeLimitError, run
from .shell import ShellDevice

_INSTALL = "Install it: sudo apt install adb"
_TERMUX = "/data/data/com.termux/files"
# The environment of a command that runs as Termux.
_AS_TERMUX = (
    f"run-as com.termux env HOME={_TERMUX}/home TMPDIR={_TERMUX}/usr/tmp PREFIX={_TERMUX}/usr "
    f"LD_LIBRARY_PATH={_TERMUX}/usr/lib PATH={_TERMUX}/usr/bin:$PATH"
)
# Where the shell's user may write; some Androids export it, others leave it to the caller.
_TMPDIR = "export TMPDIR=${TMPDIR:-/data/local/tmp}; "
_END = "renormlite-exit:"


class Adb:
    """One Android device behind the adb server.

    Args:
        serial: Its serial number; empty if only one is attached.
        name: The device as a target names it, for messages.

    Raises:
        DeviceError: adb is missing, or there is not exactly one such device, ready for use.
    """

    def __init__(self, serial: str, name: str) -> None:
        if shutil.which("adb") is None:
            raise DeviceError(
                f"Android devices are reached through adb, which is not installed. {_INSTALL}"
            )
        self.name = name
        self.serial = _choose(serial, attached())
        features = run(["adb", "-s", self.serial, "features"], timeout_s=30)
        if b"shell_v2" not in features.out:
            raise DeviceError(
                f"{name} reports no exit codes over adb; it needs Android 7 or newer."
            )

    def shell(self, command: str, *, stdin: bytes = b"", timeout_s: float = 60.0) -> Finished:
        """Run a command of the device's shell.

        Raises:
            ConnectionLostError: The device was unplugged or went silent.
        """
        # adb reports its own failures with ordinary exit codes. Only the line that the device
        # prints at the end proves that the command completed.
        script = f"{_TMPDIR}{command}\ncode=$?; echo {_END}$code >&2; exit $code"
        found = self._adb("shell", script, stdin=stdin, timeout_s=timeout_s)
        err, mark, code = found.err.decode(errors="replace").rpartition(_END)
        if not mark:
            raise ConnectionLostError(f"{self.name} went away: {found.last_line}")
        return Finished(int(code), found.out, err.encode())

    def push(self, file: Path, remote: str, *, timeout_s: float) -> None:
        """Copy a file to the device."""
        found = self._adb("push", str(file), remote, timeout_s=timeout_s)
        if found.code != 0:
            self._fail(found)

    def pull(self, remote: str, file: Path, *, timeout_s: float) -> None:
        """Copy a file from the device."""
        found = self._adb("pull", remote, str(file), timeout_s=timeout_s)
        if found.code != 0:
            self._fail(found)

    def _fail(self, found: Finished) -> None:
        said = (found.err + found.out).decode(errors="replace")
        if "No space left" in said:
            raise DeviceError(
                f"{self.name} has no space left: free some in /data/local/tmp, or delete apps."
            )
        if re.search(r"not found|offline|closed|no devices", said) and "No such file" not in said:
            raise ConnectionLostError(f"{self.name} went away: {found.last_line}")
        raise DeviceError(f"A file could not be copied to or from {self.name}: {found.last_line}")

    def _adb(self, *arguments: str, stdin: bytes = b"", timeout_s: float) -> Finished:
        try:
            return run(["adb", "-s", self.serial, *arguments], timeout_s=timeout_s, stdin=stdin)
        except TimeLimitError as error:
            raise ConnectionLostError(
                f"{self.name} gave no answer within {timeout_s:g} s"
            ) from error


class AdbDevice(ShellDevice):
    """`adb[:SERIAL]`, by the device's own Python."""

    kind = "adb"

    def __init__(self, address: str, program: Path, options: DeviceOptions) -> None:
        super().__init__(address, program, options)
        self._adb: Adb | None = None
        self._prefix = ""

    @classmethod
    def statuses(cls) -> Iterator[TargetStatus]:
        """Yield the attached Android devices, or what is missing."""
        name = "RUNTIME@adb:SERIAL"
        if shutil.which("adb") is None:
            yield TargetStatus(name, False, command="sudo apt install adb")
            return
        try:
            devices = attached()
        except DeviceError as error:
            yield TargetStatus(name, False, note=str(error), command="adb start-server")
            return
        for serial, state in devices.items():
            usable = state == "device"
            command = "" if usable else f"adb -s {serial} reconnect"
            yield TargetStatus(f"RUNTIME@adb:{serial}", usable, "", state, command)
        if not devices:
            note = "no device attached: plug one in with USB debugging on"
            yield TargetStatus(name, False, "", note, "adb devices")

    def _open(self) -> None:
        self._adb = Adb(self.address, self.name)
        self._prefix = self._find_python()
        super()._open()

    def _find_python(self) -> str:
        """Return what goes before a command so that it can start Python."""
        for prefix in ("", _AS_TERMUX):
            self._prefix = prefix
            if self._call(f"command -v {self._python}").code == 0:
                return prefix
        raise DeviceError(
            f"{self.name} has no '{self.options.python}' that adb's shell may start. Name its "
            "place with --device-python; or let Termux's sshd serve (adb forward tcp:8022 "
            "tcp:8022, then ssh:127.0.0.1:8022); or give LiteRT's benchmark_model built for the "
            "device with --benchmark-model PATH."
        )

    def _call(self, command: str, *, stdin: bytes = b"", timeout_s: float = 60.0) -> Finished:
        if self._adb is None:
            raise ConnectionLostError(f"{self.name} is not connected")
        if self._prefix:
            command = f"{self._prefix} sh -c {shlex.quote(command)}"
        return self._adb.shell(command, stdin=stdin, timeout_s=timeout_s)

    def _describe(self) -> dict[str, object]:
        return {**super()._describe(), "serial": self._adb.serial if self._adb else ""}


def attached() -> dict[str, str]:
    """Return serial number to state of every device that the adb server knows."""
    found = run(["adb", "devices"], timeout_s=60)
    if found.code != 0:
        raise DeviceError(f"The adb server does not answer: {found.last_line}")
    lines = found.out.decode(errors="replace").splitlines()
    rows = [line.split("\t") for line in lines if "\t" in line]
    return {row[0].strip(): row[1].strip() for row in rows}


def _choose(serial: str, attached: dict[str, str]) -> str:
    """Return the serial number of the requested device."""
    if serial and serial not in attached:
        known = f"Attached are {', '.join(attached)}." if attached else "None is attached."
        raise DeviceError(
            f"No Android device '{serial}' is attached: plug it in with USB debugging on. {known}"
        )
    if not attached:
        raise DeviceError(
            "No Android device is attached: plug one in, with USB debugging on; `adb devices` "
            "must list it."
        )
    if not serial and len(attached) > 1:
        raise DeviceError(
            f"Several Android devices are attached ({', '.join(attached)}): name one as "
            f"adb:{next(iter(attached))}."
        )
    chosen = serial or next(iter(attached))
    mend = {
        "unauthorized": "confirm the dialog about USB debugging on its screen",
        "offline": "unplug it and plug it in again",
        "no permissions": "give your user access to it (udev rules of the package android-sdk)",
    }
    state = attached[chosen]
    if state != "device":
        cure = next((cure for word, cure in mend.items() if state.startswith(word)), "")
        raise DeviceError(
            f"The Android device '{chosen}' is not ready ({state})"
            + (f": {cure}." if cure else ".")
        )
    return chosen
