"""Accuracy on real digits of networks trained with small and skewed batches, for each norm.

    python benchmarks/purpose.py [--seeds 5] [--only TEXT] [--json FILE]

Each case is a network, a batch size and a way to draw batches. For each seed, every norm trains
with its defaults for the same number of steps on the same batches with Adam at 1e-3. Accuracy is
that of inference on held-out digits, with the stored statistics and with statistics estimated anew
on the whole training set. Together they show whether the weights were trained badly or only the
stored statistics are unsuitable. `skewed` batches hold two classes.

A whole run is one compiled program (JAX), so that small steps cost little.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import NamedTuple

os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Such small tensors are slower on several threads.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import jax
import keras
import numpy as np
import renormlite as rl
from keras import layers, ops
from rows import Row, mean_row, write
from sklearn.datasets import load_digits

TRAINING = 1437
Norm = Callable[[], layers.Layer]

NORMS: dict[str, Norm | None] = {
    "BatchRenormalization": rl.BatchRenormalization,
    "BatchNormalization": layers.BatchNormalization,
    "Keras renorm=True": lambda: layers.BatchNormalization(renorm=True),
    "LearnedRenormalization": rl.LearnedRenormalization,
    "GroupNormalization": lambda: layers.GroupNormalization(groups=4),
    "none": None,
}
HAVE_STATISTICS = list(NORMS)[:4]


class Case(NamedTuple):
    """A network, its batches and the number of training steps."""

    network: str
    batch: int
    skewed: bool
    steps: int

    def __str__(self) -> str:
        batches = "two classes a batch" if self.skewed else "iid"
        return f"{self.network}, batch {self.batch}, {batches}, {self.steps} steps"


CASES = [
    *(Case("dense", batch, False, 800) for batch in (2, 8)),
    Case("dense", 32, False, 300),
    Case("dense", 4, True, 800),
    Case("shallow", 2, False, 800),
    Case("shallow", 4, True, 800),
    *(Case("deep", batch, False, 500) for batch in (1, 2, 4, 8)),
    Case("deep", 4, True, 500),
    Case("deep", 32, False, 200),
    Case("deep", 32, True, 200),
]


def deep(x: keras.KerasTensor, block: Callable) -> keras.KerasTensor:
    """Seven convolutions; the last two have one pixel, so their statistics are over samples."""
    for strides in (1, 2, 1, 2, 1, 2, 1):
        x = block(layers.Conv2D, x, 16, 3, strides=strides, padding="same")
    return layers.GlobalAveragePooling2D()(x)


def shallow(x: keras.KerasTensor, block: Callable) -> keras.KerasTensor:
    """Two convolutions; each sample gives 64 and 16 pixels to their statistics."""
    for strides in (1, 2):
        x = block(layers.Conv2D, x, 16, 3, strides=strides, padding="same")
    return layers.Flatten()(x)


def dense(x: keras.KerasTensor, block: Callable) -> keras.KerasTensor:
    """Three dense layers."""
    x = layers.Flatten()(x)
    for _ in range(3):
        x = block(layers.Dense, x, 64)
    return x


NETWORKS = {"deep": deep, "shallow": shallow, "dense": dense}


def network(name: str, norm: Norm | None) -> keras.Model:
    """Build a network from (N, 8, 8, 1) to logits (N, 10)."""

    def block(kind: type, x: keras.KerasTensor, *arguments: object, **named: object):
        x = kind(*arguments, use_bias=norm is None, **named)(x)
        return layers.ReLU()(x if norm is None else norm()(x))

    image = keras.Input((8, 8, 1))
    return keras.Model(image, layers.Dense(10)(NETWORKS[name](image, block)))


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return images in [0, 1] and labels; the first `TRAINING` are for training."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(7).permutation(len(images))
    return (images[order] / 16).astype("float32").reshape(-1, 8, 8, 1), labels[order]


def batches_of(labels: np.ndarray, case: Case, seed: int) -> np.ndarray:
    """Return the indices of the samples of every batch, (steps, batch)."""
    generator = np.random.default_rng(1000 + seed)
    if case.skewed:
        of_class = [np.flatnonzero(labels == c) for c in range(10)]
        pairs = [generator.choice(10, 2, replace=False) for _ in range(case.steps)]
        half = case.batch // 2
        return np.array(
            [np.concatenate([generator.choice(of_class[c], half) for c in p]) for p in pairs]
        )
    an_epoch = len(labels) // case.batch * case.batch
    epochs = -(-case.steps * case.batch // an_epoch)
    orders = [generator.permutation(len(labels))[:an_epoch] for _ in range(epochs)]
    return np.concatenate(orders).reshape(-1, case.batch)[: case.steps]


def accuracies(case: Case, norm: str, seeds: int) -> dict[str, list[float]]:
    """Return held-out accuracies by kind of statistics, one per seed."""
    images, labels = digits()
    x, y, held_out, truth = (
        images[:TRAINING],
        labels[:TRAINING],
        images[TRAINING:],
        labels[TRAINING:],
    )
    model = network(case.network, NORMS[norm])
    again = network(case.network, lambda: layers.BatchNormalization(momentum=0.0))
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)
    data, target = ops.convert_to_tensor(x), ops.convert_to_tensor(y)

    def loss(weights, state, batch):
        logits, state = model.stateless_call(weights, state, data[batch], training=True)
        each = keras.losses.sparse_categorical_crossentropy(target[batch], logits, from_logits=True)
        return ops.mean(each), state

    def step(carried, batch):
        weights, state, moments = carried
        (value, state), gradients = jax.value_and_grad(loss, has_aux=True)(weights, state, batch)
        weights, moments = optimizer.stateless_apply(moments, gradients, weights)
        return (weights, state, moments), value

    train = jax.jit(lambda start, batches: jax.lax.scan(step, start, batches)[0])
    found: dict[str, list[float]] = {"stored": [], "estimated anew": []}
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        fresh = network(case.network, NORMS[norm])
        start = (
            [v.value for v in fresh.trainable_variables],
            [v.value for v in fresh.non_trainable_variables],
            [v.value for v in optimizer.variables],
        )
        weights, state, _ = train(start, batches_of(y, case, seed))
        logits, _ = model.stateless_call(weights, state, held_out, training=False)
        found["stored"].append(float(np.mean(np.argmax(logits, -1) == truth)))
        if norm in HAVE_STATISTICS:
            state = [v.value for v in again.non_trainable_variables]
            _, state = again.stateless_call(weights, state, x, training=True)
            logits, _ = again.stateless_call(weights, state, held_out, training=False)
            found["estimated anew"].append(float(np.mean(np.argmax(logits, -1) == truth)))
    return found


def measured(case: Case, seeds: int) -> list[Row]:
    """Return the rows of one case."""
    rows = []
    for norm in NORMS:
        for kind, values in accuracies(case, norm, seeds).items():
            if values:
                label = str(case) if kind == "stored" else f"{case}, statistics {kind}"
                rows.append(mean_row(label, norm, "accuracy", values))
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose name contains this text")
    parser.add_argument("--json")
    options = parser.parse_args()
    rows = [r for case in CASES if options.only in str(case) for r in measured(case, options.seeds)]
    write(rows, options.json)


if __name__ == "__main__":
    main()
