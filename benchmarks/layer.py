"""Speed and memory of the layer relative to its peers, measured in pairs in one process.

    python benchmarks/layer.py                 graph mode, CPU: the shapes below, forward + backward
    python benchmarks/layer.py --xla           the same under XLA
    python benchmarks/layer.py --model         a whole `fit` step of MobileNetV2
    python benchmarks/layer.py --memory        peak resident memory of one step, one process each
    python benchmarks/layer.py --inference     inference
    python benchmarks/layer.py --small         small tensors, with a batch size that is not static

Measurements are interleaved in random order in each round, and compared by the median of the ratios
within a round, which depends much less on other load than the times.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from collections.abc import Callable

from rows import Row, write
from timing import CLOCKS, paired, ratio_rows, time_row

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

SMALL_SHAPES = [(128, 512), (32, 64), (8, 8, 8, 24), (2, 4, 4, 24)]
SHAPES = [(16, 112, 112, 32), (16, 56, 56, 64), (16, 28, 28, 128), (64, 7, 7, 512)]
MEMORY_SHAPE = (32, 112, 112, 64)
EPSILON = 1e-3

Step = Callable[[], object]


def candidates(shape: tuple[int, ...]) -> dict:
    """Return name -> (function of x, trainable variables) for one shape."""
    import keras
    import renormlite as rl
    import tensorflow as tf

    channels = shape[-1]
    gamma, beta = tf.Variable(tf.ones(channels)), tf.Variable(tf.zeros(channels))

    def raw_operation(x: tf.Tensor) -> tf.Tensor:
        empty = tf.zeros(0)
        sizes = tf.shape(x)
        return tf.reshape(
            tf.raw_ops.FusedBatchNormV3(
                x=x if len(shape) == 4 else tf.reshape(x, (-1, 1, 1, channels)),
                scale=gamma,
                offset=beta,
                mean=empty,
                variance=empty,
                epsilon=EPSILON,
            ).y,
            sizes,
        )

    def of_layer(layer: keras.layers.Layer) -> tuple:
        layer.build(shape)
        variables = [v.value for v in layer.trainable_variables]
        return (lambda x, training=True: layer(x, training=training)), variables

    clipping = {"rmin": 1 / 3, "rmax": 3.0, "dmax": 5.0}
    return {
        "BatchRenormalization": of_layer(rl.BatchRenormalization()),
        "keras BatchNormalization": of_layer(keras.layers.BatchNormalization()),
        "keras BatchNormalization(renorm)": of_layer(
            keras.layers.BatchNormalization(renorm=True, renorm_clipping=clipping)
        ),
        "raw fused operation": (raw_operation, [gamma, beta]),
    }


def training_step(
    function: Callable, variables: list, shape: tuple[int, ...], xla: bool, static: bool = True
) -> Step:
    """Return a compiled forward + backward pass, ready to call; ``static`` fixes the batch size."""
    import tensorflow as tf

    x, dy = tf.random.normal(shape, seed=1) + 0.5, tf.random.normal(shape, seed=2)

    spec = tf.TensorSpec(shape if static else (None, *shape[1:]))

    @tf.function(jit_compile=xla, input_signature=[spec, spec])
    def step(x: tf.Tensor, dy: tf.Tensor) -> list:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return tape.gradient(y, [x, *variables], dy)

    return lambda: step(x, dy)[-1].numpy()


def inference_step(function: Callable, shape: tuple[int, ...], xla: bool) -> Step:
    """Return a compiled inference pass, ready to call."""
    import tensorflow as tf

    x = tf.random.normal(shape, seed=1)
    step = tf.function(lambda x: function(x, training=False), jit_compile=xla)
    return lambda: step(x).shape


def report(title: str, seconds: dict[str, list[float]]) -> list[Row]:
    """Print and return the median of ours over each peer's, and the median times."""
    rows = ratio_rows(title, "ours", seconds)
    rows += [time_row(title, name, times) for name, times in seconds.items()]
    for row in rows:
        print(row, flush=True)
    return rows


def model_steps() -> dict[str, Step]:
    """Return one `train_on_batch` of MobileNetV2 (96 px, batch 16) with each norm."""
    import keras
    import numpy as np
    import renormlite as rl

    x = np.random.default_rng(0).normal(size=(16, 96, 96, 3)).astype("float32")
    y = np.arange(16) % 10
    plain = keras.applications.MobileNetV2((96, 96, 3), weights=None, classes=10)

    def with_peer(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if isinstance(layer, keras.layers.BatchNormalization):
            config |= {"renorm": True, "renorm_clipping": {"rmin": 1 / 3, "rmax": 3, "dmax": 5}}
        return type(layer).from_config(config)

    models = {
        "BatchRenormalization": rl.to_renorm(plain),
        "keras BatchNormalization": plain,
        "keras BatchNormalization(renorm)": keras.models.clone_model(
            plain, clone_function=with_peer
        ),
    }
    steps = {}
    for name, model in models.items():
        model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
        steps[name] = lambda model=model: model.train_on_batch(x, y)
    return steps


def peak_memory(name: str) -> None:
    """Print the peak resident memory, in MiB, of training steps with one candidate."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = training_step(*candidates(MEMORY_SHAPE)[name], MEMORY_SHAPE, xla=False)
    for _ in range(3):
        step()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{name:34s} {(after - before) / 1024:8.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--xla", action="store_true", help="compile with XLA")
    parser.add_argument("--model", action="store_true", help="a fit step of MobileNetV2")
    parser.add_argument("--inference", action="store_true", help="inference instead of training")
    parser.add_argument("--memory", action="store_true", help="peak memory, one process each")
    parser.add_argument("--memory-of", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--small", action="store_true", help="small tensors, dynamic batch size")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", help="write the rows to this file")
    parser.add_argument("--rounds", type=int, default=100, help="rounds per shape (default 100)")
    options = parser.parse_args()
    if options.memory_of:
        peak_memory(options.memory_of)
    elif options.memory:
        print(f"peak memory of a training step on {MEMORY_SHAPE}, minus that before TensorFlow")
        for name in candidates((2, 4, 4, 2)):
            subprocess.run([sys.executable, __file__, "--memory-of", name], check=True)
    elif options.model:
        seconds = paired(model_steps(), min(options.rounds, 30), options.clock)
        write(report("MobileNetV2, one fit step", seconds), options.json)
    else:
        rows = []
        for shape in SMALL_SHAPES if options.small else SHAPES:
            peers = candidates(shape)
            if options.inference:
                del peers["raw fused operation"]
                steps = {n: inference_step(f, shape, options.xla) for n, (f, _) in peers.items()}
            else:
                static = not options.small
                steps = {
                    name: training_step(function, variables, shape, options.xla, static)
                    for name, (function, variables) in peers.items()
                }
            mode = "XLA" if options.xla else "graph"
            kind = "inference" if options.inference else "training step"
            title = f"{shape}, {kind}, {mode}"
            rows += report(title, paired(steps, options.rounds, options.clock))
        write(rows, options.json)


if __name__ == "__main__":
    main()
