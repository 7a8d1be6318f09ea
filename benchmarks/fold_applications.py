"""Fold every network of keras.applications with randomized statistics, prove each in float64.

    python benchmarks/fold_applications.py [--only NAME ...] [--gammas positive|mixed] [--no-proof]
        [--json FILE]

Weights are random (``weights=None``), the statistics of every norm are random, and inputs are
small. The results are the folded norms and the exactness, not the speed. Each network runs in a
separate process. Prints one Markdown row per network.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers as kl
from rows import Row, count_row, write

# The smallest input of a family; 32 where it is not listed.
SIZES = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}


def networks() -> list[str]:
    """Return the names of all networks of keras.applications."""
    return sorted(
        name
        for name, item in vars(keras.applications).items()
        if callable(item) and "weights" in inspect.signature(item).parameters
    )


def make(name: str, *, positive: bool, seed: int = 0) -> keras.Model:
    """Build a network with random weights and randomized statistics."""
    size = SIZES.get(name, 32)
    keras.utils.set_random_seed(seed)
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=10)
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if not isinstance(layer, kl.BatchNormalization):
            continue
        channels = layer.moving_mean.shape[0]
        sign = 1 if positive else rng.choice([-1, 1], channels)
        if layer.scale:
            layer.gamma.assign(rng.uniform(0.5, 1.5, channels) * sign)
        if layer.center:
            layer.beta.assign(rng.normal(0, 0.3, channels))
        layer.moving_mean.assign(rng.normal(0, 0.3, channels))
        layer.moving_variance.assign(rng.uniform(0.5, 1.5, channels))
    return model


def measure(name: str, *, positive: bool, prove: bool) -> dict[str, object]:
    """Fold one network; return what remains."""
    from renormlite import fold

    model = make(name, positive=positive)
    start = time.perf_counter()
    result = fold(model, verify=prove)
    proof = result.proof
    records = result.report.records
    left = [r for r in records if r.remaining_ops]
    return {
        "network": name,
        "parameters": model.count_params(),
        "norms": len(records),
        "folded": result.report.folded,
        "left": [" ".join(r.remaining_ops) for r in left],
        "left_names": [f"{r.name} ({r.layer_type}): {r.reason}" for r in left],
        "proof": None if proof is None else proof.worst,
        "tolerance": None if proof is None else proof.tolerance,
        "rolled_back": None if proof is None else proof.rolled_back,
        "seconds": round(time.perf_counter() - start, 1),
    }


def rows_of(row: dict[str, object], gammas: str) -> list[Row]:
    """Return the counts of one network."""
    name, label = str(row["network"]), f"operations left, {gammas} gammas"
    return [
        count_row(name, "norms", int(row["norms"])),
        count_row(name, label, sum(len(left.split()) for left in row["left"])),
    ]


def main() -> None:
    """Run every requested network in a separate process and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--gammas", choices=["positive", "mixed"], default="positive")
    parser.add_argument("--no-proof", action="store_true", help="count only: much faster")
    parser.add_argument("--json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        positive = options.gammas == "positive"
        print(json.dumps(measure(options.one, positive=positive, prove=not options.no_proof)))
        return
    results: list[Row] = []
    print("| network | norms | folded | ops remaining | float64 difference |")
    print("| --- | ---: | ---: | --- | ---: |")
    for name in options.only or networks():
        command = [sys.executable, __file__, "--one", name, "--gammas", options.gammas]
        command += ["--no-proof"] * options.no_proof
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            print(f"| {name} | failed: {run.stderr.strip().splitlines()[-1]} |", flush=True)
            continue
        row = json.loads(run.stdout.splitlines()[-1])
        results += rows_of(row, options.gammas)
        kinds = {kind: row["left"].count(kind) for kind in sorted(set(row["left"]))}
        left = ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) or "nothing"
        proof = "not made" if row["proof"] is None else f"{row['proof']:.1e}"
        if row["tolerance"] is not None and row["tolerance"] > 1e-10:
            proof += f" of {row['tolerance']:.1e}"
        print(f"| {name} | {row['norms']} | {row['folded']} | {left} | {proof} |", flush=True)
    write(results, options.json)


if __name__ == "__main__":
    main()
