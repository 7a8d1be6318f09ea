"""Describes this machine: Python, system, processor and its features, peak memory."""

from __future__ import annotations

import functools
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

# Features that determine kernels: an int8 or float16 result may depend on any of them.
_FEATURES = (
    *("sse4_1", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni"),
    *("avx_vnni", "amx_int8", "asimd", "asimdhp", "fphp", "asimddp", "i8mm", "sve", "sve2"),
    *("neon", "vfpv4"),
)


def host() -> dict[str, Any]:
    """Return the description of the machine for a report."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": platform.platform(),
        "cpu": cpu(),
    }


@functools.cache
def cpu() -> dict[str, Any]:
    """Return the processor's architecture, name and the features that determine kernels."""
    name, flags = "", set()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            key, _, value = (part.strip() for part in line.partition(":"))
            if key.lower() in ("model name", "hardware", "cpu part") and not name:
                name = value
            if key.lower() in ("flags", "features"):
                flags = set(value.split())
            if name and flags:  # that of one processor; a server lists more than a hundred
                break
    return {
        "machine": platform.machine(),
        "name": name or platform.processor(),
        "features": [feature for feature in _FEATURES if feature in flags],
    }


def peak_memory_bytes() -> int | None:
    """Return the peak resident size of this process in bytes; None if it is unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return int(peak if sys.platform == "darwin" else peak * 1024)
