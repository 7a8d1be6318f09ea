"""Runs on the device: manages a working folder, runs the jobs in it, and cleans up.

The host sends this file to the device's Python, which prints the folder's name. The agent then runs
as a process of its own: it runs each job that the host writes into the folder under a time limit
and writes the result beside it. When the host removes the folder, or does not renew the lease in
time, the agent ends the running job, removes the folder and exits. A lost connection therefore
loses no result, and a host that never returns leaves nothing behind.

Needs Python 3.9 and its standard library; argument: the lease in seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

JOB, DONE, LEASE = "job.json", "done.json", "lease"


def main() -> None:
    """Create the folder, print its name, and continue as a background process."""
    lease_s = float(sys.argv[1])
    folder = tempfile.mkdtemp(prefix="renormlite-")
    open(os.path.join(folder, LEASE), "w").close()
    sys.stdout.write(folder + "\n")
    sys.stdout.flush()
    # The double fork of a daemon: the host's connection must neither wait for it nor end it.
    if os.fork() > 0:
        os._exit(0)
    os.setsid()
    if os.fork() > 0:
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    try:
        keep(folder, lease_s)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def keep(folder: str, lease_s: float) -> None:
    """Run jobs until the folder is gone or the lease has run out.

    A host that lost its connection while it wrote a job writes it again; the job runs once.
    """
    performed = ""
    while alive(folder, lease_s):
        job = take(folder)
        if job is None or job["job"] == performed:
            time.sleep(0.1)
        else:
            perform(job, folder, lease_s)
            performed = job["job"]


def alive(folder: str, lease_s: float) -> bool:
    """Return whether the host still uses the folder: each request renews the lease."""
    try:
        return time.time() - os.path.getmtime(os.path.join(folder, LEASE)) < lease_s
    except OSError:
        return False


def take(folder: str) -> dict[str, Any] | None:
    """Return the next job and remove its file, or None."""
    path = os.path.join(folder, JOB)
    try:
        with open(path) as stream:
            job: dict[str, Any] = json.load(stream)
        os.remove(path)
    except (OSError, ValueError):
        return None
    return job


def perform(job: dict[str, Any], folder: str, lease_s: float) -> None:
    """Run one job until it ends, its time limit, or the end of the lease."""
    for name in job["collect"]:
        if os.path.exists(os.path.join(folder, name)):
            os.remove(os.path.join(folder, name))
    log = os.path.join(folder, "log.txt")
    deadline = time.time() + job["timeout_s"]
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            job["command"],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )
    code = None
    while code is None and time.time() < deadline and alive(folder, lease_s):
        time.sleep(0.05)
        code = process.poll()
    with contextlib.suppress(OSError):  # it and its children may have ended already
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    sizes = {}
    for name in [*job["collect"], "log.txt"]:
        path = os.path.join(folder, name)
        if os.path.exists(path):
            sizes[name] = os.path.getsize(path)
    result = {"job": job["job"], "code": code, "sizes": sizes}
    partial = os.path.join(folder, DONE + ".part")
    with contextlib.suppress(OSError):  # the folder is gone, so nobody waits for the result
        with open(partial, "w") as stream:
            json.dump(result, stream)
        os.rename(partial, os.path.join(folder, DONE))


if __name__ == "__main__":
    main()
