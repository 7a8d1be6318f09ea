"""The interface of a device: receive a program, run it, return its outputs.

A device is reached by a transport (a process under an emulator, ssh, adb). Every failure
becomes a `DeviceError` with one sentence, and nothing is left on the device or on this machine.
"""

# ruff: noqa: RUF009 (`option` makes a dataclass field)

from __future__ import annotations

import abc
import contextlib
import io
import json
import signal
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..advance import partly_done
from ..errors import UserError
from ..options import option, validate
from ..runtimes.managed import Managed

_GROUP = "Devices"

EMULATED_NOTE = "emulated: speed and memory are not those of a device"


class DeviceError(UserError):
    """A device that cannot be reached or used; the message is one sentence and says what to do."""


class CrashError(DeviceError):
    """The program was ended by a signal: the runtime crashed on an artifact."""


class ConnectionLostError(DeviceError):
    """The connection to the device was lost; the step may succeed when it is repeated."""


@dataclass(frozen=True)
class DeviceOptions:
    """Options for devices other than this machine; the flags explain them."""

    timeout_s: float = option(
        300.0,
        "--device-timeout",
        "Longest time that one file may take on a device.",
        group=_GROUP,
        above=0,
        metavar="SECONDS",
    )
    reconnect_s: float = option(
        60.0, "", "Longest time to retry after a connection broke.", group=_GROUP, above=0
    )
    python: str = option(
        "python3",
        "--device-python",
        "Python on a device reached by ssh or adb.",
        group=_GROUP,
        metavar="PATH",
    )
    browser: Path | None = option(
        None,
        "--browser",
        "Browser to start for the device 'browser'.  [default: Chromium or Chrome on the PATH]",
        group=_GROUP,
        kind=Path,
    )
    benchmark_model: Path | None = option(
        None,
        "--benchmark-model",
        "LiteRT's benchmark_model built for an Android device without Python.",
        group=_GROUP,
        kind=Path,
    )

    def __post_init__(self) -> None:
        validate(self)


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


@dataclass(frozen=True)
class ProgramRun:
    """The result of a program on a device.

    Attributes:
        exit_code: Exit code of the program: 0 when it ran, 2 when it could not.
        report: The JSON that the program wrote, with the device's own description added under
            `device`.
        outputs: The outputs of the runtime, as FILE:NAME.
        log: What the program printed.
    """

    exit_code: int
    report: Mapping[str, Any]
    outputs: Mapping[str, np.ndarray]
    log: str = field(repr=False, default="")


def report_progress(share: bytes) -> None:
    """Report the share of its work that a program on a device has written; ignore other bytes."""
    with contextlib.suppress(ValueError):
        done = float(share)
        if 0 <= done <= 1:
            partly_done(done)


def read_run(exit_code: int, report: bytes, outputs: bytes, log: str, where: str) -> ProgramRun:
    """Read the files that a program wrote.

    Args:
        exit_code: Exit code of the program.
        report: Its JSON; empty when it wrote none.
        outputs: Its `.npz` of outputs; empty when it wrote none.
        log: What it printed.
        where: The device, for the message.

    Raises:
        DeviceError: The program wrote no report; the message ends with the last line of its log.
    """
    if not report:
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        if exit_code < 0 or exit_code > 128:
            number = -exit_code if exit_code < 0 else exit_code - 128
            name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
            raise CrashError(f"the runtime crashed on {where} ({name})")
        reason = lines[-1] if lines else f"exit code {exit_code}"
        raise DeviceError(f"The program returned no results on {where}: {reason}")
    try:
        verdict = json.loads(report)
        with np.load(io.BytesIO(outputs), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise DeviceError(f"The results from {where} are truncated or damaged: {error}") from error
    return ProgramRun(exit_code, verdict, arrays, log)


class Device(Managed):
    """A place that runs programs; a context manager.

    Entering connects, checks that the device can run the program, and copies it there. Leaving
    removes it, also after an error or an interrupt.

    Args:
        address: The part of the target after the kind of device: `user@host` of `ssh:user@host`,
            the serial number of `adb:SERIAL`, the processor of `qemu-aarch64:cortex-a53`; may be
            empty.
        program: The `.pyz` file that `program.write_program` writes.
        options: The device options.

    Raises:
        DeviceError: The address is not one of this device, or the device cannot be used.
    """

    kind: ClassVar[str]
    emulated: ClassVar[bool] = False

    def __init__(self, address: str, program: Path, options: DeviceOptions) -> None:
        self.address = address
        self.program = Path(program)
        self.options = options

    @classmethod
    def statuses(cls) -> Iterator[TargetStatus]:
        """Yield the targets that `renormlite targets` lists; no device is contacted."""
        yield TargetStatus(f"RUNTIME@{cls.kind}", usable=True)

    @property
    def name(self) -> str:
        """The name of the device in a target."""
        return f"{self.kind}:{self.address}" if self.address else self.kind

    @abc.abstractmethod
    def require(self, runtime: str) -> None:
        """Check that the device has a runtime before anything is run.

        Raises:
            DeviceError: It does not; the message names the command that installs it.
        """

    def run(self, runtime: str, arguments: Sequence[str], *, files: int = 1) -> ProgramRun:
        """Run the program once.

        Args:
            runtime: The runtime that the arguments ask for, without variant.
            arguments: The program's own arguments, without `--json` and `--outputs`.
            files: Number of artifacts it runs; the time limit is multiplied by it.

        Returns:
            Verdict and outputs.

        Raises:
            DeviceError: The device failed, hung, or returned no results.
        """
        run = self._run(runtime, tuple(arguments), files * self.options.timeout_s)
        report = {**run.report, "device": self.describe()}
        return ProgramRun(run.exit_code, report, run.outputs, run.log)

    def describe(self) -> dict[str, object]:
        """Return a description of the device; it has a `note` where speed has no meaning."""
        record: dict[str, object] = {"name": self.name, "emulated": self.emulated}
        if self.emulated:
            record["note"] = EMULATED_NOTE
        return {**record, **self._describe()}

    @abc.abstractmethod
    def _run(self, runtime: str, arguments: tuple[str, ...], limit_s: float) -> ProgramRun:
        """Run the program once, within a time limit."""

    def _describe(self) -> dict[str, object]:
        """Return the part of the description that depends on the kind of device."""
        return {}
