"""Latency of the exported network: folded, from the stock exporters, and without norms.

    python benchmarks/inference.py [--rounds 40] [--size 96] [--json FILE] [NETWORK ...]

Four float32 files of one architecture run in turn in one process, on one thread, and are compared
by the median of the ratios within a round. The clock is the CPU time of the process, which with one
thread is the latency on an idle machine and does not include other processes.

- folded: our export of the network with Keras' batch normalization;
- stock: the same network by `model.export`;
- hand-written: a network whose norms are subtractions, multiplications and additions, by
  `model.export`, as tutorials write batch renormalization;
- twin: the same convolutions without norms, by our export: the lower limit.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import renormlite as rl
from rows import Row, write
from timing import paired, ratio_rows, time_row

NETWORKS = ("MobileNetV2",)
Run = Callable[[], object]


@keras.saving.register_keras_serializable(package="benchmarks")
class HandWritten(keras.layers.Layer):
    """The inference of a norm, operation by operation."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights."""
        # No value that a converter could optimize away, such as a division by one.
        start = keras.initializers.RandomUniform(0.5, 1.5)

        def add(name: str) -> keras.Variable:
            return self.add_weight(shape=input_shape[-1:], initializer=start, name=name)

        self.gamma, self.beta, self.mean, self.sigma = map(add, ("gamma", "beta", "mean", "sigma"))

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Scale and shift."""
        return (x - self.mean) / self.sigma * self.gamma + self.beta


@keras.saving.register_keras_serializable(package="benchmarks")
class Identity(keras.layers.Layer):
    """Replaces a norm."""

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Return the input."""
        return x


def with_norms(model: keras.Model, norm: type[keras.layers.Layer]) -> keras.Model:
    """Return the architecture with each batch norm replaced by another layer."""

    def swapped(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.layers.BatchNormalization):
            return norm(name=layer.name)
        return type(layer).from_config(layer.get_config())

    return keras.models.clone_model(
        model,
        clone_function=swapped,
        call_function=lambda layer, *a, mask=None, **k: layer(*a, **k),
    )


def spread(model: keras.Model) -> keras.Model:
    """Set statistics and weights of every norm that no converter can optimize away."""
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return model


def files(model: keras.Model, folder: Path, name: str, *, ours: bool) -> dict[str, Path]:
    """Export one network and return the file of each runtime."""
    if ours:
        rl.export_model(model, folder / name)
        return {
            "litert": folder / name / f"{name}.float32.tflite",
            "onnxruntime": folder / name / f"{name}.float32.onnx",
        }
    paths = {"litert": folder / f"{name}.tflite", "onnxruntime": folder / f"{name}.onnx"}
    model(np.zeros((1, *model.input_shape[1:]), np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of Keras' patch for tf2onnx
        model.export(paths["litert"], format="litert", verbose=False)
        model.export(paths["onnxruntime"], format="onnx", verbose=False)
    return paths


def runner(runtime: str, path: Path, shape: tuple[int, ...]) -> Run:
    """Return a function that runs a file once on one thread."""
    x = np.random.default_rng(1).random((1, *shape), np.float32)
    if runtime == "litert":
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(path), num_threads=1)
        index = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(index, x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(index, x)
        return interpreter.invoke
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: x})


def compare(case: str, runs: dict[str, Run], rounds: int) -> list[Row]:
    """Time the files in turn; print and return the ratios of ours, which is the first."""
    seconds = paired(runs, rounds, "cpu")
    rows = [*ratio_rows(case, "folded", seconds), time_row(case, "folded", seconds["folded"])]
    for row in rows:
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--json")
    options = parser.parse_args()
    rows, shape = [], (options.size, options.size, 3)
    for name in options.networks:
        model = spread(getattr(keras.applications, name)(input_shape=shape, weights=None))
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            found = {
                "folded": files(model, folder, "folded", ours=True),
                "stock": files(model, folder, "stock", ours=False),
                "hand-written": files(with_norms(model, HandWritten), folder, "hand", ours=False),
                "twin": files(with_norms(model, Identity), folder, "twin", ours=True),
            }
            for runtime in ("litert", "onnxruntime"):
                runs = {key: runner(runtime, paths[runtime], shape) for key, paths in found.items()}
                rows += compare(f"{name}, {options.size} px, {runtime}", runs, options.rounds)
    write(rows, options.json)


if __name__ == "__main__":
    main()
