"""The emulated ARM systems: their components, and how they are built and cached.

A system is an unpacked Debian root with Python, and a folder of wheels for each runtime. QEMU's
user-mode emulator runs its Python as a process of this machine.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...advance import advanced
from ..base import DeviceError
from ..process import Finished, run
from . import apt, pins, wheels
from .cache import Component, Progress, folder_size, megabytes

_BASE = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6", "libgomp1", "libatomic1")


@dataclass(frozen=True)
class Provision:
    """A runtime on an emulated system: its requirements and the import that proves it loads.

    Runtimes with the same requirements share one folder of wheels.
    """

    requirements: tuple[str, ...]
    package: str
    module: str
    dependencies: bool = True


@dataclass(frozen=True)
class System:
    """One emulated system.

    Attributes:
        kind: The device's name in a target.
        emulator: QEMU's program for it.
        architecture: Debian's name of the architecture.
        triplet: The architecture's folder in /usr/lib.
        machine: The architecture in wheel tags.
        cpus: Processors known to run the runtimes; the first is the default.
        packages: Debian packages of the root.
        runtimes: Runtime to its provision.
        needs_bytes: Disk space that building needs.
    """

    kind: str
    emulator: str
    architecture: str
    triplet: str
    machine: str
    cpus: tuple[str, ...]
    packages: tuple[str, ...]
    runtimes: Mapping[str, Provision]
    needs_bytes: int

    @property
    def component(self) -> Component:
        """The system's component of the cache."""
        recipe = {
            "suite": pins.SUITE,
            "architecture": self.architecture,
            "packages": list(self.packages),
            "runtimes": {
                name: list(provision.requirements) for name, provision in self.runtimes.items()
            },
        }
        return Component(self.kind, recipe, self.needs_bytes)

    def command(self, emulator: Path, folder: Path, cpu: str, runtime: str) -> list[str]:
        """Return the command that starts the system's Python with one runtime's wheels.

        Args:
            emulator: QEMU's program.
            folder: Folder of the system.
            cpu: Processor to emulate.
            runtime: One of `runtimes`.
        """
        root = folder / "root"
        paths = [folder / "site" / runtime, root / "usr/lib/python3/dist-packages"]
        return [
            str(emulator),
            *("-cpu", cpu, "-L", str(root)),
            *("-E", "PYTHONPATH=" + os.pathsep.join(map(str, paths))),
            *("-E", "PYTHONNOUSERSITE=1", "-E", "HOME=/nonexistent"),
            str(root / "usr/bin" / f"python{pins.PYTHON}"),
        ]


# All share one folder; tflite-runtime needs another NumPy.
_TOGETHER = (pins.LITERT, pins.ONNXRUNTIME, pins.ONNX, pins.OPENVINO)

AARCH64 = System(
    kind="qemu-aarch64",
    emulator="qemu-aarch64",
    architecture="arm64",
    triplet="aarch64-linux-gnu",
    machine="aarch64",
    cpus=("cortex-a76", "cortex-a53", "cortex-a72", "neoverse-n1", "max"),
    packages=_BASE,
    runtimes={
        "litert": Provision(_TOGETHER, "ai-edge-litert", "ai_edge_litert.interpreter"),
        "litert-compiled": Provision(_TOGETHER, "ai-edge-litert", "ai_edge_litert.compiled_model"),
        "tflite-runtime": Provision(
            (pins.TFLITE_RUNTIME, "numpy<2"), "tflite-runtime", "tflite_runtime.interpreter"
        ),
        "onnxruntime": Provision(_TOGETHER, "onnxruntime", "onnxruntime"),
        "onnx-reference": Provision(_TOGETHER, "onnx", "onnx.reference"),
        "openvino": Provision(_TOGETHER, "openvino", "openvino"),
    },
    needs_bytes=1_000_000_000,
)

ARMV7 = System(
    kind="qemu-armv7",
    emulator="qemu-arm",
    architecture="armhf",
    triplet="arm-linux-gnueabihf",
    machine="armv7l",
    cpus=("cortex-a15", "cortex-a7", "cortex-a9", "max"),
    packages=(*_BASE, "python3-numpy"),
    # There is no NumPy wheel for it, so Debian's package is used.
    runtimes={
        "tflite-runtime": Provision(
            (pins.TFLITE_RUNTIME,),
            "tflite-runtime",
            "tflite_runtime.interpreter",
            dependencies=False,
        )
    },
    needs_bytes=300_000_000,
)

SYSTEMS = {system.kind: system for system in (AARCH64, ARMV7)}

EMULATOR = Component(
    "qemu",
    {"suite": pins.QEMU_SUITE, "programs": [AARCH64.emulator, ARMV7.emulator]},
    needs_bytes=600_000_000,
)


def find_emulator(system: System) -> Path | None:
    """Return a QEMU that is new enough, from the PATH or the cache, or None."""
    names = (system.emulator, f"{system.emulator}-static")
    candidates = [Path(found) for name in names if (found := shutil.which(name))]
    if EMULATOR.record() is not None:
        candidates.append(EMULATOR.path / system.emulator)
    for path in candidates:
        version = qemu_version(path)
        if version is not None and int(version.split(".")[0]) >= pins.QEMU_MAJOR:
            return path
    return None


