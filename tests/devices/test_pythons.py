"""Protects the bundle's support of Python 3.9 to 3.13: it runs on the oldest and the newest one.

Each Python comes from a Debian release, unpacked and started by its own loader, not installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from renormlite.devices.setup import apt
from renormlite.runtime_checks.bundle.write import write_bundle


@dataclass(frozen=True)
class OtherPython:
    """Another Python than that of this machine.

    Attributes:
        suite: Debian release that contains it.
        version: Its version.
        runtime: The runtime that is installed for the bundles.
        wheels: The packages that pip downloads for it.
    """

    suite: str
    version: str
    runtime: str
    wheels: tuple[str, ...]

    def build(self, folder: Path) -> list[str]:
        """Unpack it with its runtime, and return the command that starts it."""
        machine = {"amd64": "x86_64", "arm64": "aarch64"}[_output("dpkg", "--print-architecture")]
        scratch, root, site = folder / "apt", folder / "root", folder / "site"
        scratch.mkdir()
        archive = apt.Archive(scratch, self.suite, _output("dpkg", "--print-architecture"))
        archive.open(apt.mirrors(None), print)
        names = (f"python{self.version}-minimal", f"libpython{self.version}-stdlib", "libstdc++6")
        archive.unpack(names, root, print)
        tag = self.version.replace(".", "")
        platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(31, 16, -1)]
        options = ["--no-compile", "--only-binary=:all:", "--no-warn-conflicts", "--quiet"]
        options += ["--python-version", self.version, "--implementation", "cp"]
        options += ["--abi", f"cp{tag}", "--abi", "abi3", "--abi", "none"]
        options += [f"--platform={name}" for name in (*platforms, f"manylinux2014_{machine}")]
        pip = [sys.executable, "-m", "pip", "install", "--target", str(site), *options]
        subprocess.run([*pip, *self.wheels], check=True)
        libraries = [root / part / f"{machine}-linux-gnu" for part in ("lib", "usr/lib")]
        loader = next(path for part in libraries for path in part.glob("ld-linux-*.so.*"))
        paths = ":".join(map(str, libraries))
        python = root / "usr/bin" / f"python{self.version}"
        home = f"PYTHONHOME={root / 'usr'}", f"PYTHONPATH={site}"
        return ["env", "-i", *home, str(loader), "--library-path", paths, str(python)]


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


PYTHONS = (
    OtherPython("bullseye", "3.9", "tflite-runtime", ("tflite-runtime==2.14.0", "numpy<2")),
    OtherPython("trixie", "3.13", "litert", ("ai-edge-litert==2.3.0",)),
)


@pytest.mark.devices
@pytest.mark.parametrize("other", PYTHONS, ids=lambda other: f"python{other.version}")
def test_a_bundle_runs_on_another_python(
    other: OtherPython, exports: dict[str, Path], tmp_path: Path
) -> None:
    python = other.build(tmp_path)
    assert _output(*python, "-c", "import platform; print(platform.python_version())").startswith(
        f"{other.version}."
    )
    bundle = write_bundle(exports["digits"], tmp_path / "digits.parity.pyz")
    verdict = tmp_path / "verdict.json"
    done = subprocess.run(
        [*python, str(bundle), "--json", str(verdict)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(verdict.read_text())
    assert record["runtime"] == other.runtime
    assert record["verdict"] == "pass"
    files = {result["artifact"] for result in record["results"]}
    assert files == {f"digits.{p}.tflite" for p in ("float32", "float16", "dynamic", "int8")}
