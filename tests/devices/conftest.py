"""Fixtures: sshd on loopback, a fake adb server, exports. A skipped test of devices fails."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import zipapp
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


def _no_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure: a run of these tests must show that all of them ran."""
    if report.skipped:
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"a test of devices must run, and was skipped: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn every skipped test into a failure."""
    report = yield
    _no_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn every skipped file into a failure."""
    report = yield
    _no_skip(report)
    return report


@dataclass
class LoopbackSsh:
    """A real sshd on this machine, for the user who runs the tests."""

    port: int
    folder: Path
    tmp: Path
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        """The part of a target after `ssh:`."""
        return f"{getpass.getuser()}@127.0.0.1:{self.port}"

    def leftovers(self) -> list[str]:
        """Return the names in the device's temporary folder."""
        return sorted(path.name for path in self.tmp.iterdir())

    def drop_connections(self) -> int:
        """End every connection, but not the server, and return their number."""
        children = _children(self.process.pid)
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        return len(children)


def _children(parent: int) -> list[int]:
    listing = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False
    )
    return [int(word) for word in listing.stdout.split()]


def free_port() -> int:
    """Return a TCP port that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackSsh]:
    """Start sshd with its own keys, and write an `ssh` that uses them."""
    server = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin")
    assert server, "the tests of ssh need sshd: apt install openssh-server"
    folder = tmp_path_factory.mktemp("sshd")
    tmp = folder / "device-tmp"
    tmp.mkdir()
    for key in ("host_key", "user_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True
        )
    (folder / "authorized").write_bytes((folder / "user_key.pub").read_bytes())
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd changes its root to it
    port = free_port()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nUsePAM no\n"
        f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nPidFile none\n"
        f"SetEnv TMPDIR={tmp}\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "MaxStartups 100\n"
    )
    host_key = (folder / "host_key.pub").read_text().strip()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    (folder / "ssh_config").write_text(
        f"Host *\n  IdentityFile {folder}/user_key\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {folder}/known_hosts\n  StrictHostKeyChecking yes\n"
    )
    binaries = folder / "bin"
    binaries.mkdir()
    wrapper = binaries / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(
            [server, "-D", "-e", "-f", str(folder / "sshd_config")],
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (folder / "sshd.log").read_text()
            time.sleep(0.05)
        yield LoopbackSsh(port, folder, tmp, process)
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def ssh_path(sshd: LoopbackSsh, monkeypatch: pytest.MonkeyPatch) -> LoopbackSsh:
    """Put the `ssh` that uses the test's keys first on the PATH."""
    monkeypatch.setenv("PATH", f"{sshd.folder}/bin{os.pathsep}{os.environ['PATH']}")
    return sshd


@pytest.fixture(scope="session")
def echo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without a model, with the interface of a bundle and behaviour set by arguments."""
    folder = tmp_path_factory.mktemp("echo")
    (folder / "app").mkdir()
    (folder / "app" / "__main__.py").write_text(
        "import argparse, json, os, signal, sys, time\n"
        "import numpy as np\n"
        "parser = argparse.ArgumentParser()\n"
        "for name in ('--json', '--outputs', '--progress'): parser.add_argument(name)\n"
        "parser.add_argument('--sleep', type=float, default=0)\n"
        "parser.add_argument('--code', type=int, default=0)\n"
        "parser.add_argument('--die')\n"
        "parser.add_argument('--outputs-mb', type=float, default=0)\n"
        "arguments = parser.parse_args()\n"
        "open(arguments.progress or os.devnull, 'w').write('0.25')\n"
        "time.sleep(arguments.sleep)\n"
        "if arguments.die: sys.exit(arguments.die)\n"
        "values = np.arange(int(arguments.outputs_mb * 250_000) or 3, dtype=np.float32)\n"
        "np.savez(arguments.outputs, y=values)\n"
        "json.dump({'verdict': 'passed', 'pid': os.getpid()}, open(arguments.json, 'w'))\n"
        "print('done')\n"
        "sys.exit(arguments.code)\n"
    )
    target = folder / "echo.parity.pyz"
    zipapp.create_archive(folder / "app", target)
    return target


@dataclass
class FakeAdb:
    """A fake adb server and its attached devices."""

    folder: Path
    port: int

    def attach(self, **devices: str) -> None:
        """Set the state of each serial number; "unplugged" cuts every connection."""
        partial = self.folder / "devices.part"
        partial.write_text(json.dumps(devices))
        partial.replace(self.folder / "devices.json")

    @property
    def tmp(self) -> Path:
        """The device's temporary folder."""
        return self.folder / "root" / "tmp"

    def leftovers(self) -> list[str]:
        """Return the names in the device's temporary folder."""
        return sorted(path.name for path in self.tmp.iterdir())

    def install(self, name: str, text: str) -> Path:
        """Put an executable on the device's PATH."""
        path = self.folder / "root" / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
        return path


