"""Convert every network of keras.applications to batch renormalization and back; compare bits.

    python benchmarks/convert_applications.py [NAME ...]

Weights and statistics are random, gammas have both signs, and inputs are as small as the network
allows. For each network it prints

    norms        number of swapped norms, which must be all
    difference   largest difference of inference after the swap and after the swap back
    weights      whether all weights are bit-identical after the swap back
    seconds      of the swap and of building the network

Other values than 0 and "yes" are failures; the exit code is then 1.
"""

from __future__ import annotations

import gc
import inspect
import os
import sys
import time
from dataclasses import dataclass

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import renormlite as rl
from keras.layers import BatchNormalization

# The smallest input of a family; 32 where it is not listed.
SIZES = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}


@dataclass(frozen=True)
class Result:
    """The result of converting one network."""

    norms: int
    missed: int
    difference: float
    weights_kept: bool
    build_seconds: float
    swap_seconds: float

    @property
    def passed(self) -> bool:
        """Whether every norm was swapped and nothing changed."""
        return self.missed == 0 and self.difference == 0.0 and self.weights_kept


def networks() -> list[str]:
    """Return the names of all networks of keras.applications."""
    return sorted(
        name
        for name, item in vars(keras.applications).items()
        if callable(item) and "weights" in inspect.signature(item).parameters
    )


def norms(model: keras.Model, kind: type) -> list[keras.layers.Layer]:
    return [layer for layer in model._flatten_layers() if isinstance(layer, kind)]


def draw_statistics(model: keras.Model) -> None:
    """Set random statistics, gammas and betas, far from the identity."""
    rng = np.random.default_rng(0)
    for layer in norms(model, BatchNormalization):
        channels = layer.moving_mean.shape
        layer.moving_mean.assign(rng.normal(0, 0.3, channels))
        layer.moving_variance.assign(rng.uniform(0.5, 1.5, channels))
        if layer.scale:
            layer.gamma.assign(rng.uniform(0.5, 1.5, channels) * rng.choice([-1, 1], channels))
        if layer.center:
            layer.beta.assign(rng.normal(0, 0.3, channels))


def measure(name: str) -> Result:
    """Build one network, convert it in both directions, and compare."""
    size = SIZES.get(name, 32)
    start = time.perf_counter()
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=10)
    built = time.perf_counter()
    draw_statistics(model)
    swap_start = time.perf_counter()
    renorm = rl.to_renorm(model)
    swapped = time.perf_counter()
    back = rl.to_batch_norm(renorm)

    # Some networks scale their inputs, others expect [-1, 1]; these inputs suit both.
    x = np.random.default_rng(1).uniform(-1, 1, (2, size, size, 3)).astype("float32")
    truth = np.asarray(model(x))
    assert np.isfinite(truth).all()
    assert np.ptp(truth) > 0, "a constant output would hide every difference"
    return Result(
        norms=len(norms(renorm, rl.BatchRenormalization)),
        missed=len(norms(renorm, BatchNormalization)) + len(norms(back, rl.BatchRenormalization)),
        difference=max(float(np.abs(np.asarray(m(x)) - truth).max()) for m in (renorm, back)),
        weights_kept=all(
            np.array_equal(ours, theirs)
            for ours, theirs in zip(back.get_weights(), model.get_weights(), strict=True)
        ),
        build_seconds=built - start,
        swap_seconds=swapped - swap_start,
    )


def main() -> int:
    print(f"{'network':20s} norms  difference  weights  swap s  build s")
    failed = []
    for name in sys.argv[1:] or networks():
        result = measure(name)
        kept = "yes" if result.weights_kept else "NO"
        print(
            f"{name:20s} {result.norms:5d}  {result.difference:10g}  {kept:>7s}"
            f"  {result.swap_seconds:6.2f}  {result.build_seconds:7.2f}",
            flush=True,
        )
        if not result.passed:
            failed.append(name)
        keras.backend.clear_session()
        gc.collect()
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    return len(failed)


if __name__ == "__main__":
    raise SystemExit(main())
