"""Latency of an exported network: folded, from the stock exporters, and without norms.

    python benchmarks/inference.py [--precision float32] [--rounds 40] [--json FILE] [NETWORK ...]

Files of one architecture run in turn in one process, and are compared by the median of the ratios
of CPU time within a round (`latency.py`).

- folded: our export of the network with Keras' batch normalization;
- stock: the same network by `model.export`, in int8 by TensorFlow's converter;
- stock, onnxsim and stock, onnxslim: the stock ONNX file after these tools;
- hand-written: a network whose norms are subtractions, divisions, multiplications and additions, by
  the stock exporters, as tutorials write batch renormalization;
- twin: the same convolutions without norms, by our export: the lower limit.

The networks of MLPerf Tiny have their norms behind the activation, as many tutorials do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import renormlite as rl
import tensorflow as tf
from export_time import files as files_of
from renormlite.models import mlperf_tiny
from renormlite.runtimes.isolated import environment
from rows import Row, write
from timing import ratio_rows, time_row

Norm = type[keras.layers.Layer]
Files = dict[str, Path]

SIZE = 96
APPLICATIONS = ("MobileNetV2", "EfficientNetB0", "ResNet50V2", "DenseNet121")
NETWORKS = (*APPLICATIONS, *mlperf_tiny.NETWORKS)
# Targets of a format: the runtime and its number of threads.
TARGETS = {
    "tflite": (("litert", 1), ("litert", 2), ("tflite-runtime", 1)),
    "onnx": (("onnxruntime", 1), ("onnxruntime", 2)),
}


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


def built(name: str) -> keras.Model:
    """Build a network with Keras' batch norms."""
    if name in APPLICATIONS:
        model = getattr(keras.applications, name)(input_shape=(SIZE, SIZE, 3), weights=None)
    else:
        norm = keras.layers.BatchNormalization
        model = mlperf_tiny.NETWORKS[name](norm, norm_after_activation=True)
    return settled(model)


def settled(model: keras.Model) -> keras.Model:
    """Give every norm statistics and weights that no converter drops."""
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return model


def with_norms(model: keras.Model, norm: Norm) -> keras.Model:
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


def samples(model: keras.Model) -> np.ndarray:
    """Return random samples for calibration; the latency does not depend on their values."""
    return np.random.default_rng(2).random((8, *model.input_shape[1:]), np.float32)


def ours(model: keras.Model, folder: Path, precision: str) -> Files:
    """Export with this library and return the file of each format."""
    if precision == "float32":
        folder.mkdir()
        return files_of(model, folder)
    manifest = rl.export_model(
        model,
        folder,
        formats=("tflite",),
        precisions=(precision,),
        equalize="never",
        calibration="random",
    )
    return {entry.format: folder / entry.file for entry in manifest.artifacts}


def stock(model: keras.Model, folder: Path, precision: str) -> Files:
    """Export with the stock exporters and return the file of each format."""
    folder.mkdir()
    model(np.zeros((1, *model.input_shape[1:]), np.float32))
    paths = {"tflite": folder / "net.tflite"}
    if precision == "float32":
        paths["onnx"] = folder / "net.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of Keras' patch for tf2onnx
            model.export(paths["tflite"], format="litert", verbose=False)
            model.export(paths["onnx"], format="onnx", verbose=False)
        return paths
    model.export(folder / "saved", verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([sample[None]] for sample in samples(model))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    paths["tflite"].write_bytes(converter.convert())
    return paths


def simplified(path: Path) -> dict[str, Path]:
    """Return a stock ONNX file after each of the two tools that simplify such files."""
    import onnx
    import onnxsim
    import onnxslim

    ways: dict[str, Callable[[], onnx.ModelProto]] = {
        "onnxsim": lambda: onnxsim.simplify(onnx.load(path))[0],
        "onnxslim": lambda: onnxslim.slim(str(path)),
    }
    written = {}
    for tool, simplify in ways.items():
        written[f"stock, {tool}"] = path.with_name(f"{tool}.onnx")
        onnx.save(simplify(), written[f"stock, {tool}"])
    return written


def exported(name: str, precision: str, folder: Path) -> dict[str, Files]:
    """Return the files to compare by format and kind; ours come first."""
    model = built(name)
    found = {
        "folded": ours(model, folder / "folded", precision),
        "stock": stock(model, folder / "stock", precision),
        "hand-written": stock(with_norms(model, HandWritten), folder / "hand", precision),
        "twin": ours(with_norms(model, Identity), folder / "twin", precision),
    }
    by_format = {
        suffix: {kind: files[suffix] for kind, files in found.items()} for suffix in found["folded"]
    }
    if "onnx" in by_format:
        by_format["onnx"] |= simplified(by_format["onnx"]["stock"])
    return by_format


def timed(runtime: str, threads: int, files: Files, rounds: int) -> dict[str, list[float]]:
    """Return seconds by kind of file, without files that the runtime cannot run."""
    python: Path | str | None = sys.executable
    if runtime == "tflite-runtime":
        python = environment(runtime)
    if python is None:
        print(f"{runtime} is not installed", flush=True)
        return {}

    def run(some: Files, rounds: int) -> dict[str, list[float]] | None:
        paths = {kind: str(path) for kind, path in some.items()}
        request = {"runtime": runtime, "threads": threads, "rounds": rounds, "files": paths}
        command = [str(python), str(Path(__file__).with_name("latency.py")), json.dumps(request)]
        done = subprocess.run(command, capture_output=True, text=True)
        return None if done.returncode else json.loads(done.stdout.splitlines()[-1])

    able = {kind: path for kind, path in files.items() if run({kind: path}, 1) is not None}
    for kind in files.keys() - able:
        print(f"{runtime} cannot run the file '{kind}'", flush=True)
    return run(able, rounds) or {}


def measured(name: str, precision: str, rounds: int) -> list[Row]:
    """Export and time one network; print and return the ratios of ours."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for suffix, files in exported(name, precision, Path(folder)).items():
            for runtime, threads in TARGETS[suffix]:
                seconds = timed(runtime, threads, files, rounds)
                if "folded" not in seconds:
                    continue
                case = f"{name}, {precision}, {runtime}" + (", 2 threads" if threads == 2 else "")
                rows += ratio_rows(case, "folded", seconds)
                rows.append(time_row(case, "folded", seconds["folded"]))
    for row in rows:
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--precision", choices=("float32", "int8"), default="float32")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json")
    options = parser.parse_args()
    found = (measured(name, options.precision, options.rounds) for name in options.networks)
    write([row for rows in found for row in rows], options.json)


if __name__ == "__main__":
    main()
