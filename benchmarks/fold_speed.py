"""CPU time of a fold without proof relative to `clone_model` and a copy of the weights, by depth.

    python benchmarks/fold_speed.py [--rounds N] [--json FILE]

Pairs alternate in one process; the result is the median of the ratios. Depth is measured on chains
of conv -> norm -> relu of 100, 300 and 1000 layers. Memory is the growth of the peak of the process
during one fold, divided by the bytes of the network's weights.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from renormlite import fold
from rows import Row, median_row, write

# Keras traverses a graph by recursion, one or two frames per layer; a chain of 1000 needs more.
sys.setrecursionlimit(20_000)


def clone(model: keras.Model) -> keras.Model:
    """Rebuild a network and copy its weights, which every fold needs."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of one call, after collecting the garbage of the previous one."""
    gc.collect()
    start = time.process_time()
    work()
    return time.process_time() - start


def paired(name: str, model: keras.Model, rounds: int) -> list[Row]:
    """Measure both in turn."""
    fold(model, verify=False)
    clone(model)
    pairs = [
        (seconds(lambda: fold(model, verify=False)), seconds(lambda: clone(model)))
        for _ in range(rounds)
    ]
    layers = len(model.layers)
    rows = [
        median_row(name, "fold / (clone + copy)", "ratio", [one / other for one, other in pairs]),
        median_row(name, "fold, ms a layer", "ms", [one / layers * 1e3 for one, _ in pairs]),
    ]
    for row in rows:
        print(row, flush=True)
    return rows


def chain(layers: int) -> keras.Model:
    """Build a chain of conv -> norm -> relu with ``layers`` layers."""
    x = y = keras.Input((8, 8, 4))
    for i in range(layers):
        layer = (
            keras.layers.Conv2D(4, 3, padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        )[i % 3]
        y = layer(y)
    return keras.Model(x, y)


def memory() -> dict[str, float]:
    """Return the peak of memory during a fold of ResNet50, relative to the bytes of its weights.

    The memory before the fold is subtracted; the folded network itself counts as 1.
    """
    model = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=10)
    fold(chain(6), verify=False)  # memory that TensorFlow allocates once is not counted
    gc.collect()
    weights = sum(w.numpy().nbytes for w in model.weights)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak (Linux)
    before = _status("VmRSS")
    result = fold(model, verify=False)
    after = _status("VmHWM")
    del result
    return {"ratio": (after - before) / weights, "weights_mib": weights / 2**20}


def _status(key: str) -> int:
    """Return a value of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(memory()))
        return
    rows = []
    for name in ("MobileNetV2", "ResNet152"):
        model = getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=10)
        rows += paired(name, model, options.rounds)
        del model
        keras.backend.clear_session()
    for layers in (100, 300, 1000):
        rows += paired(f"chain of {layers}", chain(layers), options.rounds)
        keras.backend.clear_session()
    child = subprocess.run(
        [sys.executable, __file__, "--memory"], capture_output=True, text=True, check=True
    )
    peak = json.loads(child.stdout.splitlines()[-1])["ratio"]
    rows.append(median_row("ResNet50", "peak memory / weights", "ratio", [peak]))
    print(rows[-1])
    write(rows, options.json)


if __name__ == "__main__":
    main()
