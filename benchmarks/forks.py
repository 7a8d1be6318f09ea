"""Waits for forked processes."""

from __future__ import annotations

import os
import resource
import signal
import time


def wait(child: int, limit_s: float) -> tuple[int, resource.struct_rusage, bool]:
    """Wait for a forked process, the leader of its process group.

    Args:
        child: Its number.
        limit_s: Elapsed seconds after which the group is killed.

    Returns:
        Its wait status, what it used, and whether it was killed.
    """
    deadline, killed = time.monotonic() + limit_s, False
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            return status, usage, killed
        if not killed and time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            killed = True
        time.sleep(0.01)
