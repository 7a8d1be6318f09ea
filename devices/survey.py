"""Lists every runtime on every device, with its version or the command that installs it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from ..runtimes import LOCAL, RUNTIMES, Runtime
from ..runtimes.isolated import environment
from . import BROWSER, TRANSPORTS, device_class
from .base import DeviceError, DeviceOptions, TargetStatus
from .process import run


def survey(options: DeviceOptions | None = None) -> tuple[TargetStatus, ...]:
    """Return the status of every target, those of this machine first.

    Nothing is installed and no device is contacted; the adb server is asked for its devices.
    """
    options = options or DeviceOptions()
    return (
        *(_local(name, entry) for name, entry in RUNTIMES.items() if entry.home == LOCAL),
        *(status for kind in TRANSPORTS for status in device_class(kind).statuses()),
        *_browser(options),
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
