"""ARM systems on this machine: the program runs under QEMU's user-mode emulator."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from ..runtimes import RUNTIMES
from .base import (
    EMULATED_NOTE,
    Device,
    DeviceError,
    DeviceOptions,
    ProgramRun,
    TargetStatus,
    read_run,
    report_progress,
)
from .process import TimeLimitError, run
from .setup.emulated_systems import AARCH64, ARMV7, System, find_emulator, qemu_version


class QemuDevice(Device):
    """A Debian system of another architecture; each program runs as an emulated process.

    Results are exactly those of that architecture's instructions. Times and memory are not those
    of a device. The address is the processor to emulate.
    """

    emulated: ClassVar[bool] = True
    system: ClassVar[System]

    def __init__(self, address: str, program: Path, options: DeviceOptions) -> None:
        super().__init__(address, program, options)
        if address and address not in self.system.cpus:
            raise DeviceError(
                f"'{self.kind}:{address}' names no processor that is known to run the runtimes. "
                f"Known are {', '.join(self.system.cpus)}."
            )
        self.cpu = address or self.system.cpus[0]
        self._scratch: Path | None = None

    @classmethod
    def statuses(cls) -> Iterator[TargetStatus]:
        """Yield the status of each runtime on the emulated system."""
        record = cls.system.component.record()
        ready = record is not None and find_emulator(cls.system) is not None
        versions = record["versions"] if record is not None else {}
        for name in cls.system.runtimes:
            if name in RUNTIMES:
                yield TargetStatus(
                    f"{name}@{cls.kind}",
                    ready,
                    versions.get(name, ""),
                    EMULATED_NOTE if ready else "",
                    "" if ready else f"renormlite device setup {cls.kind}",
                )

    def _open(self) -> None:
        emulator = find_emulator(self.system)
        self._record = self.system.component.record()
        if emulator is None or self._record is None:
            raise DeviceError(
                f"{self.kind} is not set up on this machine. Run: "
                f"renormlite device setup {self.kind}"
            )
        self._emulator = emulator
        self._scratch = Path(tempfile.mkdtemp(prefix="renormlite-"))

    def _close(self) -> None:
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def require(self, runtime: str) -> None:
        """Check that the emulated system has a runtime."""
        if runtime not in self.system.runtimes:
            raise DeviceError(
                f"{self.kind} has no '{runtime}'. It has {', '.join(self.system.runtimes)}."
            )

    def _run(self, runtime: str, arguments: tuple[str, ...], limit_s: float) -> ProgramRun:
        assert self._scratch is not None, "the device is entered before it runs anything"
        report, outputs = self._scratch / "report.json", self._scratch / "outputs.npz"
        progress = self._scratch / "progress"
        for file in (report, outputs, progress):
            file.unlink(missing_ok=True)

        def watch() -> None:
            with contextlib.suppress(FileNotFoundError):
                report_progress(progress.read_bytes())

        command = self.system.command(self._emulator, self.system.component.path, self.cpu, runtime)
        try:
            finished = run(
                [
                    *command,
                    # Bytecode was written when the system was built.
                    *("-B", str(self.program.resolve()), *arguments),
                    *("--json", str(report), "--outputs", str(outputs)),
                    *("--progress", str(progress)),
                ],
                timeout_s=limit_s,
                env={"TMPDIR": str(self._scratch)},
                cwd=self._scratch,
                watch=watch,
            )
        except TimeLimitError as error:
            raise DeviceError(
                f"{self.name} did not finish within {limit_s:g} s and was ended; "
                "--device-timeout allows more."
            ) from error
        return read_run(
            finished.code,
            report.read_bytes() if report.exists() else b"",
            outputs.read_bytes() if outputs.exists() else b"",
            (finished.out + b"\n" + finished.err).decode(errors="replace"),
            self.name,
        )

    def _describe(self) -> dict[str, object]:
        return {"cpu": self.cpu, "emulator": f"qemu {qemu_version(self._emulator)}"}


class QemuAarch64(QemuDevice):
    """64-bit ARM."""

    kind = AARCH64.kind
    system = AARCH64


class QemuArmv7(QemuDevice):
    """32-bit ARM with hardware floating point (armhf)."""

    kind = ARMV7.kind
    system = ARMV7
