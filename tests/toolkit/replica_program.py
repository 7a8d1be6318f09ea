"""Run by test_replicas.py in processes of its own: one training step of two replicas, as .npz.

    python replica_program.py mirrored|worker|jax OUT

Each replica gets its part of the data in DATA (sizes 5 and 3: unequal shards); outputs, gradients
and state are written for comparison with one device that sees all eight samples.
"""

import os
import sys

import numpy as np

BOUNDS = {"r_max": 1.5, "d_max": 0.4, "momentum": 0.9, "warm_up": False}
SHARDS = (5, 3)


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 6, 4)) * np.exp(rng.normal(size=(8, 1, 1))) + 2.0
    return x.astype("float32"), rng.normal(size=(8, 6, 4)).astype("float32")


def shard(array, replica):
    return array[: SHARDS[0]] if replica == 0 else array[SHARDS[0] :]


def step_of(layer):
    import tensorflow as tf

    def step(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        dx, dgamma = tape.gradient(y, [x, layer.gamma.value], dy)
        return y, dx, dgamma

    return step


def make_layer(synchronized):
    import renormlite as rl

    layer = rl.BatchRenormalization(synchronized=synchronized, **BOUNDS)
    layer.build((None, 6, 4))
    layer.gamma.assign(np.array([1.0, -2.0, 0.0, 0.5], "float32"))
    return layer


def mirrored(out):
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    x, dy = data()
    results = {}
    for synchronized in (True, False):
        with strategy.scope():
            layer = make_layer(synchronized)

        def values(array):
            return strategy.experimental_distribute_values_from_function(
                lambda c: tf.constant(shard(array, c.replica_id_in_sync_group))
            )

        step = tf.function(step_of(layer))
        for _ in range(2):
            outcome = strategy.run(step, (values(x), values(dy)))
        parts = [strategy.experimental_local_results(part) for part in outcome]
        key = "synchronized" if synchronized else "apart"
        results[f"{key}:y"] = np.concatenate([np.array(p) for p in parts[0]])
        results[f"{key}:dx"] = np.concatenate([np.array(p) for p in parts[1]])
        results[f"{key}:dgamma"] = sum(np.array(p) for p in parts[2])
        for name in ("moving_mean", "moving_variance", "step"):
            results[f"{key}:{name}"] = np.array(getattr(layer, name))
    np.savez(out, **results)


def worker(out):
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    replica = strategy.cluster_resolver.task_id
    x, dy = data()
    with strategy.scope():
        layer = make_layer(synchronized=True)
    step = tf.function(step_of(layer))
    for _ in range(2):
        y, dx, dgamma = strategy.run(
            step, (tf.constant(shard(x, replica)), tf.constant(shard(dy, replica)))
        )
    np.savez(
        out,
        y=np.array(y),
        dx=np.array(dx),
        dgamma=np.array(dgamma),
        moving_mean=np.array(layer.moving_mean),
        moving_variance=np.array(layer.moving_variance),
        step=np.array(layer.step),
    )


def jax(out):
    import keras

    devices = keras.distribution.list_devices("cpu")
    assert len(devices) == 2, devices
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
    import renormlite as rl

    results = {}
    x, dy = data()
    # JAX wants shards of one size: unequal ones are filled up with samples that are masked.
    for key, fill in (("whole", 0), ("filled", SHARDS[0] - SHARDS[1])):
        filled = [np.concatenate([array, np.zeros((fill, 6, 4), "float32")]) for array in (x, dy)]
        layer = rl.BatchRenormalization(synchronized=True, **BOUNDS)
        model = keras.Sequential([keras.layers.Input((6, 4)), keras.layers.Masking(), layer])
        layer.gamma.assign(np.array([1.0, -2.0, 0.0, 0.5], "float32"))
        model.compile(keras.optimizers.SGD(0.0), loss=lambda t, y: keras.ops.sum(t * y))
        for _ in range(2):
            model.train_on_batch(*filled)
        for name in ("moving_mean", "moving_variance", "step"):
            results[f"{key}:{name}"] = np.array(getattr(layer, name))
    np.savez(out, **results)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    {"mirrored": mirrored, "worker": worker, "jax": jax}[sys.argv[1]](sys.argv[2])
