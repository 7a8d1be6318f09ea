"""Measures the cost of RenormDiagnostics: training steps with and without it, in pairs.

    python benchmarks/diagnostics.py [--rounds N] [--json FILE]

Both train the same model in one process, in alternating rounds. The result is the median of the
ratios of CPU time within a round, with quartiles. `every = 50` is the callback's default;
`every = 1` observes each step, which is the largest cost. "off" is a second run without the
callback, which shows the noise.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import renormlite as rl
from renormlite.models import digits
from rows import Row, median_row, write

STEPS = 50


def small() -> tuple[keras.Model, np.ndarray]:
    """Return the digits network and a round of batches of 4: 5 norms, steps of a few ms."""
    return digits.build(rl.BatchRenormalization), _images(4, (8, 8, 1))


def large() -> tuple[keras.Model, np.ndarray]:
    """Return MobileNetV2 and a round of batches of 16: 52 norms."""
    model = keras.applications.MobileNetV2(input_shape=(64, 64, 3), weights=None, classes=10)
    return rl.to_renorm(model), _images(16, (64, 64, 3))


def _images(batch_size: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).random((STEPS * batch_size, *shape), np.float32)


def seconds(model: keras.Model, x: np.ndarray, callbacks: list[keras.callbacks.Callback]) -> float:
    """Return the CPU seconds of one epoch of STEPS steps."""
    y = np.arange(len(x)) % 10
    start = time.process_time()
    model.fit(x, y, batch_size=len(x) // STEPS, verbose=0, callbacks=callbacks)
    return time.process_time() - start


def compare(name: str, model: keras.Model, x: np.ndarray, rounds: int) -> list[Row]:
    """Print and return the ratios for one model."""
    model.compile("sgd", "sparse_categorical_crossentropy")
    ways = {"off": None, "every = 50": 50, "every = 1": 1}
    ratios: dict[str, list[float]] = {way: [] for way in ways}
    seconds(model, x, [])  # traces
    plain = []
    for _ in range(rounds):
        base = seconds(model, x, [])
        plain.append(base / STEPS * 1e3)
        for way, every in ways.items():
            callbacks = [] if every is None else [rl.RenormDiagnostics(every)]
            ratios[way].append(seconds(model, x, callbacks) / base)
    rows = [median_row(name, f"{way} / none", "ratio", found) for way, found in ratios.items()]
    rows.append(median_row(name, "step without, ms", "ms", plain))
    for row in rows:
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json")
    options = parser.parse_args()
    rows = compare("digits, 5 norms, batch 4", *small(), options.rounds)
    large_rounds = max(3, options.rounds // 3)
    rows += compare("MobileNetV2, 52 norms, 64 px, batch 16", *large(), large_rounds)
    write(rows, options.json)


if __name__ == "__main__":
    main()
