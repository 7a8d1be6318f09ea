"""Protects that a check ended by Ctrl-C or a signal leaves no process and no file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.devices


def running(text: str) -> bool:
    listing = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True)
    return text in listing.stdout


@pytest.mark.parametrize(
    ("target", "number"),
    [("litert@qemu-aarch64", signal.SIGINT), ("litert-web", signal.SIGTERM)],
)
def test_no_process_and_no_file_is_left(
    exports: dict[str, Path], target: str, number: signal.Signals
) -> None:
    with tempfile.TemporaryDirectory(prefix="rl-", dir="/tmp") as folder:
        check = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "renormlite",
                "check",
                str(exports["mobilenet"]),
                "--on",
                target,
            ],
            env={**os.environ, "TMPDIR": folder},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        # The emulator's script and the browser's profile are both in the temporary folder.
        mark = f"{folder}/renormlite-"
        while not running(mark):
            assert check.poll() is None, check.communicate()[1]
            time.sleep(0.05)
        check.send_signal(number)
        _, stderr = check.communicate(timeout=60)
        assert check.returncode == 128 + number
        assert b"Traceback" not in stderr
        for _ in range(50):  # a grandchild ends a moment later
            if not running(mark):
                break
            time.sleep(0.1)
        assert not running(mark)
        assert os.listdir(folder) == []