def qemu_version(emulator: Path) -> str | None:
    """Return the version that a QEMU program reports, or None when it does not run."""
    try:
        said = run([str(emulator), "--version"], timeout_s=30).out.decode(errors="replace")
    except (DeviceError, OSError):
        return None
    found = re.search(r"version (\d+\.\d+(?:\.\d+)?)", said)
    return found.group(1) if found else None


def build(system: System, *, source: str | None, progress: Progress) -> None:
    """Build a system and an emulator for it in the cache where they are missing.

    Args:
        system: The system.
        source: A Debian mirror; None takes the one of this machine's apt configuration.
        progress: Called with one line for each step, with sizes.

    Raises:
        DeviceError: A tool is missing; the message says what to install.
    """
    emulator = find_emulator(system)
    if emulator is None:
        apt.require_apt()
        EMULATOR.make(lambda folder: _fetch_emulator(folder, source, progress), progress)
        emulator = find_emulator(system)
    if emulator is None:
        raise DeviceError(
            f"The {system.emulator} of {pins.QEMU_SUITE} does not run on this machine: install "
            f"QEMU's user-mode emulators, version {pins.QEMU_MAJOR} or newer (package qemu-user)."
        )
    progress(f"emulator: {emulator}, version {qemu_version(emulator)}")
    found = emulator

    def fill(folder: Path) -> Mapping[str, Any]:
        return _fill(system, folder, found, source, progress)

    if system.component.record() is None:
        apt.require_apt()
        wheels.require_pip()
    system.component.make(fill, progress)


def _fetch_emulator(folder: Path, source: str | None, progress: Progress) -> Mapping[str, Any]:
    """Extract QEMU's statically linked programs from Debian's package."""
    host = run(["dpkg", "--print-architecture"], timeout_s=30).out.decode().strip()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        archive = apt.Archive(Path(scratch) / "apt", pins.QEMU_SUITE, host)
        archive.open(apt.mirrors(source), progress)
        package = archive.download("qemu-user", progress)
        apt.extract(package, [f"usr/bin/{name}" for name in EMULATOR.recipe["programs"]], folder)
    return {"packages": [package.stem]}


def _fill(
    system: System, folder: Path, emulator: Path, source: str | None, progress: Progress
) -> Mapping[str, Any]:
    """Build a system in an empty folder and load each runtime to prove it."""
    root = folder / "root"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        archive = apt.Archive(Path(scratch), pins.SUITE, system.architecture)
        steps = 2 + 2 * len(system.runtimes)
        advanced("index of packages", 0, steps)
        archive.open(apt.mirrors(source), progress)
        advanced("packages", 1, steps)
        packages = archive.unpack(system.packages, root, progress)
    _link_alternatives(root / "usr/lib" / system.triplet)
    for done, (runtime, provision) in enumerate(system.runtimes.items(), 2):
        advanced(runtime, done, steps)
        site = folder / "site" / runtime
        if _install(provision, system.machine, site, folder):
            names = ", ".join(provision.requirements)
            progress(f"{system.kind}: {names}, {megabytes(folder_size(site))}")
    versions = {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        start = functools.partial(load, system, emulator, folder)
        loading = zip(system.runtimes, pool.map(start, system.runtimes))
        for done, (runtime, loaded) in enumerate(loading, 3 + len(system.runtimes)):
            advanced(f"start of {runtime}", done, steps)
            if loaded.code != 0:
                raise DeviceError(f"{runtime} does not load on {system.kind}: {loaded.last_line}")
            versions[runtime] = loaded.out.decode().split()[-1]
            progress(f"{system.kind}: {runtime} {versions[runtime]} loads")
    return {"packages": packages, "versions": versions}


def load(system: System, emulator: Path, folder: Path, runtime: str) -> Finished:
    """Import a runtime on the system and print its version; this also writes its bytecode.

    The bytecode saves later runs from compiling Python's library under emulation.
    """
    provision = system.runtimes[runtime]
    program = (
        f"import importlib.metadata, {provision.module}; "
        f"print(importlib.metadata.version('{provision.package}'))"
    )
    command = system.command(emulator, folder, system.cpus[0], runtime)
    return run([*command, "-c", program], timeout_s=300, env={})


def _install(provision: Provision, machine: str, site: Path, folder: Path) -> bool:
    """Fetch a runtime's wheels; return False where another runtime shares them."""
    for other in sorted((folder / "site").glob("*")):
        note = other / ".requirements"
        if note.is_file() and note.read_text(encoding="utf-8") == " ".join(provision.requirements):
            site.symlink_to(other.name)
            return False
    extra: Sequence[str] = () if provision.dependencies else ("--no-deps",)
    wheels.install((*extra, *provision.requirements), machine, site)
    (site / ".requirements").write_text(" ".join(provision.requirements), encoding="utf-8")
    return True


def _link_alternatives(libraries: Path) -> None:
    """Create the links that Debian's installer would: BLAS and LAPACK are in separate folders."""
    for name in ("blas", "lapack"):
        for file in sorted((libraries / name).glob("*.so.*")):
            link = libraries / file.name
            if not link.exists():
                link.symlink_to(f"{name}/{file.name}")
