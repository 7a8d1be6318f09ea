"""Fold without proof against `clone_model` plus a copy of the weights, and how it grows with depth.

    python benchmarks/fold_speed.py [--rounds N] [--json FILE]

Pairs in one process, A B A B: what is quoted is the median of the ratios, never a time alone. Depth
is measured on chains of conv -> norm -> relu of 100, 300 and 1000 layers, memory as the growth of
the process's peak during one fold, over the bytes of the network's weights.
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

# Keras walks a graph by recursion, a frame or two a layer; a chain of 1000 needs more than 1000.
sys.setrecursionlimit(20_000)


def clone(model: keras.Model) -> keras.Model:
    """Rebuild a network and copy its weights: what a fold cannot do without."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def seconds(work: Callable[[], object]) -> float:
    """Return how long one call takes, the garbage of the last one collected before."""
    gc.collect()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


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
    """Build conv -> norm -> relu again and again, ``layers`` layers in all."""
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
    """Return how far memory peaks above the loaded ResNet50 during a fold, over its weights.

    The folded network itself, which stays, is one of them.
    """
    model = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=10)
    fold(chain(6), verify=False)  # what TensorFlow takes once is not the fold's
    gc.collect()
    weights = sum(w.numpy().nbytes for w in model.weights)
    Path("/proc/self/clear_refs").write_text("5")  # from here on the peak is the fold's (Linux)
    before = _status("VmRSS")
    result = fold(model, verify=False)
    after = _status("VmHWM")
    del result
    return {"ratio": (after - before) / weights, "weights_mib": weights / 2**20}


def _status(key: str) -> int:
    """Return an entry of the kernel's account of this process, in bytes."""
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
