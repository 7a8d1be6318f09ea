"""Lists every runtime on every device, with its version or the command that installs it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from ..errors import UserError
from ..runtimes import LOCAL, RUNTIMES, Runtime
from ..runtimes.isolated import environment
from . import BROWSER
from .base import EMULATED_NOTE, DeviceError, DeviceOptions
from .process import run
from .setup.emulated_systems import SYSTEMS, System, find_emulator


@dataclass(frozen=True)
class TargetStatus:
    """One target on this machine.

    Attributes:
        target: As in `--on`; capitals are placeholders.
        usable: Whether a check can run on it now.
        version: Version of the runtime; empty if only the device knows it.
        note: A remark, such as that its speed is emulated.
        command: The command that makes it usable; empty when it is.
    """

    target: str
    usable: bool
    version: str = ""
    note: str = ""
    command: str = ""


def survey(options: DeviceOptions | None = None) -> tuple[TargetStatus, ...]:
    """Return the status of every target, those of this machine first.

    Nothing is installed and no device is contacted; the adb server is asked for its devices.
    """
    options = options or DeviceOptions()
    return (
        *(_local(name, entry) for name, entry in RUNTIMES.items() if entry.home == LOCAL),
        *(status for system in SYSTEMS.values() for status in _emulated(system)),
        *_browser(options),
        _ssh(),
        *_adb(),
    )


def _local(name: str, entry: Runtime) -> TargetStatus:
    """Return the status of a runtime in this Python, or in an environment of its own."""
    if not entry.package:
        return TargetStatus(name, True, note="registered by a user")
    package = entry.install.split("==")[0].split()[-1]
    install = f"{sys.executable} -m pip install {entry.install}"
    if entry.installed:
        try:
            return TargetStatus(name, True, version(package))
        except PackageNotFoundError:
            return TargetStatus(name, True)
    python = environment(name)
    if python is not None:
        program = f"import importlib.metadata as m; print(m.version('{package}'))"
        found = run([str(python), "-c", program], timeout_s=60)
        if found.code == 0:
            note = "in an environment of its own"
            return TargetStatus(name, True, found.out.decode().strip(), note)
    return TargetStatus(name, False, command=install)


def _emulated(system: System) -> Iterator[TargetStatus]:
    """Return the status of each runtime on an emulated system."""
    record = system.component.record()
    ready = record is not None and find_emulator(system) is not None
    versions = record["versions"] if record is not None else {}
    for name in system.runtimes:
        if name in RUNTIMES:
            yield TargetStatus(
                f"{name}@{system.kind}",
                ready,
                versions.get(name, ""),
                EMULATED_NOTE if ready else "",
                "" if ready else f"renormlite device setup {system.kind}",
            )


def _browser(options: DeviceOptions) -> Iterator[TargetStatus]:
    """Return the status of each web runtime."""
    from .chromium import require_browser
    from .setup.web_packages import PACKAGES

    command = program = ""
    try:
        program = str(require_browser(options))
    except DeviceError as error:
        # The message ends with the command, whichever component is missing.
        command = str(error).rpartition(": ")[2]
    record = PACKAGES.record() or {"versions": {}}
    for name, entry in RUNTIMES.items():
        if entry.home == BROWSER:
            yield TargetStatus(
                f"{name}@{BROWSER}", not command, record["versions"].get(name, ""), program, command
            )


def _ssh() -> TargetStatus:
    """Return whether ssh is installed; the device itself is examined when it is used."""
    usable = shutil.which("ssh") is not None
    command = "" if usable else "sudo apt install openssh-client"
    return TargetStatus("RUNTIME@ssh:USER@HOST", usable, "", "any machine with Python", command)


def _adb() -> Iterator[TargetStatus]:
    """Return the attached Android devices, or what is missing."""
    from .adb import attached

    if shutil.which("adb") is None:
        yield TargetStatus("RUNTIME@adb:SERIAL", False, command="sudo apt install adb")
        return
    try:
        devices = attached()
    except UserError as error:
        yield TargetStatus("RUNTIME@adb:SERIAL", False, note=str(error), command="adb start-server")
        return
    for serial, state in devices.items():
        usable = state == "device"
        command = "" if usable else f"adb -s {serial} reconnect"
        yield TargetStatus(f"RUNTIME@adb:{serial}", usable, "", state, command)
    if not devices:
        note = "no device attached: plug one in with USB debugging on"
        yield TargetStatus("RUNTIME@adb:SERIAL", False, "", note, "adb devices")
