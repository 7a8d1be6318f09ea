"""Devices with a shell and Python: the steps that ssh and adb share.

All state of a run is in one folder on the device, which `on_device/agent.py` manages. Every step
can be repeated, so that a run resumes after a lost connection: an upload continues at the byte it
had reached, a running job continues, and a result stays until it has been fetched.
"""

from __future__ import annotations

import abc
import hashlib
import json
import shlex
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..runtimes import LOCAL, RUNTIMES
from .base import (
    ConnectionLostError,
    Device,
    DeviceError,
    DeviceOptions,
    ProgramRun,
    read_run,
    report_progress,
)
from .process import Finished

_Result = TypeVar("_Result")
_PROGRAM, _REPORT, _OUTPUTS, _LOG = "run.pyz", "report.json", "outputs.npz", "log.txt"
_OLDEST_PYTHON = (3, 9)
_ROOM = 20_000_000  # bytes that a run may write on the device, beside the program
_STEP_S = 60.0  # time limit of a step that does almost nothing
_PROBE = """
import json, os, platform, shutil, sys, tempfile
folder = tempfile.gettempdir()
print(json.dumps(dict(python=list(sys.version_info[:3]), executable=sys.executable,
    machine=platform.machine(),
    system=platform.platform(), cores=os.cpu_count(), folder=folder,
    free=shutil.disk_usage(folder).free)))
"""


