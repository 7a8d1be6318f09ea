"""Protects `renormlite device` and `targets`: mirrors of apt, complete or absent components."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from renormlite.cli import device, targets
from renormlite.cli.device_options import with_processors
from renormlite.devices.base import DeviceError, DeviceOptions
from renormlite.devices.process import TimeLimitError, run
from renormlite.devices.qemu import QemuAarch64
from renormlite.devices.setup import apt, emulated_systems, web_packages
from renormlite.devices.setup.cache import Component, cache_root
from renormlite.errors import UserError

pytestmark = pytest.mark.devices


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("RENORMLITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_folder_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RENORMLITE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "renormlite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "renormlite"
    monkeypatch.setenv("RENORMLITE_CACHE", str(tmp_path / "mine"))
    assert cache_root() == tmp_path / "mine"


def test_a_component_appears_whole_or_not_at_all(empty_cache: Path) -> None:
    component = Component("thing", {"version": 1}, needs_bytes=1000)
    lines: list[str] = []

    def fail(folder: Path) -> dict[str, str]:
        (folder / "half").write_text("half")
        raise DeviceError("no network")

    with pytest.raises(DeviceError, match="no network"):
        component.make(fail, lines.append)
    assert [path.name for path in component.path.parent.iterdir()] == [".thing.lock"]
    assert component.record() is None

    def build(folder: Path) -> dict[str, str]:
        (folder / "file").write_text("0123456789")
        return {"made": "yes"}

    noted = component.make(build, lines.append)
    assert noted["bytes"] == 10
    assert component.record() == noted
    # The second call does not build again.
    assert component.make(fail, lines.append) == noted
    # Another recipe replaces the component.
    newer = Component("thing", {"version": 2}, needs_bytes=1000)
    assert newer.record() is None
    newer.make(build, lines.append)
    assert component.record() is None
    # Files that a killed process left are removed with it.
    partial = newer.path.parent / ".thing.part-abc"
    partial.mkdir()
    (partial / "half").write_text("12345")
    assert newer.remove() > 15
    assert not partial.exists()
    assert newer.remove() == 0


# At each mark it waits for a line.
MAKE_AND_REMOVE = """
import sys
from renormlite.devices.setup.cache import Component
component = Component("thing", {"version": 1}, needs_bytes=1000)

def mark():
    print("mark", flush=True)
    sys.stdin.readline()

def build(folder):
    for number in range(300):
        (folder / f"{number}").write_text("0123456789")
        if number == 150:
            mark()
    return {}

mark()
while True:
    component.make(build, lambda line: None)
    mark()
    component.remove()
    mark()
