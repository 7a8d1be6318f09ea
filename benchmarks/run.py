"""Run parts of the benchmarks, store the results as JSON, and write docs/benchmarks.md from it.

    python benchmarks/run.py                   every part, then the page
    python benchmarks/run.py purpose layer     these parts; the others keep their last numbers
    python benchmarks/run.py --document        the page alone

Each part consists of scripts in this folder that can also be run alone, in separate processes.
Where nothing is timed, one runs on each core. The results replace those in docs/benchmarks.json,
with the machine, the versions and the time.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from page import PARTS, write_page

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
RESULTS = DOCS / "benchmarks.json"
PACKAGES = ("tensorflow", "keras", "jax", "numpy", "onnxruntime", "ai-edge-litert", "tf2onnx")


def machine() -> dict[str, object]:
    """Return the processor, its load, and the versions."""
    lines = (
        Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    )
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _cpu_seconds() -> float:
    """Return the processor time of all threads of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _rows(command: Sequence[str]) -> list[dict[str, object]]:
    """Run one command of a part and return its rows."""
    script, *arguments = command
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        line = [sys.executable, str(HERE / script), *arguments, "--json", str(out)]
        subprocess.run(line, check=True)
        rows: list[dict[str, object]] = json.loads(out.read_text())
    return rows


def measured(name: str) -> dict[str, object]:
    """Run one part, which may be several commands, and return its record."""
    part = PARTS[name]
    load, start, used = os.getloadavg()[0], time.perf_counter(), _cpu_seconds()
    with ThreadPoolExecutor(1 if part.timed else os.cpu_count()) as together:
        rows = [row for found in together.map(_rows, part.commands) for row in found]
    return {
        "date": datetime.date.today().isoformat(),
        "seconds": round(time.perf_counter() - start),
        "cpu_seconds": round(_cpu_seconds() - used),
        "load_before": round(load, 1),
        "machine": machine(),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--document", action="store_true", help="write the page, run nothing")
    options = parser.parse_args()
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; there are: {', '.join(PARTS)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in [] if options.document else options.parts or PARTS:
        results[name] = measured(name)
        ordered = {part: results[part] for part in PARTS if part in results}
        RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")
    write_page(results, DOCS)


if __name__ == "__main__":
    main()
