"""Protects what writes files: one run at a time, nothing left of killed runs, devices kept."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from renormlite import UserError
from renormlite.export.staging import moved_in_when_done
from renormlite.files import write_text
from renormlite.locks import LockedError, locked

HOLD = """
import sys, time
from pathlib import Path
from renormlite.{module} import {function}
with {function}(Path(sys.argv[1])) as place:
    print("ready", flush=True)
    time.sleep(60)
"""


def held(folder: Path, module: str, function: str) -> subprocess.Popen[str]:
    """Return a process that holds the lock while it writes."""
    program = HOLD.format(module=module, function=function)
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def killed(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_second_export_to_a_directory_is_refused_until_the_first_has_ended(tmp_path):
    first = held(tmp_path / "out", "export.staging", "moved_in_when_done")
    with (
        pytest.raises(UserError, match="Another export is being written"),
        moved_in_when_done(tmp_path / "out"),
    ):
        pass
    killed(first)
    assert [p.name[:8] for p in (tmp_path / "out").iterdir()] == [".export-"]
    with moved_in_when_done(tmp_path / "out") as staging:
        (staging / "new").touch()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_files_of_killed_runs_are_removed_and_those_of_running_ones_kept(tmp_path):
    killed(held(tmp_path / "killed.txt", "files", "atomic_path"))
    running = held(tmp_path / "running.txt", "files", "atomic_path")
    assert len(list(tmp_path.glob(".partial-*"))) == 1, "the folder of the killed run is left"
    write_text(tmp_path / "a.txt", "")
    assert len(list(tmp_path.glob(".partial-*"))) == 1
    killed(running)
    write_text(tmp_path / "b.txt", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]


def test_a_new_folder_that_is_not_locked_yet_is_kept(tmp_path):
    new_folder = tmp_path / ".new.partial-abc"
    new_folder.mkdir()
    write_text(tmp_path / "a.txt", "")
    assert new_folder.is_dir()
    os.utime(new_folder, (time.time() - 100,) * 2)
    write_text(tmp_path / "a.txt", "")
    assert not new_folder.exists()


def test_the_next_command_removes_temporary_files_of_a_killed_one(tmp_path):
    program = (
        "import os, signal, subprocess, sys, tempfile\n"
        "from renormlite.locks import run_folder\n"
        "with run_folder():\n"
        "    tempfile.mkstemp()\n"
        "    subprocess.run([sys.executable, '-c', 'import tempfile; tempfile.mkstemp()'])\n"
        "    if len(sys.argv) > 1:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program, "die"], env=environment)
    (left,) = tmp_path.iterdir()
    assert len(list(left.iterdir())) == 2
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_belongs_to_the_folder_that_now_has_the_name(tmp_path):
    """A process that waits for a folder that is replaced meanwhile locks the new one."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with locked(folder):
        with pytest.raises(LockedError), locked(folder):
            pass
        folder.rename(tmp_path / "old")
        folder.mkdir()
        with locked(folder):
            pass


FORK = """
import os, sys
from pathlib import Path
from renormlite.locks import own_folder
with own_folder("run-", Path(sys.argv[1])) as folder:
    process = os.fork()
    if process == 0:
        raise SystemExit
    os.waitpid(process, 0)
    assert folder.is_dir()
assert not folder.exists()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_does_not_remove_the_folder_of_its_parent(tmp_path):
    subprocess.run([sys.executable, "-c", FORK, str(tmp_path)], check=True)


def test_a_pipe_or_a_device_is_written_to_and_not_replaced(tmp_path):
    pipe, read = tmp_path / "report.json", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(pipe, "{}\n")
    reader.join(10)
    assert read == ["{}\n"]
    assert pipe.is_fifo()
    assert os.listdir(tmp_path) == [pipe.name]