"""


def test_a_component_is_whole_or_absent_after_a_kill(empty_cache: Path) -> None:
    component = Component("thing", {"version": 1}, needs_bytes=1000)
    found = set()
    for number, moment in enumerate(np.random.default_rng(0).uniform(0, 0.01, 14)):
        process = subprocess.Popen(
            [sys.executable, "-c", MAKE_AND_REMOVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(1 + number % 7):
            assert process.stdout.readline() == "mark\n"
            process.stdin.write("\n")
            process.stdin.flush()
        if number % 2:  # at the next mark, otherwise between two
            assert process.stdout.readline() == "mark\n"
        else:
            time.sleep(moment)
        process.kill()
        process.communicate()
        whole = component.record() is not None
        assert not whole or len(list(component.path.iterdir())) == 301
        found.add(whole)
    assert found == {True, False}
    component.remove()
    assert [path.name for path in component.path.parent.iterdir()] == [".thing.lock"]


def test_a_cache_that_is_full_or_not_writable_is_an_error(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = Component("huge", {}, needs_bytes=1 << 60)
    with pytest.raises(DeviceError, match=r"MB free and huge takes 1152921504606.8 MB: free some"):
        huge.make(lambda folder: {}, print)
    blocked = empty_cache / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("RENORMLITE_CACHE", str(blocked))
    with pytest.raises(DeviceError, match=r"cannot be written .* set RENORMLITE_CACHE to one"):
        huge.make(lambda folder: {}, print)


def test_mirrors_are_read_from_both_formats_of_apt(tmp_path: Path) -> None:
    modern = tmp_path / "debian.sources"
    modern.write_text(
        "# a comment\nTypes: deb deb-src\nURIs: http://a.example/debian http://b.example/debian\n"
        "Suites: trixie\nComponents: main\nSigned-By:\n -----BEGIN-----\n .\n abc\n\n"
        "Types: deb\nURIs: http://off.example\nSuites: x\nEnabled: no\n\n"
        "Types: deb-src\nURIs: http://source.example\nSuites: x\n"
    )
    found = apt._entries(modern)
    assert [mirror.uri for mirror in found] == [
        "http://a.example/debian",
        "http://b.example/debian",
    ]
    assert found[0].signed_by == "-----BEGIN-----\n .\n abc"
    classic = tmp_path / "some.list"
    classic.write_text(
        "# deb http://no.example x main\ndeb [arch=amd64 signed-by=/k.gpg] http://c.example y m\n"
        "deb-src http://no.example x main\ndeb http://d.example y main\n"
    )
    assert apt._entries(classic) == [
        apt.Mirror("http://c.example", "/k.gpg"),
        apt.Mirror("http://d.example", None),
    ]
    other = tmp_path / "debian.sources.save"
    other.write_text(modern.read_text())
    assert apt._entries(other) == []


def test_a_suite_that_no_mirror_has_is_an_error(tmp_path: Path) -> None:
    archive = apt.Archive(tmp_path, "bookworm", "arm64")
    mirror = apt.Mirror(f"file://{tmp_path}/nowhere")
    with pytest.raises(DeviceError, match=r"No mirror .* has bookworm for arm64 .* --source URI"):
        archive.open([mirror], print)


@pytest.mark.parametrize(
    ("program", "build", "message"),
    [
        (
            "apt-get",
            lambda: emulated_systems.build(emulated_systems.ARMV7, source=None, progress=print),
            "'apt-get'",
        ),
        ("npm", lambda: web_packages.build(progress=print), "npm, which is not installed"),
    ],
)
def test_messages_about_missing_programs_say_what_to_install(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, program: str, build: object, message: str
) -> None:
    real = shutil.which
    gone = {program, "qemu-arm", "qemu-arm-static"}
    monkeypatch.setattr(
        "shutil.which", lambda name, **options: None if name in gone else real(name, **options)
    )
    with pytest.raises(DeviceError, match=message):
        build()  # type: ignore[operator]
    assert not list(empty_cache.glob("devices/*"))


def test_a_system_that_is_not_set_up_is_refused(empty_cache: Path, echo_bundle: Path) -> None:
    with pytest.raises(DeviceError, match="Run: renormlite device setup qemu-aarch64"):
        QemuAarch64("", echo_bundle, DeviceOptions()).__enter__()


def test_an_unknown_processor_is_refused(echo_bundle: Path) -> None:
    with pytest.raises(DeviceError, match=r"names no processor .* Known are cortex-a76"):
        QemuAarch64("pentium", echo_bundle, DeviceOptions())


def test_an_emulated_run_that_hangs_or_crashes_or_lacks_the_runtime_is_an_error(
    echo_bundle: Path,
) -> None:
    with (
        QemuAarch64("", echo_bundle, DeviceOptions(timeout_s=3)) as emulated,
        pytest.raises(DeviceError, match="within 3 s and was ended; --device-timeout allows"),
    ):
        emulated.run("litert", ["--sleep", "60"])
    with QemuAarch64("", echo_bundle, DeviceOptions()) as emulated:
        with pytest.raises(DeviceError, match=r"returned no results on qemu-aarch64: bad luck"):
            emulated.run("litert", ["--die", "bad luck"])
        with pytest.raises(DeviceError, match=r"qemu-aarch64 has no 'tf-lite'. It has litert"):
            emulated.require("tf-lite")


def test_targets_without_a_processor_are_repeated_for_each_processor() -> None:
    chosen = with_processors(
        ["litert", "litert@qemu-aarch64", "litert@qemu-aarch64:max", "tflite-runtime@qemu-armv7"],
        ["cortex-a53", "cortex-a76", "cortex-a7"],
    )
    assert chosen == [
        "litert",
        "litert@qemu-aarch64:cortex-a53",
        "litert@qemu-aarch64:cortex-a76",
        "litert@qemu-aarch64:max",
        "tflite-runtime@qemu-armv7:cortex-a7",
    ]
    with pytest.raises(UserError, match=r"--cpu must name processors .* Received: pentium"):
        with_processors(["litert@qemu-aarch64"], ["pentium"])


def test_targets_lists_what_each_target_lacks(empty_cache: Path) -> None:
    done = CliRunner().invoke(targets.command, ["--json", "-"])
    assert done.exit_code == 0
    rows = {row["target"]: row for row in json.loads(done.stdout)}
    assert rows["litert"]["usable"]
    assert rows["litert"]["version"]
    for name in ("litert@qemu-aarch64", "tflite-runtime@qemu-armv7", "litert-web@browser"):
        assert not rows[name]["usable"]
        assert rows[name]["command"] == f"renormlite device setup {name.partition('@')[2]}"
    assert rows["RUNTIME@ssh:USER@HOST"]["usable"]
    assert all(row["usable"] or row["command"] for row in rows.values())


def test_targets_are_usable_once_everything_is_set_up() -> None:
    done = CliRunner().invoke(targets.command, ["--json", "-"])
    rows = {row["target"]: row for row in json.loads(done.stdout)}
    emulated = [row for name, row in rows.items() if "@qemu" in name or "@browser" in name]
    assert len(emulated) >= 8
    assert all(row["usable"] and row["version"] for row in emulated)
    shown = CliRunner().invoke(targets.command, [])
    assert f"of {len(rows)} usable here" in shown.stdout


def test_setup_refuses_unknown_devices_and_remove_reports_absent_ones(empty_cache: Path) -> None:
    done = CliRunner().invoke(device.command, ["setup", "toaster"])
    assert done.exit_code == 2
    removed = CliRunner().invoke(device.command, ["remove"])
    assert removed.exit_code == 0
    assert removed.stdout.count("was not set up") == 4


def test_a_process_ends_at_its_time_limit() -> None:
    with pytest.raises(TimeLimitError, match=r"'sh' gave no answer within 0.3 s"):
        run(["sh", "-c", "sleep 41.5 & sleep 41.5"], timeout_s=0.3)
    assert "sleep 41.5" not in run(["ps", "-ww", "-eo", "args"], timeout_s=10).out.decode()
    with pytest.raises(DeviceError, match="There is no program 'no-such-program'"):
        run(["no-such-program"], timeout_s=1)
