"""Int8 of the MLPerf Tiny networks: signal over noise, ours against the stock TFLite converter.

Each network is trained briefly with batch renormalization, then its norms' scales are spread over a
decade as long training does. Both sides quantize from the same samples and are judged by float64
truth of the trained network on others; softmax is left off, since it hides errors where it is sure.

    python benchmarks/export_int8.py [--seeds 1] [NETWORK ...]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import keras
import numpy as np
import renormlite as rl
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from renormlite.export.fold import float64_twin
from renormlite.export.golden import decibels
from renormlite.models import mlperf_tiny

NETWORKS = ("anomaly_detection", "keyword_spotting", "visual_wake_words", "image_classification")


def smooth(shape: tuple[int, ...], count: int, seed: int) -> np.ndarray:
    """Spectra as random walks, images as sums of four waves a channel."""
    generator = np.random.default_rng(seed)
    if len(shape) == 1:
        walk = np.cumsum(generator.normal(0, 1, (count, *shape)), axis=1)
        return (walk / np.abs(walk).max(axis=1, keepdims=True)).astype(np.float32)
    rows, columns = np.mgrid[: shape[0], : shape[1]][..., None, None]
    phase = generator.uniform(0, 6, (count, 1, 1, shape[2], 4))
    speed = generator.uniform(0.05, 0.7, (count, 1, 1, 1, 4))
    slope = generator.uniform(-2, 2, (count, 1, 1, 1, 4))
    waves = 0.5 + 0.5 * np.sin(speed * (rows + slope * columns) + phase)
    return waves.mean(axis=-1).astype(np.float32)


def trained(name: str, after: bool, data: np.ndarray, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    generator = np.random.default_rng(seed)
    build: mlperf_tiny.Builder = getattr(mlperf_tiny, name)
    model = build(rl.BatchRenormalization, norm_after_activation=after)
    classes = model.output_shape[-1]
    regression = name == "anomaly_detection"
    target = data if regression else generator.integers(0, classes, len(data))
    model.compile("adam", "mse" if regression else "sparse_categorical_crossentropy")
    model.fit(data, target, batch_size=16, epochs=4, verbose=0)
    for layer in model.layers:
        if isinstance(layer, rl.BatchRenormalization):
            spread = np.exp(generator.uniform(np.log(0.3), np.log(3), layer.gamma.shape))
            layer.gamma.assign(layer.gamma * spread)
    if not regression:
        model.layers[-1].activation = keras.activations.linear
    return model


def stock(model: keras.Model, samples: np.ndarray) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        return bytes(converter.convert())


def ours(model: keras.Model, samples: np.ndarray, equalize: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        rl.export_model(
            model,
            Path(folder) / "net",
            formats=("tflite",),
            precisions=("int8",),
            calibration=samples,
            equalize=equalize,
        )
        return (Path(folder) / "net" / "net.int8.tflite").read_bytes()


def run(data: bytes, inputs: np.ndarray) -> np.ndarray:
    interpreter = Interpreter(model_content=data)
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    sink = interpreter.get_output_details()[0]["index"]
    outputs = []
    for sample in inputs:
        interpreter.set_tensor(source, sample[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(sink)[0])
    return np.array(outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    for name in arguments.networks:
        for after in (True, False):
            for seed in range(arguments.seeds):
                build: mlperf_tiny.Builder = getattr(mlperf_tiny, name)
                shape = build(None).input_shape[1:]
                data, others = smooth(shape, 256, seed), smooth(shape, 64, 1000 + seed)
                model = trained(name, after, data, seed)
                twin = float64_twin(model)
                truth = keras.ops.convert_to_numpy(twin(others.astype(np.float64)))
                made = {
                    "stock": stock(model, data[:100]),
                    "folded": ours(model, data[:100], "never"),
                    "equalized where better": ours(model, data[:100], "auto"),
                }
                ratios = {key: decibels(truth, run(file, others)) for key, file in made.items()}
                order = "norm after activation" if after else "norm before activation"
                print(f"{name}, {order}, seed {seed}: {ratios}", flush=True)


if __name__ == "__main__":
    main()
