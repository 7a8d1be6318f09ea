"""Protects the browser as a device: refusals, hangs, and restricted network access."""

from __future__ import annotations

import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from renormlite.artifacts.directory import read_export
from renormlite.artifacts.golden_set import read_golden
from renormlite.devices import browser as browser_module
from renormlite.devices import chromium, run_on_device
from renormlite.devices.base import DeviceError, DeviceOptions
from renormlite.devices.browser import LiteRTWebRunner
from renormlite.devices.chromium import Browser
from renormlite.devices.server import PageServer
from renormlite.runtimes import Target
from renormlite.runtimes.base import ArtifactError

pytestmark = pytest.mark.devices

OPTIONS = DeviceOptions(timeout_s=60)


def browsers_of(profile: str) -> list[str]:
    """Command lines of running browsers whose profile lies below a folder."""
    listing = subprocess.run(
        ["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True
    )
    return [line for line in listing.stdout.splitlines() if f"--user-data-dir={profile}" in line]


def test_a_runtime_that_the_device_cannot_have_is_refused(exports: dict[str, Path]) -> None:
    export = read_export(exports["digits"])
    golden = read_golden(export.golden, [spec.name for spec in export.outputs])
    for text, message in (
        ("litert@browser", r"'litert' does not run on 'browser': the browser runs litert-web"),
        ("litert-web@qemu-aarch64", r"'litert-web' does not run on 'qemu-aarch64'"),
        ("litert@toaster:1", r"A device is one of local, qemu-aarch64, .*Received: 'toaster:1'"),
    ):
        runs = run_on_device(export, export.artifacts, golden.inputs, Target.parse(text))
        with pytest.raises(DeviceError, match=message):
            next(runs)


def test_the_number_of_threads_does_not_change_the_outputs(exports: dict[str, Path]) -> None:
    export = read_export(exports["digits"])
    golden = read_golden(export.golden, [spec.name for spec in export.outputs])
    artifacts = [a for a in export.artifacts if a.precision == "float32"]
    for name in ("litert-web", "onnxruntime-web"):
        target = Target.parse(name)
        fitting = [a for a in artifacts if a.format in target.formats]
        one, two = (
            next(
                run_on_device(
                    export, fitting, golden.inputs, target, threads=threads, options=OPTIONS
                )
            )[1]
            for threads in (1, 2)
        )
        assert two.ran["threads"] == 2
        assert "fallback" not in two.ran
        for output, expected in one.outputs.items():
            np.testing.assert_allclose(two.outputs[output], expected, rtol=1e-5, atol=1e-7)


def test_a_broken_file_is_a_finding(tmp_path: Path) -> None:
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"TFL3" * 100)
    with pytest.raises(ArtifactError, match=r"litert-web cannot load broken.tflite: "):
        LiteRTWebRunner(broken).__enter__()


def test_a_missing_accelerator_is_an_error_and_no_silent_fallback(exports: dict[str, Path]) -> None:
    export = read_export(exports["digits"])
    path = export.path / "digits.float32.tflite"
    with Browser(OPTIONS) as browser:
        runner = LiteRTWebRunner(path, variant="webgpu", browser=browser)
        with pytest.raises(ArtifactError, match="WebGPU"):
            runner.__enter__()


@pytest.fixture
def short_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder for this test whose path is short enough for a browser's socket."""
    with tempfile.TemporaryDirectory(prefix="rl-", dir="/tmp") as folder:
        monkeypatch.setattr("tempfile.tempdir", folder)
        yield Path(folder)


@pytest.mark.parametrize("length", [32, 33, 41, 42, 200])
def test_the_browser_starts_with_a_temporary_folder_of_any_length(
    monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """The path of a browser's socket is limited to 107 bytes, regardless of TMPDIR."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as short:
        folder = Path(short) / ("x" * (length - len(short) - 1))
        folder.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        monkeypatch.setenv("TMPDIR", str(folder))
        with Browser(OPTIONS) as browser:
            assert browser.ask(lambda: browser.new_page().evaluate("6 * 7")) == 42
        assert list(folder.iterdir()) == []


def test_a_path_that_is_too_long_for_the_socket_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chromium, "_LONGEST_FOLDER", 14)
    with pytest.raises(DeviceError, match=r"path has at most 3 characters: set TMPDIR to one"):
        Browser(OPTIONS).__enter__()


def test_a_browser_that_hangs_is_ended(short_path: Path) -> None:
    tmp_path = short_path
    with Browser(replace(OPTIONS, timeout_s=3)) as browser:
        assert browsers_of(str(tmp_path))
        page = browser.ask(browser.new_page)
        with pytest.raises(DeviceError, match=r"gave no answer within 3 s and was ended"):
            browser.ask(lambda: page.evaluate("() => { for (;;); }"))
        with pytest.raises(DeviceError, match="has been ended after it hung"):
            browser.ask(browser.new_page)
    for _ in range(50):
        if not browsers_of(str(tmp_path)):
            break
        time.sleep(0.1)
    assert browsers_of(str(tmp_path)) == []
    assert [path.name for path in tmp_path.iterdir()] == []


def test_the_message_about_a_hanging_page_names_the_option_for_more_time(
    exports: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browser_module, "_RUN", "fed => { for (;;); }")
    export = read_export(exports["digits"])
    golden = read_golden(export.golden, [spec.name for spec in export.outputs])
    runs = run_on_device(
        export,
        export.artifacts[:1],
        golden.inputs,
        Target.parse("litert-web"),
        options=replace(OPTIONS, timeout_s=3),
    )
    with pytest.raises(DeviceError, match=r"within 3 s and was ended; --device-timeout allows"):
        next(runs)


def test_a_page_can_only_reach_loopback() -> None:
    with Browser(OPTIONS) as browser:

        def fetch(url: str) -> Any:
            page = browser.new_page()
            page.goto(browser.server.url)
            script = "url => fetch(url).then(r => r.status, e => String(e))"
            return page.evaluate(script, url)

        assert browser.ask(lambda: fetch(browser.server.url + "harness.mjs")) == 200
        assert "Failed to fetch" in browser.ask(lambda: fetch("http://127.0.0.1:9/"))
        assert "Failed to fetch" in browser.ask(lambda: fetch("http://renormlite.invalid/"))


def test_the_server_refuses_other_files_and_hosts(tmp_path: Path) -> None:
    for name in ("pages", "packages"):
        (tmp_path / name).mkdir()
    (tmp_path / "secret").write_text("no")
    (tmp_path / "pages" / "index.html").write_text("page")
    with PageServer(tmp_path / "pages", tmp_path / "packages") as server:
        with urllib.request.urlopen(server.url) as answer:
            assert answer.read() == b"page"
            assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        for path in ("secret", "packages/../secret", "packages/%2e%2e/secret", "artifact", "a/b"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(server.url + path)
        for host in ("attacker.example", "127.0.0.1", ""):  # DNS rebinding
            foreign = urllib.request.Request(server.url, headers={"Host": host})
            with pytest.raises(urllib.error.HTTPError, match="421"):
                urllib.request.urlopen(foreign)


def test_a_program_that_is_not_a_browser_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"--browser must name a program. Received: '/no/such'"):
        Browser(replace(OPTIONS, browser=Path("/no/such"))).__enter__()
    broken = tmp_path / "browser"
    broken.write_text("#!/bin/sh\necho cannot open display >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(DeviceError, match=r"does not start: cannot open display"):
        Browser(replace(OPTIONS, browser=broken)).__enter__()
