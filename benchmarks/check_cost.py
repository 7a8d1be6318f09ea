"""What a check adds to plain inference of the same samples, without the per-op walk.

    python benchmarks/check_cost.py [--pairs 15]

Plain inference is: load the file, run every golden sample. The check is: the same, and hash the
file, read manifest and golden set, compare weights, measure and judge. Both run in one process,
interleaved; the share is the median of (check - plain) / plain.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import renormlite as rl
from check_networks import NAMES, export
from renormlite.runtime_checks.golden import read_golden
from renormlite.runtime_checks.manifest import read_export
from renormlite.runtime_checks.runners import Target
from renormlite.runtime_checks.target_check import run_target


def seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def compare(directory: Path, runtime: str, suffix: str, pairs: int) -> tuple[float, float]:
    """Return the median seconds of plain inference and the median share that a check adds."""
    exported = read_export(directory)
    golden = read_golden(exported.golden, [spec.name for spec in exported.outputs])
    artifact = next(a for a in exported.artifacts if a.format == suffix)
    path, target = directory / artifact.file, Target.parse(runtime)
    plain, share = [], []
    for _ in range(pairs):
        a = seconds(lambda: run_target(path, artifact, golden.inputs, target))
        b = seconds(lambda: rl.check_parity(directory, (runtime,)))
        plain.append(a)
        share.append((b - a) / a)
    return statistics.median(plain), statistics.median(share)


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    options = parser.parse_args()
    print("| network | runtime | plain ms | share added |\n| --- | --- | --- | --- |")
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            directory = export(name, 1, Path(folder) / name, ("float32",))
            for runtime, suffix in (("litert", "tflite"), ("onnxruntime", "onnx")):
                plain, share = compare(directory, runtime, suffix, options.pairs)
                print(f"| {name} | {runtime} | {1e3 * plain:.1f} | {share:.2f} |")


if __name__ == "__main__":
    main()
