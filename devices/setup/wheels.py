"""Unpacks wheels for another architecture, with the user's pip."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from ..base import DeviceError
from ..process import run
from . import pins


def require_pip() -> None:
    """Check that this Python has pip.

    Raises:
        DeviceError: It does not.
    """
    if importlib.util.find_spec("pip") is None:
        raise DeviceError(
            f"This Python has no pip, which fetches the device's wheels. Install it: "
            f"{sys.executable} -m ensurepip"
        )


def install(requirements: Sequence[str], machine: str, folder: Path) -> None:
    """Unpack wheels for another architecture into a folder.

    Args:
        requirements: Requirements as for pip.
        machine: The architecture in wheel tags: `aarch64`, `armv7l`.
        folder: Receives the content of `site-packages`.

    Raises:
        DeviceError: pip could not get them.
    """
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(pins.GLIBC, 16, -1)]
    tags += [f"manylinux2014_{machine}", f"linux_{machine}"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-compile", "--no-warn-conflicts", "--only-binary=:all:"]
    command += ["--implementation", "cp", "--python-version", pins.PYTHON]
    command += ["--abi", f"cp{pins.PYTHON.replace('.', '')}", "--abi", "abi3", "--abi", "none"]
    command += [part for tag in tags for part in ("--platform", tag)]
    result = run([*command, "--target", str(folder), *requirements], timeout_s=900)
    if result.code != 0:
        raise DeviceError(f"pip could not get {', '.join(requirements)}: {result.last_line}")
