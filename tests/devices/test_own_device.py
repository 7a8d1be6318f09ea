"""Protects docs/extending.md: one class and one entry of the table are enough to add a device."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
from renormlite import check_parity, devices
from renormlite.devices.base import Device, DeviceError, ProgramRun, read_run
from renormlite.devices.process import run
from renormlite.devices.survey import survey
from renormlite.runtime_checks.per_op import observation


class SubprocessDevice(Device):
    """Runs the program in another process of this machine."""

    kind = "subprocess"

    def _open(self) -> None:
        self._folder = Path(tempfile.mkdtemp())

    def _close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def require(self, runtime: str) -> None:
        if runtime != "litert":
            raise DeviceError(f"{self.name} has no '{runtime}'. It has litert.")

    def _run(self, runtime: str, arguments: tuple[str, ...], limit_s: float) -> ProgramRun:
        report, outputs = self._folder / "report.json", self._folder / "outputs.npz"
        command = [sys.executable, str(self.program), *arguments]
        command += ["--json", str(report), "--outputs", str(outputs)]
        finished = run(command, timeout_s=limit_s)
        written = [file.read_bytes() if file.exists() else b"" for file in (report, outputs)]
        log = (finished.out + finished.err).decode()
        return read_run(finished.code, *written, log, self.name)

    def _describe(self) -> Mapping[str, object]:
        return {"folder": str(self._folder)}


@pytest.fixture(autouse=True)
def _added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the device as one module and one entry of the table do."""
    module = ModuleType("renormlite.devices.subprocess_device")
    module.SubprocessDevice = SubprocessDevice  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(devices.TRANSPORTS, "subprocess", ("subprocess_device", "SubprocessDevice"))


def test_files_run_on_the_device_and_are_judged(healthy_export: Path) -> None:
    report = check_parity(healthy_export, ["litert@subprocess"])
    (result,) = report.results
    assert result.passed, result.reason
    assert result.ran["device"]["name"] == "subprocess"
    assert not Path(result.ran["device"]["folder"]).exists()


def test_a_runtime_that_the_device_does_not_have_is_refused(healthy_export: Path) -> None:
    with pytest.raises(DeviceError, match="subprocess has no 'onnxruntime'"):
        check_parity(healthy_export, ["onnxruntime@subprocess"])


def test_messages_and_the_list_of_targets_name_the_device(healthy_export: Path) -> None:
    with pytest.raises(DeviceError, match="Did you mean 'subprocess'"):
        check_parity(healthy_export, ["litert@subproces"])
    assert [s.target for s in survey() if "subprocess" in s.target] == ["RUNTIME@subprocess"]


def test_operators_are_checked_on_the_device_where_nothing_here_computes_the_same(
    coarse_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observation, "_stand_in", lambda *arguments, **options: (None, ""))
    report = check_parity(
        coarse_export, ["litert@subprocess"], precisions=["float32", "int8"], per_op=True
    )
    assert report.passed
    for result in (r for r in report.results if r.artifact.endswith(".tflite")):
        (finding,) = [f for f in result.findings if f.check == "ops"]
        assert "bound on litert@subprocess, from a copy of the file" in finding.message
