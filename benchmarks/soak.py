"""Exports and checks one small network many times: memory, files and threads must not grow.

    python benchmarks/soak.py [--cycles 1000] [--folder DIR]

A cycle writes float32 and int8 as TFLite and ONNX and checks them on LiteRT and ONNX Runtime. All
cycles run in one process, as in a service that exports. Prints, at every tenth part, the memory of
the process and of its children, its open files and its threads; then the growth of memory per
cycle, as a straight line through the second half. The exit code is 1 if two cycles write different
bytes, a check fails, there are more open files or threads than before, or memory grows by more than
0.1 MB a cycle.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import renormlite as rl

_MOST_MB = 0.1  # growth per cycle


class Use(NamedTuple):
    """The resources that the process uses after a cycle."""

    own_mb: float
    children_mb: float
    files: int
    threads: int


def network() -> tuple[keras.Model, np.ndarray]:
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(8, 3, padding="same", use_bias=False)(image)
    x = keras.layers.ReLU()(rl.BatchRenormalization()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, keras.layers.Dense(10, activation="softmax")(x))
    return model, np.random.default_rng(0).random((64, 8, 8, 1), np.float32)


def cycle(model: keras.Model, x: np.ndarray, folder: Path) -> tuple[str, ...]:
    """Export and check; return the hashes of the files."""
    manifest = rl.export_model(
        model, folder, precisions=("float32", "int8"), calibration=x, inputs=x[:16]
    )
    report = rl.check_parity(folder, ("litert", "onnxruntime"))
    if not report.passed:
        raise SystemExit(f"a check failed:\n{report}")
    return tuple(artifact.sha256 for artifact in manifest.artifacts)


def used() -> Use:
    me = os.getpid()
    children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
    return Use(
        _resident_mb(str(me)),
        sum(_resident_mb(child) for child in children),
        len(os.listdir(f"/proc/{me}/fd")),
        len(os.listdir(f"/proc/{me}/task")),
    )


def _resident_mb(process: str) -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary one")
    options = parser.parse_args()
    model, x = network()
    uses, hashes = [], set()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for number in range(1, options.cycles + 1):
            hashes.add(cycle(model, x, Path(folder) / "net"))
            uses.append(used())
            if number % max(options.cycles // 10, 1) == 0:
                print(f"{number}: {uses[-1]}", flush=True)
    half = uses[len(uses) // 2 :]
    growth, _ = np.polyfit(range(len(half)), [use.own_mb for use in half], 1)
    more = (
        max(u.files for u in half) > uses[0].files,
        max(u.threads for u in half) > uses[0].threads,
    )
    print(f"{len(hashes)} different results, {growth:.3f} MB a cycle")
    return int(len(hashes) > 1 or any(more) or growth > _MOST_MB)


if __name__ == "__main__":
    raise SystemExit(main())
