"""Accuracy of int8 files on real digits: calibrated after training against trained in integers.

Each network is trained in float, then exported with calibration, then trained on in integers and
exported again. For 4- and 3-bit weights the one without training on is `quantize_aware` with ranges
from samples alone. Files run on LiteRT over the whole test set; what differs from Keras is counted.

    python benchmarks/quantize_aware.py --seeds 5 --epochs 8
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import renormlite as rl
from ai_edge_litert.interpreter import Interpreter
from keras import layers as kl
from renormlite.models.data import Dataset, handwritten_digits

NORMS = {
    "renorm": lambda: rl.BatchRenormalization(momentum=0.95),
    "batch norm": lambda: kl.BatchNormalization(momentum=0.95),
}


def network(norm: str) -> keras.Model:
    """A residual network with a depthwise block."""
    image = keras.Input((8, 8, 1), name="image")

    def block(layer: kl.Layer, x: keras.KerasTensor) -> keras.KerasTensor:
        return NORMS[norm]()(layer(x))

    x = kl.ReLU()(block(kl.Conv2D(12, 3, padding="same", use_bias=False), image))
    y = kl.ReLU()(block(kl.DepthwiseConv2D(3, padding="same", use_bias=False), x))
    y = block(kl.Conv2D(12, 1, use_bias=False), y)
    x = kl.ReLU()(kl.Add()([x, y]))
    x = kl.ReLU()(block(kl.Conv2D(24, 3, strides=2, padding="same", use_bias=False), x))
    x = kl.GlobalAveragePooling2D()(x)
    return keras.Model(image, kl.Dense(10, name="scores")(x))


def train(model: keras.Model, data: Dataset, batch: int, epochs: int, rate: float) -> None:
    """Train with Adam and a cosine decay."""
    steps = epochs * -(-len(data.train.x) // batch)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(data.train.x, data.train.y, batch_size=batch, epochs=epochs, verbose=0)


def run(path: Path, samples: np.ndarray) -> np.ndarray:
    """Run a file over samples, one at a time."""
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    given, got = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    outputs = []
    for sample in samples:
        interpreter.set_tensor(given["index"], sample[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(got["index"])[0].copy())
    return np.array(outputs)


def accuracy(scores: np.ndarray, data: Dataset) -> float:
    """Return the share of right answers in percent."""
    return 100 * float(np.mean(scores.argmax(axis=-1) == data.test.y))


def exported(model: keras.Model, data: Dataset) -> np.ndarray:
    """Return what the int8 file of a model gives for the test set."""
    with tempfile.TemporaryDirectory() as folder:
        rl.export_model(
            model,
            Path(folder) / "net",
            formats=("tflite",),
            precisions=("int8",),
            calibration=data.train.x[:200],
        )
        return run(Path(folder) / "net" / "net.int8.tflite", data.test.x)


def measure(norm: str, batch: int, seed: int, epochs: int, bits: tuple[int, ...]) -> dict:
    """Return the accuracies of one training, and how many integers differ from Keras'."""
    keras.utils.set_random_seed(seed)
    data = handwritten_digits()
    model = network(norm)
    train(model, data, batch, epochs, 3e-3)
    found = {"float": accuracy(model.predict(data.test.x, verbose=0), data)}
    found["calibrated int8"] = accuracy(exported(model, data), data)
    for width in bits:
        quantized = rl.quantize_aware(model, weight_bits=width, samples=data.train.x[:200])
        found[f"{width} bits, not trained"] = accuracy(
            quantized.predict(data.test.x, verbose=0), data
        )
        train(quantized, data, batch, max(epochs // 2, 1), 1e-3)
        given = exported(quantized, data)
        found[f"{width} bits, trained"] = accuracy(given, data)
        expected = quantized.predict(data.test.x, verbose=0)
        found[f"{width} bits, integers that differ"] = int((given != expected).sum())
    return found


def main() -> None:
    """Measure and print one row a training, then the means."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 4])
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4, 3])
    options = parser.parse_args()
    for batch in options.batches:
        for norm in NORMS:
            rows = []
            for seed in range(options.seeds):
                row = measure(norm, batch, seed, options.epochs, tuple(options.bits))
                print(f"{norm}, batch {batch}, seed {seed}: {row}", flush=True)
                rows.append(row)
            means = {key: round(float(np.mean([r[key] for r in rows])), 2) for key in rows[0]}
            print(f"{norm}, batch {batch}, mean of {len(rows)}: {means}", flush=True)


if __name__ == "__main__":
    main()
