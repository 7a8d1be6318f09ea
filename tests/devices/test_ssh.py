"""Protects checks over ssh: broken connections, full disks, hangs, a missing Python."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from renormlite.advance import listening, within
from renormlite.devices.base import DeviceError, DeviceOptions
from renormlite.devices.on_device import agent as agent_module
from renormlite.devices.ssh import SshDevice

pytestmark = pytest.mark.devices

OPTIONS = DeviceOptions(python=sys.executable, timeout_s=60, reconnect_s=20)


def left_behind(ssh_path: Any) -> list[str]:
    """Return the files that are still on the device after the agent had time to remove them."""
    for _ in range(50):
        if not ssh_path.leftovers():
            break
        time.sleep(0.1)
    return list(ssh_path.leftovers())


def running(text: str) -> list[str]:
    """Return the command lines of running processes that contain ``text``."""
    listing = subprocess.run(
        ["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True
    )
    return [line for line in listing.stdout.splitlines() if text in line]


def test_a_bundle_runs_and_leaves_nothing(ssh_path: Any, echo_bundle: Path) -> None:
    with SshDevice(ssh_path.address, echo_bundle, OPTIONS) as device:
        first = device.run("litert", ["--outputs-mb", "3"])
        second = device.run("litert", ["--code", "1"])
        assert len(ssh_path.leftovers()) == 1
    assert (first.exit_code, second.exit_code) == (0, 1)
    assert first.report["verdict"] == "passed"
    assert first.report["device"]["name"] == f"ssh:{ssh_path.address}"
    assert first.report["device"]["emulated"] is False
    np.testing.assert_array_equal(first.outputs["y"], np.arange(750_000, dtype=np.float32))
    assert left_behind(ssh_path) == []


def test_the_share_that_is_done_is_reported(ssh_path: Any, echo_bundle: Path) -> None:
    """The host asks every ten seconds."""
    shares: list[float] = []
    with (
        listening(lambda what, done, of: shares.append(done)),
        within("net.tflite", 0, 1),
        SshDevice(ssh_path.address, echo_bundle, OPTIONS) as device,
    ):
        assert device.run("litert", ["--sleep", "12"]).exit_code == 0
    assert set(shares) == {0.25}


def test_a_run_survives_repeated_loss_of_the_connection(ssh_path: Any, echo_bundle: Path) -> None:
    """The upload resumes, the job continues, and the outputs arrive complete."""
    padded = echo_bundle.with_name("padded.parity.pyz")
    # A zip file may have bytes before the archive; they make the upload long enough to interrupt.
    padded.write_bytes(os.urandom(60_000_000) + echo_bundle.read_bytes())
    stop = threading.Event()
    dropped: list[int] = []

    def drop_repeatedly() -> None:
        """Drop all connections at each third of the upload, during the run and the download."""

        def size(name: str) -> int:
            sizes = [file.stat().st_size for file in ssh_path.tmp.glob(f"*/{name}")]
            return sizes[0] if sizes else 0

        moments = (
            *(lambda n=n: size("run.pyz") > n for n in (10_000_000, 30_000_000, 50_000_000)),
            lambda: bool(running("--sleep 2.5")),
            lambda: size("done.json") > 0,
        )
        for moment in moments:
            while not moment() and not stop.is_set():
                time.sleep(0.005)
            dropped.append(ssh_path.drop_connections())

    thread = threading.Thread(target=drop_repeatedly)
    thread.start()
    try:
        with SshDevice(ssh_path.address, padded, OPTIONS) as device:
            run = device.run("litert", ["--sleep", "2.5", "--outputs-mb", "20"])
    finally:
        stop.set()
        thread.join()
    assert len(dropped) == 5
    assert sum(dropped) >= 3
    np.testing.assert_array_equal(run.outputs["y"], np.arange(5_000_000, dtype=np.float32))
    assert left_behind(ssh_path) == []


def test_a_hanging_run_is_ended_on_device_and_host(ssh_path: Any, echo_bundle: Path) -> None:
    options = replace(OPTIONS, timeout_s=1.0)
    with (
        pytest.raises(DeviceError, match=r"did not finish within 1 s and was ended"),
        SshDevice(ssh_path.address, echo_bundle, options) as device,
    ):
        device.run("litert", ["--sleep", "31.5"])
    assert running("--sleep 31.5") == []
    assert left_behind(ssh_path) == []


def test_an_interrupt_leaves_nothing_running(ssh_path: Any, echo_bundle: Path) -> None:
    class Interrupting(SshDevice):
        def _wait(self, name: str, limit_s: float) -> dict[str, Any]:
            while not running("--sleep 32.5"):
                time.sleep(0.05)
            raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        Interrupting(ssh_path.address, echo_bundle, OPTIONS) as device,
    ):
        device.run("litert", ["--sleep", "32.5"])
    assert left_behind(ssh_path) == []
    time.sleep(0.3)  # the agent checks ten times a second
    assert running("--sleep 32.5") == []


def test_the_agent_cleans_up_if_the_host_does_not_return(
    ssh_path: Any, echo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Path(agent_module.__file__ or "")
    monkeypatch.setenv("TMPDIR", str(ssh_path.tmp))
    started = subprocess.run(
        [sys.executable, "-", "1.0"],
        input=agent.read_text(),
        capture_output=True,
        text=True,
        check=True,
    )
    folder = Path(started.stdout.strip())
    assert folder.is_dir()
    (folder / "job.json").write_text(
        '{"job": "x", "command": ["sleep", "33.5"], "timeout_s": 60, "collect": []}'
    )
    assert left_behind(ssh_path) == []
    assert running("sleep 33.5") == []


def test_a_job_that_is_sent_twice_runs_once(ssh_path: Any, echo_bundle: Path) -> None:
    """This happens when the connection breaks between a request and its answer."""

    class Repeating(SshDevice):
        def _checked(self, command: str, stdin: bytes = b"", timeout_s: float = 60.0) -> str:
            if "job.json" in command:
                super()._checked(command, stdin, timeout_s)
            return super()._checked(command, stdin, timeout_s)

    with Repeating(ssh_path.address, echo_bundle, OPTIONS) as device:
        first = device.run("litert", ["--sleep", "0.5"])
        time.sleep(1.0)
        (folder,) = ssh_path.tmp.iterdir()
        assert f'"pid": {first.report["pid"]}' in (folder / "report.json").read_text()
        assert device.run("litert", []).report["pid"] != first.report["pid"]


def test_a_python_given_by_a_relative_path(ssh_path: Any, echo_bundle: Path) -> None:
    home = Path.home()
    relative = os.path.relpath(sys.executable, home)
    with SshDevice(ssh_path.address, echo_bundle, replace(OPTIONS, python=relative)) as device:
        assert device.run("litert", []).exit_code == 0


def test_the_message_about_a_failed_bundle_gives_the_reason(
    ssh_path: Any, echo_bundle: Path
) -> None:
    with (
        SshDevice(ssh_path.address, echo_bundle, OPTIONS) as device,
        pytest.raises(DeviceError, match=r"returned no results on ssh:.*: out of luck"),
    ):
        device.run("litert", ["--die", "out of luck"])


def test_a_device_without_python_is_refused(ssh_path: Any, echo_bundle: Path) -> None:
    options = replace(OPTIONS, python="python7")
    with pytest.raises(DeviceError, match=r"has no 'python7': install Python 3.9 or newer"):
        SshDevice(ssh_path.address, echo_bundle, options).__enter__()
    assert ssh_path.leftovers() == []


def test_a_device_with_an_old_python_is_refused(
    ssh_path: Any, echo_bundle: Path, tmp_path: Path
) -> None:
    old = tmp_path / "python3"
    old.write_text(
        "#!/bin/sh\necho '"
        '{"python": [3, 5, 2], "machine": "m", "system": "s", "cores": 1, "folder": "/", "free": 1}'
        "'\n"
    )
    old.chmod(0o755)
    with pytest.raises(DeviceError, match=r"has Python 3.5.2 and the program needs 3.9 or newer"):
        SshDevice(ssh_path.address, echo_bundle, replace(OPTIONS, python=str(old))).__enter__()


def test_a_device_without_the_runtime_is_refused(
    ssh_path: Any, echo_bundle: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    with SshDevice(ssh_path.address, echo_bundle, replace(OPTIONS, python=str(bare))) as device:
        with pytest.raises(DeviceError, match=r"cannot load numpy .*python3 -m pip install numpy"):
            device.require("litert")
        with pytest.raises(DeviceError, match="cannot run 'litert-web', which has no Python"):
            device.require("litert-web")
    with SshDevice(ssh_path.address, echo_bundle, OPTIONS) as device:
        device.require("litert")
    assert left_behind(ssh_path) == []


def test_a_disk_that_is_too_small_is_an_error(ssh_path: Any, tmp_path: Path) -> None:
    huge = tmp_path / "huge.parity.pyz"
    with huge.open("wb") as stream:
        stream.truncate(8 << 40)  # a sparse file, which takes no space
    with pytest.raises(DeviceError, match=r"MB free in .* and the check takes 8796113\.0 MB"):
        SshDevice(ssh_path.address, huge, OPTIONS).__enter__()
    assert ssh_path.leftovers() == []


def test_a_disk_that_fills_up_is_an_error(ssh_path: Any, echo_bundle: Path) -> None:
    class Filling(SshDevice):
        """Writes to /dev/full."""

        def _call(self, command: str, **options: Any) -> Any:
            return super()._call(command.replace("cat >> ", "cat > /dev/full #"), **options)

    with pytest.raises(DeviceError, match="has no space left for the program"):
        Filling(ssh_path.address, echo_bundle, OPTIONS).__enter__()
    assert left_behind(ssh_path) == []


def test_an_unreachable_device_is_an_error(ssh_path: Any, echo_bundle: Path) -> None:
    start = time.monotonic()
    with pytest.raises(DeviceError, match=r"cannot be reached: .*Connection refused"):
        SshDevice("nobody@127.0.0.1:9", echo_bundle, OPTIONS).__enter__()
    assert time.monotonic() - start < 5


def test_a_device_that_disappears_during_the_run_is_an_error(
    ssh_path: Any, echo_bundle: Path
) -> None:
    options = replace(OPTIONS, reconnect_s=1.5)
    with SshDevice(ssh_path.address, echo_bundle, options) as device:
        reachable, device._ssh = device._ssh, ["sh", "-c", "exit 255"]
        with pytest.raises(DeviceError, match=r"broke and did not come back within 1.5 s"):
            device.run("litert", [])
        device._ssh = reachable
    assert left_behind(ssh_path) == []


def test_a_refused_login_is_an_error(ssh_path: Any, echo_bundle: Path) -> None:
    with pytest.raises(DeviceError, match=r"refused the login .*ssh -p \d+ nobody@127.0.0.1 true"):
        SshDevice(f"nobody@127.0.0.1:{ssh_path.port}", echo_bundle, OPTIONS).__enter__()


def test_a_changed_host_key_is_an_error(ssh_path: Any, echo_bundle: Path) -> None:
    with pytest.raises(
        DeviceError, match=r"does not know the host key of ssh:.*, or knows another"
    ):
        SshDevice(
            ssh_path.address.replace("127.0.0.1", "localhost"), echo_bundle, OPTIONS
        ).__enter__()


@pytest.mark.parametrize("address", ["", "-oProxyCommand=x", "a b", "host:port", "user@[::1"])
def test_invalid_addresses_are_refused(address: str, echo_bundle: Path) -> None:
    with pytest.raises(DeviceError, match=r"is ssh:\[USER@\]HOST\[:PORT\]. Received"):
        SshDevice(address, echo_bundle, OPTIONS)


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [("pi", "pi", None), ("me@pi:2222", "me@pi", "2222"), ("me@[fe80::1]:22", "me@fe80::1", "22")],
)
def test_valid_addresses(address: str, host: str, port: str | None, echo_bundle: Path) -> None:
    command = SshDevice(address, echo_bundle, OPTIONS)._ssh
    assert command[-2:] == ["--", host]
    assert (command[command.index("-p") + 1] if port else None) == port