@pytest.fixture
def adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAdb]:
    """Start the fake adb server for the real adb client."""
    assert shutil.which("adb"), "the tests of adb need its client: apt install adb"
    folder = tmp_path / "adb"
    for name in ("root/bin", "root/tmp"):
        (folder / name).mkdir(parents=True)
    fake = FakeAdb(folder, free_port())
    fake.attach(PHONE1="device")
    server = Path(__file__).with_name("fake_adb_server.py")
    process = subprocess.Popen([sys.executable, str(server), str(fake.port), str(folder)])
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(fake.port))
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", fake.port)) == 0:
                    break
            assert process.poll() is None, "the fake adb server does not start"
            time.sleep(0.05)
        yield fake
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The digits network, trained a little, and a MobileNetV2, each in every precision.

    Real data throughout: the scanned digits, and crops of the photographs that scikit-learn ships.
    """
    import keras
    import numpy as np
    import renormlite
    from renormlite.models import digits
    from renormlite.models.data import handwritten_digits
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("exports")
    precisions = ("float32", "float16", "dynamic", "int8")
    keras.utils.set_random_seed(0)
    data = handwritten_digits()
    network = digits.build(renormlite.BatchRenormalization)
    network.compile("adam", "sparse_categorical_crossentropy")
    network.fit(data.train.x[:640], data.train.y[:640], batch_size=8, epochs=2, verbose=0)
    renormlite.export_model(
        network,
        folder / "digits",
        precisions=precisions,
        calibration=data.train.x[:100],
        inputs=data.test.x[:8],
        equalize="never",
    )
    rng = np.random.default_rng(0)
    crops = []
    for _ in range(32):
        image = load_sample_images().images[rng.integers(2)]
        top, left = (rng.integers(size - 192) for size in image.shape[:2])
        crops.append(image[top : top + 192 : 3, left : left + 192 : 3])
    # Each channel has mean 0 and deviation 1. Pixels scaled to [-1, 1] would be ties between two
    # int8 steps, which the last bit of a runtime's scaling decides.
    photos = np.asarray(crops, np.float32)
    photos = (photos - photos.mean((0, 1, 2))) / photos.std((0, 1, 2))
    # Logits, because the probabilities of an untrained network are nearly equal.
    mobilenet = keras.applications.MobileNetV2(
        (64, 64, 3), alpha=0.35, weights=None, classes=10, classifier_activation=None
    )
    for layer in mobilenet.layers:  # statistics of real images instead of the initial ones
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    mobilenet(photos, training=True)
    renormlite.export_model(
        mobilenet,
        folder / "mobilenet",
        precisions=precisions,
        calibration=photos,
        inputs=photos[:2],
        equalize="never",
    )
    return {name: folder / name for name in ("digits", "mobilenet")}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser that Playwright drives directly."""
    from playwright.sync_api import sync_playwright
    from renormlite.devices.setup.web_packages import find_browser

    program = find_browser()
    assert program is not None, "these tests need a Chromium on the PATH"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(program), args=["--no-sandbox"])
        yield browser
        browser.close()
