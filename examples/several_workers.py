"""Train on several workers, with the statistics of batch renormalization over all of them.

    python examples/several_workers.py                      # MultiWorkerMirroredStrategy
    KERAS_BACKEND=jax python examples/several_workers.py    # Keras' distribution on JAX

Two workers on this machine communicate over loopback. To use several machines, start `worker` below
on each, and change only the addresses in `start`. The result equals that of one process with the
whole batch.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

WORKERS = 2
BATCH = 8  # samples in a step, of all workers together
EPOCHS = 3


def data() -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and targets; every worker reads its own part of each batch."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 12)).astype("float32")
    return x, (x[:, :1] * x[:, 1:2]).astype("float32")


def part_of(batches: np.ndarray, index: int, count: int) -> np.ndarray:
    """Return the data of one of several workers: its part of each batch."""
    split = batches.reshape(-1, count, BATCH // count, *batches.shape[1:])
    return split[:, index].reshape(-1, *batches.shape[1:])


def build():
    """Build the model; `synchronized` takes statistics over the batches of all workers."""
    import keras
    import renormlite as rl

    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((12,)),
            keras.layers.Dense(16, use_bias=False),
            rl.BatchRenormalization(synchronized=True, momentum=0.9),
            keras.layers.ReLU(),
            keras.layers.Dense(1),
        ]
    )


def worker(index: int, count: int, coordinator: str, out: str) -> None:
    """Train as one of several workers and save the weights, which are equal on all workers."""
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    model = (on_jax if backend == "jax" else on_tensorflow)(index, count, coordinator)
    np.savez(out, *[np.asarray(weight) for weight in model.get_weights()])


def on_tensorflow(index: int, count: int, coordinator: str):
    """Train with `tf.distribute.MultiWorkerMirroredStrategy`, which reads TF_CONFIG.

    Keras' `fit` supports this strategy with two changes. A model that is created in the scope
    averages the first batch over the workers, which fails: the layers are created in the scope, and
    the model outside. The logs of a step are averaged over their first axis, which scalars lack.
    """
    import keras
    import tensorflow as tf

    class Model(keras.Model):
        def train_step(self, data):
            return as_vectors(super().train_step(data))

        def test_step(self, data):
            return as_vectors(super().test_step(data))

    def as_vectors(logs):
        return {name: tf.reshape(value, (1,)) for name, value in logs.items()}

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        layers = build()
    model = Model(layers.inputs, layers.outputs)
    options = tf.data.Options()
    # Each worker reads its part of each batch. With OFF it would read a data set of its own.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    batches = tf.data.Dataset.from_tensor_slices(data()).batch(BATCH).with_options(options)
    with strategy.scope():
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss="mse")
        model.fit(batches, epochs=EPOCHS, verbose=0)
    return model


def on_jax(index: int, count: int, coordinator: str):
    """Train with `keras.distribution`: JAX computes one step over all workers."""
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    import keras

    if count > 1:
        keras.distribution.initialize(coordinator, count, index)
    devices = keras.distribution.list_devices()
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
    )
    model = build()
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss="mse")
    x, y = (part_of(array, index, count) for array in data())
    model.fit(x, y, batch_size=BATCH // count, epochs=EPOCHS, shuffle=False, verbose=0)
    return model


def start(count: int, folder: Path) -> list[list[np.ndarray]]:
    """Run some workers on this machine and return the weights of each."""
    addresses = []
    sockets = [socket.socket() for _ in range(count)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
        addresses.append(f"127.0.0.1:{free.getsockname()[1]}")
    for free in sockets:
        free.close()
    running = []
    for index in range(count):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        out = folder / f"{count}.{index}.npz"
        command = [__file__, str(index), str(count), addresses[0], str(out)]
        environment = {**os.environ, "TF_CONFIG": json.dumps(task), "CUDA_VISIBLE_DEVICES": "-1"}
        running.append((subprocess.Popen([sys.executable, *command], env=environment), out))
    weights = []
    for process, out in running:
        if process.wait() != 0:
            raise SystemExit(f"a worker failed with exit code {process.returncode}")
        with np.load(out) as saved:
            weights.append([saved[name] for name in saved.files])
    return weights


def main() -> None:
    """Train with two workers and with one, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        first, second = start(WORKERS, Path(folder))
        (alone,) = start(1, Path(folder))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    worst = max(float(np.abs(a - b).max()) for a, b in zip(first, alone, strict=True))
    print(f"{WORKERS} workers have equal weights, which differ from those of one by {worst:.1e}")
    assert worst < 1e-5


if __name__ == "__main__":
    if len(sys.argv) == 5:
        worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
    else:
        main()
