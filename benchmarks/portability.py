"""Counts the sums that two rounding rules round differently, before and after `--portable`.

The network is MobileNetV2 with random weights and statistics. For each limit on the change of a
scale, in units in the last place, with and without changes to fractions, it prints the number of
channels with sums that XNNPACK and single rounding round to different integers, the number of these
sums, and the CPU time. Random sums then test whether a difference is missing.

    python benchmarks/portability.py [--size 96] [--random 1000000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import renormlite as rl
from renormlite.artifacts.graphs import read_graph
from renormlite.export.quantization import portable
from renormlite.reference.integer.linear_sums import LinearSums, linear_ops
from renormlite.reference.rounding.xnnpack import TFLITE_RULES

XNNPACK, SINGLE = TFLITE_RULES[0], TFLITE_RULES[-1]


def mobilenet(size: int) -> keras.Model:
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    model = keras.applications.MobileNetV2((size, size, 3), weights=None, classes=100)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.gamma.shape
            layer.set_weights(
                [
                    generator.uniform(0.5, 1.5, shape),
                    generator.normal(size=shape),
                    generator.normal(size=shape),
                    generator.uniform(0.5, 2, shape),
                ]
            )
    return model


def unlisted(ops: list[tuple[LinearSums, np.ndarray]], wanted: int) -> tuple[int, int]:
    """Round random sums with certified scales; return their number and that of new differences."""
    generator, tried, new = np.random.default_rng(0), 0, 0
    rows = -(-wanted // sum(len(w) for _, w in ops))
    for sums, scales in ops:
        random = generator.integers(sums.ends[0], sums.ends[1] + 1, (rows, sums.ends.shape[1]))
        one, other = (
            sums.output.saturated(sums.rounded(rule, random, scales)) for rule in (XNNPACK, SINGLE)
        )
        listed = portable.disputed_sums(sums, scales) > 0
        new += int(((one != other) & ~listed).sum())
        tried += random.size
    return tried, new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--random", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        manifest = rl.export_model(
            mobilenet(arguments.size),
            Path(folder) / "net",
            formats=("tflite",),
            precisions=("int8",),
            calibration="random",
            calibration_samples=8,
            equalize="never",
        )
        path = Path(folder) / "net" / manifest.artifacts[0].file
        started = time.process_time()
        rl.certify(path)
        print(f"certified in {time.process_time() - started:.1f} s", flush=True)
        operators = [sums for _, sums in linear_ops(read_graph(path, "tflite"))]
    print("largest change in ulp, fractions | channels | channels that differ | sums | CPU seconds")
    fractions = portable._DENOMINATORS
    for most, tried in ((0, ()), (1, ()), (4, ()), (4, fractions)):
        portable._FARTHEST, portable._DENOMINATORS = most, tried
        started, scales, left = time.process_time(), [], []
        for sums in operators:
            chosen, found = portable.portable_scales(sums)
            scales.append(chosen)
            left.append(found)
        seconds, every = time.process_time() - started, np.concatenate(left)
        shown = f"{most}, {'with' if tried else 'without'} fractions"
        differing = int((every > 0).sum())
        print(f"{shown} | {every.size} | {differing} | {every.sum()} | {seconds:.1f}", flush=True)
    count, new = unlisted(list(zip(operators, scales, strict=True)), arguments.random)
    print(f"{count:,} random sums: {new} differences outside the listed channels")


if __name__ == "__main__":
    main()