class ShellDevice(Device):
    """A device on which commands can be run; a subclass defines how."""

    def __init__(self, address: str, program: Path, options: DeviceOptions) -> None:
        super().__init__(address, program, options)
        self._folder: str | None = None
        self._probed: dict[str, Any] = {}
        self._loaded: set[str] = set()

    @abc.abstractmethod
    def _call(self, command: str, *, stdin: bytes = b"", timeout_s: float = _STEP_S) -> Finished:
        """Run a command of the POSIX shell on the device.

        Raises:
            ConnectionLostError: The device was not reached, or the connection broke.
            TimeLimitError: The command did not end in time.
        """

    @property
    def _python(self) -> str:
        return shlex.quote(self.options.python)

    # Connecting -------------------------------------------------------------------------------

    def _open(self) -> None:
        self._probed = self._probe()
        size = self.program.stat().st_size
        if self._probed["free"] < size + _ROOM:
            raise DeviceError(
                f"{self.name} has {self._probed['free'] / 1e6:.1f} MB free in "
                f"{self._probed['folder']} and the check takes {(size + _ROOM) / 1e6:.1f} MB: "
                "free some space there."
            )
        lease = max(120.0, 2 * self.options.reconnect_s)
        agent = Path(__file__).with_name("on_device").joinpath("agent.py").read_bytes()
        start = partial(self._checked, f"{self._python} - {lease:g}", stdin=agent)
        self._folder = self._again(start).strip()
        self._upload(self.program, _PROGRAM)

    def _probe(self) -> dict[str, Any]:
        """Return what the device's Python reports about itself and the disk."""
        found = self._call(f"{self._python} -", stdin=_PROBE.encode())
        if found.code in (126, 127):
            raise DeviceError(
                f"{self.name} has no '{self.options.python}': install Python "
                f"{_version(_OLDEST_PYTHON)} or newer there, or name its place with "
                "--device-python."
            )
        try:
            probed: dict[str, Any] = json.loads(found.out)
        except ValueError as error:
            raise DeviceError(
                f"'{self.options.python}' on {self.name} does not run: {found.last_line}"
            ) from error
        if tuple(probed["python"]) < _OLDEST_PYTHON:
            raise DeviceError(
                f"{self.name} has Python {_version(probed['python'])} and the program needs "
                f"{_version(_OLDEST_PYTHON)} or newer: install one there and name it with "
                "--device-python."
            )
        return probed

    def require(self, runtime: str) -> None:
        """Check that the device's Python can load NumPy and a runtime."""
        if runtime in self._loaded:
            return
        entry = RUNTIMES.get(runtime)
        if entry is None or entry.home != LOCAL or not entry.package:
            raise DeviceError(f"{self.name} cannot run '{runtime}', which has no Python package.")
        for module, install in (("numpy", "numpy"), (entry.package, entry.install)):
            found = self._again(partial(self._call, f"{self._python} -c 'import {module}'"))
            if found.code != 0:
                raise DeviceError(
                    f"{self.name} cannot load {module} ({found.last_line}). Install it there: "
                    f"{self.options.python} -m pip install {install}"
                )
        self._loaded.add(runtime)

    def _close(self) -> None:
        if self._folder is None:
            return
        folder, self._folder = self._folder, None
        try:
            self._call(f"rm -rf {folder}", timeout_s=20)
        except DeviceError:
            # Unreachable: the agent removes the folder when its lease runs out.
            return

    def _describe(self) -> dict[str, object]:
        known = ("machine", "system", "cores")
        record: dict[str, object] = {key: self._probed[key] for key in known if key in self._probed}
        if "python" in self._probed:
            record["python"] = _version(self._probed["python"])
        return record

    # Running ----------------------------------------------------------------------------------

    def _run(self, runtime: str, arguments: tuple[str, ...], limit_s: float) -> ProgramRun:
        name = uuid.uuid4().hex
        job = {
            "job": name,
            "command": [
                # The job starts in the folder, so relative paths would not resolve.
                *(self._probed["executable"], _PROGRAM, *arguments),
                *("--json", _REPORT, "--outputs", _OUTPUTS, "--progress", f"{name}.progress"),
            ],
            "timeout_s": limit_s,
            "collect": [_REPORT, _OUTPUTS],
        }
        text = json.dumps(job).encode()
        place = f"{self._folder}/job.json"
        self._again(lambda: self._checked(f"cat > {place}.part && mv {place}.part {place}", text))
        done = self._wait(name, limit_s)
        if done["code"] is None:
            raise DeviceError(
                f"{self.name} did not finish within {limit_s:g} s and was ended; "
                "--device-timeout allows more."
            )
        sizes = done["sizes"]
        files = {file: self._fetch(file, sizes.get(file, 0)) for file in (_REPORT, _OUTPUTS, _LOG)}
        return read_run(
            done["code"],
            files[_REPORT],
            files[_OUTPUTS],
            files[_LOG].decode(errors="replace"),
            self.name,
        )

    def _wait(self, name: str, limit_s: float) -> dict[str, Any]:
        """Return the result of a job, polling across lost connections."""
        deadline = time.monotonic() + limit_s + 2 * _STEP_S
        poll = (
            f"cd {self._folder} && i=0 && while [ $i -lt 40 ] && ! grep -q {name} done.json "
            "2>/dev/null; do touch lease; sleep 0.25; i=$((i+1)); done; "
            f"if [ $i -lt 40 ]; then cat done.json; else cat {name}.progress; fi 2>/dev/null"
        )
        while time.monotonic() < deadline:
            said = self._again(lambda: self._call(poll))
            if name.encode() in said.out:
                done: dict[str, Any] = json.loads(said.out)
                return done
            report_progress(said.out)
            if b"can't cd" in said.err or b"No such file" in said.err:
                raise DeviceError(
                    f"The working folder on {self.name} has vanished; was it restarted?"
                )
        raise DeviceError(f"{self.name} stopped answering while it ran the program.")

    # Files ------------------------------------------------------------------------------------

    def _upload(self, file: Path, name: str) -> None:
        """Copy a file into the folder, resuming after a lost connection."""
        data = file.read_bytes()
        place = f"{self._folder}/{name}"

        def reached() -> int:
            return int(self._checked(f"touch {self._folder}/lease {place}; wc -c < {place}"))

        have = self._again(reached)
        moved = time.monotonic()
        while have != len(data):
            try:
                rest, limit = data[have:], self.options.timeout_s
                self._checked(f"cat >> {place}", stdin=rest, timeout_s=limit)
            except ConnectionLostError as error:
                if time.monotonic() - moved > self.options.reconnect_s:
                    raise self._lost(error) from error
            now = self._again(reached)
            if now > have:
                moved = time.monotonic()
            have = now
            if have > len(data):  # two writers at once: the earlier connection was still alive
                self._again(lambda: self._checked(f": > {place}"))
                have = 0
        hashed = "import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())"
        arrived = self._again(lambda: self._checked(f"{self._python} -c '{hashed}' < {place}"))
        if arrived.strip() != hashlib.sha256(data).hexdigest():
            raise DeviceError(f"{file.name} arrived damaged on {self.name}: run the check again.")

    def _fetch(self, name: str, size: int) -> bytes:
        """Return a file of the folder, resuming after a lost connection."""
        data = b""
        while len(data) < size:
            offset = len(data) + 1
            command = f"tail -c +{offset} {self._folder}/{name}"
            part = self._again(partial(self._call, command, timeout_s=self.options.timeout_s))
            if part.code != 0 or not part.out:
                raise DeviceError(f"{name} could not be read on {self.name}: {part.last_line}")
            data += part.out
        return data

    def _checked(self, command: str, stdin: bytes = b"", timeout_s: float = _STEP_S) -> str:
        """Run a command that must succeed and return its output."""
        found = self._call(command, stdin=stdin, timeout_s=timeout_s)
        if found.code != 0:
            if b"No space left" in found.err + found.out:
                raise DeviceError(
                    f"{self.name} has no space left for the program: free some there, or set "
                    "TMPDIR to a folder with more."
                )
            raise DeviceError(f"A step failed on {self.name}: {found.last_line}")
        return found.out.decode(errors="replace")

    def _again(self, step: Callable[[], _Result]) -> _Result:
        """Repeat a step while its connection is lost, within the time that the options allow."""
        deadline = time.monotonic() + self.options.reconnect_s
        pause = 0.25
        while True:
            try:
                return step()
            except ConnectionLostError as error:
                if time.monotonic() + pause > deadline:
                    raise self._lost(error) from error
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _lost(self, error: ConnectionLostError) -> DeviceError:
        return DeviceError(
            f"The connection to {self.name} broke and did not come back within "
            f"{self.options.reconnect_s:g} s: {error}"
        )


def _version(parts: tuple[int, ...] | list[int]) -> str:
    return ".".join(str(part) for part in parts)
