"""Tests every reader of files with hostile files.

    python benchmarks/fuzz_files.py [--count 100000] [--seed 0] [--only NAME] [--json FILE]

Each parser reads altered copies of healthy files in a separate process. Prints every input that
ends in something other than a result or one sentence, takes more than 10 seconds or crashes the
process: the first of each kind with its number; the exit code is then 1. Also prints the peak
memory of each process. Loading a Keras model is a hundred times slower than the other parsers, so
it gets a hundredth of the inputs.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

_LONGEST_S = 10
_LARGEST_GB = 2.0
_REACHED = "reached.txt"  # number of the input that is being read


def main() -> int:
    """Run the requested parsers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="total number of inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="name of a parser; repeatable")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return _work(*options.work)
    import hostile
    from healthy_files import write_healthy_files

    names = options.only or list(hostile.PARSERS)
    if unknown := set(names) - set(hostile.PARSERS):
        parser.error(f"no parser {', '.join(unknown)}; known are {', '.join(hostile.PARSERS)}")
    share = max(1, options.count // len(names))
    results, good = {}, True
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        healthy = write_healthy_files(Path(folder))
        for name in names:
            count = max(1, share // 100) if name == "keras" else share
            result = _run(name, healthy[name], options.seed, count)
            results[name] = result
            escaped = sum(result["escapes"].values())
            good = good and not escaped and result["inputs"] == count
            good = good and result["peak_gb"] < _LARGEST_GB
            print(
                f"{name:14} {result['inputs']:7} inputs, {escaped} escaped, "
                f"{result['seconds']:.0f} s, longest {result['longest_s']:.1f} s, "
                f"{result['peak_gb']:.1f} GB",
                flush=True,
            )
            for kind, number in result["escapes"].items():
                print(f"    {number} x {kind}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0 if good else 1


def _run(name: str, healthy: Path, seed: int, count: int) -> dict:
    """Let one parser read its inputs; after a crash, continue with the next input."""
    total: dict = {"inputs": 0, "escapes": Counter(), "longest_s": 0.0, "peak_gb": 0.0}
    started = time.monotonic()
    while total["inputs"] < count:
        at = seed + total["inputs"]
        work = [name, str(healthy), str(at), str(count - total["inputs"]), str(healthy.parent)]
        run = subprocess.run(
            [sys.executable, __file__, "--work", *work], capture_output=True, text=True
        )
        lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
        report = json.loads(lines[-1]) if lines else {"inputs": 0, "escapes": {}}
        reached = healthy.with_name(_REACHED)
        place = reached.read_text() if run.returncode and reached.exists() else ""
        died_at = int(place) if place else None  # empty if it died while it wrote
        reached.unlink(missing_ok=True)
        total["inputs"] = report["inputs"] + at - seed
        total["escapes"].update(report["escapes"])
        for key in ("longest_s", "peak_gb"):
            total[key] = max(total[key], report.get(key, 0.0))
        if run.returncode:
            how = "hung" if "Timeout" in run.stderr else f"died ({run.returncode})"
            total["escapes"][f"{how}, input {died_at}"] += 1
            if died_at is None or len(total["escapes"]) > 50:
                print(run.stderr[-2000:])
                break
            total["inputs"] = died_at + 1 - seed
    return {**total, "seconds": time.monotonic() - started}


def _work(name: str, healthy: str, seed: str, count: str, folder: str) -> int:
    """Read inputs in this process; each report on standard output replaces the previous one."""
    import hostile

    parser, data = hostile.PARSERS[name], Path(healthy).read_bytes()
    place = hostile.place_of(name, Path(tempfile.mkdtemp(dir=folder)))
    escapes: dict[str, int] = {}
    firsts: dict[str, str] = {}
    longest = 0.0
    reached = Path(healthy).with_name(_REACHED)
    place.write_bytes(data)
    parser.read(place)  # imports its modules
    for done in range(int(count)):
        number = int(seed) + done
        if done % 200 == 0:
            _report(done, escapes, firsts, longest)
        reached.write_text(str(number))
        place.write_bytes(next(hostile.inputs(parser, data, number)))
        faulthandler.dump_traceback_later(_LONGEST_S, exit=True)
        began = time.monotonic()
        wrong = hostile.outcome(parser.read, place)
        longest = max(longest, time.monotonic() - began)
        if wrong:
            kind = re.sub(r"[0-9]+|'[^']*'|\"[^\"]*\"", "_", wrong)[:90]
            escapes[kind] = escapes.get(kind, 0) + 1
            firsts.setdefault(kind, f"{wrong[:200]} (input {number})")
    faulthandler.cancel_dump_traceback_later()
    _report(int(count), escapes, firsts, longest)
    return 0


def _report(done: int, escapes: dict[str, int], firsts: dict[str, str], longest: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    named = {firsts[kind]: number for kind, number in escapes.items()}
    record = {"inputs": done, "escapes": named, "longest_s": longest, "peak_gb": peak}
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    sys.exit(main())
