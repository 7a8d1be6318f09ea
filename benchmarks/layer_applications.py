"""Converts every network of keras.applications to batch renorm and back, and compares bits.

    python benchmarks/layer_applications.py [NAME ...]

Weights are random, statistics drawn as training might leave them. Prints the norms found and the
largest difference of inference; anything but 0 is a failure, and the exit code says so.
"""

from __future__ import annotations

import gc
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import renormlite as rl

SMALLEST = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}


def names() -> list[str]:
    """Return the names of all networks in keras.applications."""
    return sorted(n for n in dir(keras.applications) if n[0].isupper())


def largest_difference(name: str) -> tuple[int, float]:
    """Return the number of norms and the largest difference of inference after both conversions."""
    size = SMALLEST.get(name, 32)
    arguments = {"input_shape": (size, size, 3), "include_top": False}
    model = getattr(keras.applications, name)(weights=None, **arguments)
    rng = np.random.default_rng(0)
    count = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            count += 1
            layer.moving_mean.assign(rng.normal(size=layer.moving_mean.shape) * 0.3)
            layer.moving_variance.assign(np.exp(rng.normal(size=layer.moving_mean.shape)))
            if layer.scale:
                layer.gamma.assign(rng.normal(size=layer.gamma.shape) + 0.5)
    x = rng.normal(size=(2, size, size, 3)).astype("float32")
    truth = np.array(model(x))
    renorm = rl.to_renorm(model)
    swapped = sum(isinstance(layer, rl.BatchRenormalization) for layer in renorm.layers)
    if swapped != count:
        raise AssertionError(f"{name}: {swapped} of {count} norms were swapped")
    back = rl.to_batch_norm(renorm)
    return count, max(float(np.abs(np.array(m(x)) - truth).max()) for m in (renorm, back))


def main() -> int:
    worst = 0.0
    for name in sys.argv[1:] or names():
        count, difference = largest_difference(name)
        print(f"{name:24s} {count:4d} norms   largest difference {difference:g}", flush=True)
        worst = max(worst, difference)
        keras.backend.clear_session()
        gc.collect()
    return int(worst > 0)


if __name__ == "__main__":
    raise SystemExit(main())
