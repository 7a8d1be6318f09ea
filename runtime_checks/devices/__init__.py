"""Devices other than this process: one file a transport, one interface, one explicit table.

Most devices take a bundle and run it by themselves (`base.Device`). A browser, and an Android
device without Python, cannot: there the host drives a runner call by call. Either way what comes
back is a `TargetRun`, judged by the same code as a run on this machine.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import write_bundle
from ..manifest import Artifact, ExportDirectory
from ..runners import RUNTIMES, Target
from ..target_check import TargetRun, drive
from .base import BundleRun, Device, DeviceError, DeviceOptions

# Device to the module and class that carry a bundle there.
CARRIERS = {
    "qemu-aarch64": ("qemu", "QemuAarch64"),
    "qemu-armv7": ("qemu", "QemuArmv7"),
    "ssh": ("ssh", "SshDevice"),
    "adb": ("adb", "AdbDevice"),
}
BROWSER = "browser"
KINDS = (*CARRIERS, BROWSER)

_MEASURED = ("load_ms", "latency_ms", "peak_memory_bytes")


def run_on_device(
    export: ExportDirectory,
    artifacts: Sequence[Artifact],
    inputs: Mapping[str, np.ndarray],
    target: Target,
    *,
    threads: int = 1,
    options: DeviceOptions | None = None,
) -> Iterator[tuple[Artifact, TargetRun]]:
    """Run artifacts on a device, connecting once for all of them.

    Args:
        export: The export that the artifacts belong to.
        artifacts: What to run.
        inputs: Keras input name to (N, …) floats.
        target: Runtime, variant and device.
        threads: Threads that the runtime may use.
        options: Choices about devices; the defaults where None.

    Yields:
        Each artifact with what it gave, in order.

    Raises:
        DeviceError: The device is unknown, out of reach, or lacks something; one sentence.
    """
    options = options or DeviceOptions()
    kind, _, address = target.device.partition(":")
    _check_pair(target, kind)
    if kind == BROWSER:
        yield from _in_browser(export, artifacts, inputs, target, threads, options)
    elif kind == "adb" and options.benchmark_model is not None:
        yield from _by_benchmark_model(export, artifacts, inputs, target, address, threads, options)
    else:
        yield from _by_bundle(export, artifacts, inputs, target, threads, options)


def carrier(device: str, bundle: Path, options: DeviceOptions) -> Device:
    """Return the device of a target's device part, not yet entered.

    Raises:
        DeviceError: There is no such device.
    """
    kind, _, address = device.partition(":")
    if kind not in CARRIERS:
        raise DeviceError(f"A device is one of {', '.join(KINDS)}. Received: '{device}'.")
    module, name = CARRIERS[kind]
    found: type[Device] = getattr(importlib.import_module(f".{module}", __package__), name)
    return found(address, bundle, options)


def _check_pair(target: Target, kind: str) -> None:
    """Refuse a device that is none, and a runtime that no such device has."""
    if kind not in KINDS:
        raise DeviceError(f"A device is one of local, {', '.join(KINDS)}. Received: '{kind}'.")
    home = RUNTIMES[target.runtime].home
    if (home == BROWSER) != (kind == BROWSER):
        web = [name for name, entry in RUNTIMES.items() if entry.home == BROWSER]
        raise DeviceError(
            f"'{target.runtime}' does not run on '{kind}': in the browser run {', '.join(web)}, "
            "on every other device the other runtimes."
        )


def _by_bundle(
    export: ExportDirectory,
    artifacts: Sequence[Artifact],
    inputs: Mapping[str, np.ndarray],
    target: Target,
    threads: int,
    options: DeviceOptions,
) -> Iterator[tuple[Artifact, TargetRun]]:
    """Carry the artifacts to the device in a bundle and run it once for each."""
    runtime = f"{target.runtime}+{target.variant}" if target.variant else target.runtime
    with tempfile.TemporaryDirectory(prefix="renormlite-") as folder:
        files = [artifact.file for artifact in artifacts]
        bundle = write_bundle(export.path, Path(folder) / "bundle.pyz", artifacts=files)
        with carrier(target.device, bundle, options) as device:
            device.require(target.runtime)
            for artifact in artifacts:
                chosen = ("--runtime", runtime, "--artifact", artifact.file)
                run = device.run(target.runtime, (*chosen, "--threads", str(threads)))
                yield artifact, _target_run(run)


def _target_run(run: BundleRun) -> TargetRun:
    """Read a bundle's verdict; its outputs are judged here again, beside all others."""
    report = run.report
    ran = {**report["ran"], "device": report["device"], "cpu": report.get("cpu")}
    measured = {key: report[key] for key in _MEASURED if report.get(key) is not None}
    if "note" in report["device"]:
        measured["note"] = report["device"]["note"]
    problem = "" if run.outputs else _reason(report)
    return TargetRun(run.outputs, ran, measured, problem)


def _reason(report: Mapping[str, Any]) -> str:
    """Return why the device has no outputs to show."""
    return str(report.get("reason") or "the device gave no outputs and no reason")


def _in_browser(
    export: ExportDirectory,
    artifacts: Sequence[Artifact],
    inputs: Mapping[str, np.ndarray],
    target: Target,
    threads: int,
    options: DeviceOptions,
) -> Iterator[tuple[Artifact, TargetRun]]:
    """Run the artifacts in one browser, each in a page of its own."""
    from .browser import WEB_RUNNERS
    from .chromium import Browser

    build = WEB_RUNNERS[target.runtime]
    with Browser(options) as browser:
        for artifact in artifacts:
            path = export.path / artifact.file
            runner = build(path, threads=threads, variant=target.variant, browser=browser)
            yield artifact, drive(runner, artifact, inputs)


def _by_benchmark_model(
    export: ExportDirectory,
    artifacts: Sequence[Artifact],
    inputs: Mapping[str, np.ndarray],
    target: Target,
    serial: str,
    threads: int,
    options: DeviceOptions,
) -> Iterator[tuple[Artifact, TargetRun]]:
    """Run the artifacts with the binary that the user built for an Android device."""
    from .adb import Adb
    from .benchmark_model import BenchmarkModelRunner

    if target.runtime != BenchmarkModelRunner.runtime:
        raise DeviceError(
            f"benchmark_model is LiteRT: the target must be litert@{target.device}. "
            f"Received: '{target}'."
        )
    adb = Adb(serial, target.device)
    for artifact in artifacts:
        path = export.path / artifact.file
        runner = BenchmarkModelRunner(
            path, threads=threads, variant=target.variant, adb=adb, options=options
        )
        yield artifact, drive(runner, artifact, inputs)
