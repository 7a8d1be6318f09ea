"""Devices other than this process: one module for each transport, one interface, one table.

Most devices receive a program with files and inputs and run it (`base.Device`). A browser and an
Android device without Python cannot; there the host drives a runner call by call. Both return a
`TargetRun`, which is judged by the same code as a run on this machine.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..advance import within
from ..artifacts.directory import ExportDirectory
from ..artifacts.manifest import Artifact
from ..errors import did_you_mean
from ..locks import temporary_folder
from ..runtimes import LOCAL, RUNTIMES, Target
from ..runtimes.run import TargetRun, drive
from .base import CrashError, Device, DeviceError, DeviceOptions, ProgramRun
from .program import write_program

# Device to the module and class of its transport.
TRANSPORTS = {
    "qemu-aarch64": ("qemu", "QemuAarch64"),
    "qemu-armv7": ("qemu", "QemuArmv7"),
    "ssh": ("ssh", "SshDevice"),
    "adb": ("adb", "AdbDevice"),
}
BROWSER = "browser"


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
        inputs: Keras input name to (N, …) floats: the golden set's, or any others.
        target: Runtime, variant and device.
        threads: Threads that the runtime may use.
        options: Device options; None for the defaults.

    Yields:
        Each artifact with its result, in order.

    Raises:
        DeviceError: The device is unknown, cannot be reached, or lacks something.
    """
    options = options or DeviceOptions()
    kind, _, address = target.device.partition(":")
    _check_pair(target, kind)
    if kind == BROWSER:
        yield from _in_browser(export, artifacts, inputs, target, threads, options)
    elif kind == "adb" and options.benchmark_model is not None:
        yield from _by_benchmark_model(export, artifacts, inputs, target, address, threads, options)
    else:
        yield from _by_program(export, artifacts, inputs, target, threads, options)


def _check_pair(target: Target, kind: str) -> None:
    """Refuse an unknown device, and a runtime that the device cannot have."""
    kinds = (LOCAL, *TRANSPORTS, BROWSER)
    if kind not in kinds[1:]:
        raise DeviceError(
            f"A device is one of {', '.join(kinds)}. Received: '{target.device}'."
            f"{did_you_mean(target.device, kinds)}"
        )
    home = RUNTIMES[target.runtime].home
    if (home == BROWSER) != (kind == BROWSER):
        web = [name for name, entry in RUNTIMES.items() if entry.home == BROWSER]
        raise DeviceError(
            f"'{target.runtime}' does not run on '{kind}': the browser runs {', '.join(web)}, "
            "every other device runs the other runtimes."
        )


def _by_program(
    export: ExportDirectory,
    artifacts: Sequence[Artifact],
    inputs: Mapping[str, np.ndarray],
    target: Target,
    threads: int,
    options: DeviceOptions,
) -> Iterator[tuple[Artifact, TargetRun]]:
    """Send artifacts and inputs to the device as one program and run it there."""
    runtime = f"{target.runtime}+{target.variant}" if target.variant else target.runtime
    common = ("--runtime", runtime, "--threads", str(threads))
    with temporary_folder() as folder:
        program = write_program(export, artifacts, inputs, folder / "run.pyz")
        with _device(target.device, program, options) as device:
            device.require(target.runtime)
            # One process per file measures the peak memory of each. Under emulation that figure has
            # no meaning, and one process for all files saves starting Python repeatedly.
            if device.emulated and len(artifacts) > 1:
                with contextlib.suppress(CrashError):
                    run = device.run(target.runtime, common, files=len(artifacts))
                    yield from ((entry, _target_run(run, entry)) for entry in artifacts)
                    return
            for place, artifact in enumerate(artifacts):
                with within(artifact.file, place, len(artifacts)):
                    found = _alone(device, target, artifact, common)
                yield artifact, found


def device_class(kind: str) -> type[Device]:
    """Import and return the class of a kind of device."""
    module, name = TRANSPORTS[kind]
    found: type[Device] = getattr(importlib.import_module(f".{module}", __package__), name)
    return found


def _device(name: str, program: Path, options: DeviceOptions) -> Device:
    """Return the device that a target names, not yet entered."""
    kind, _, address = name.partition(":")
    return device_class(kind)(address, program, options)


def _alone(
    device: Device, target: Target, artifact: Artifact, common: tuple[str, ...]
) -> TargetRun:
    """Run one artifact in its own process; an artifact that crashes the runtime has failed."""
    try:
        run = device.run(target.runtime, (*common, "--artifact", artifact.file))
    except CrashError as error:
        ran = {"runtime": target.runtime, "device": device.describe()}
        return TargetRun({}, ran, {}, f"{artifact.file}: {error}")
    return _target_run(run, artifact)


def _target_run(run: ProgramRun, artifact: Artifact) -> TargetRun:
    """Return the result of one artifact from a run of `on_device.run`."""
    record = run.report["results"][artifact.file]
    device = run.report["device"]
    note = {"note": device["note"]} if "note" in device else {}
    prefix = f"{artifact.file}:"
    return TargetRun(
        outputs={
            name[len(prefix) :]: array
            for name, array in run.outputs.items()
            if name.startswith(prefix)
        },
        ran={**record["ran"], "device": device, "cpu": run.report["cpu"]},
        measured={**record["measured"], **note},
        problem=record["problem"],
    )


def _in_browser(
    export: ExportDirectory,
    artifacts: Sequence[Artifact],
    inputs: Mapping[str, np.ndarray],
    target: Target,
    threads: int,
    options: DeviceOptions,
) -> Iterator[tuple[Artifact, TargetRun]]:
    """Run the artifacts in one browser, each in its own page."""
    from .browser import WEB_RUNNERS
    from .chromium import Browser

    build = WEB_RUNNERS[target.runtime]
    with Browser(options) as browser:
        for place, artifact in enumerate(artifacts):
            path = export.path / artifact.file
            runner = build(path, threads=threads, variant=target.variant, browser=browser)
            with within(artifact.file, place, len(artifacts)):
                run = drive(runner, artifact, inputs)
            yield artifact, run


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
    for place, artifact in enumerate(artifacts):
        path = export.path / artifact.file
        runner = BenchmarkModelRunner(
            path, threads=threads, variant=target.variant, adb=adb, options=options
        )
        with within(artifact.file, place, len(artifacts)):
            run = drive(runner, artifact, inputs)
        yield artifact, run
