"""Ten networks that lose accuracy in stock int8, and how much the precision `auto` recovers.

The networks are the four of MLPerf Tiny with the norm after the activation (norms spread over a
decade), and six small ones: channels of different ranges as in MobileNet, a detection head, SiLU, a
transformer block, a recurrent layer, an autoencoder. Those that classify are briefly trained on
scikit-learn's digits, resized to their inputs; both autoencoders on random walks; the detection
head has random weights. Measured on samples that neither calibration nor the search used:
signal-to-noise ratio against float64, accuracy, size, CPU seconds of the export of int8 and auto
with its child processes, and the share of the noise power of the plain int8 file that is removed.

    python benchmarks/repair_int8.py [--formats tflite,onnx] [NETWORK ...]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import renormlite as rl
from export_int8 import Case, smooth, stock
from export_int8 import run as run_tflite
from keras import layers
from renormlite import child
from renormlite.artifacts.manifest import Artifact
from renormlite.export.fold import float64_twin
from renormlite.export.golden_set import decibels
from renormlite.export.host import run_artifact
from renormlite.models import mlperf_tiny
from renormlite.models.data import handwritten_digits

CALIBRATION, TRAINED, EPOCHS = 100, 720, 5
LABELLED, UNLABELLED = 360, 64  # held-out samples


def spread(model: keras.Model, decades: float, seed: int = 0) -> keras.Model:
    """Multiply the output channels of every layer with a kernel by different factors."""
    generator = np.random.default_rng(seed)
    for layer in model.layers[:-1]:
        if isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D)):
            factor = 10 ** generator.uniform(-decades / 2, decades / 2, layer.kernel.shape[-1])
            layer.kernel.assign(layer.kernel * factor.astype(np.float32))
    return model


def mobile_like() -> keras.Model:
    x = keras.Input((32, 32, 3), name="image")
    y = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu6")(x)
    for filters in (24, 32, 32):
        y = layers.DepthwiseConv2D(3, padding="same", activation="relu6")(y)
        y = layers.Conv2D(filters, 1, activation="relu6")(y)
    return spread(keras.Model(x, layers.Dense(10)(layers.GlobalAveragePooling2D()(y))), 2)


def detection_head() -> keras.Model:
    x = keras.Input((32, 32, 3), name="image")
    y = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(x)
    y = layers.Conv2D(24, 3, strides=2, padding="same", activation="relu")(y)
    boxes = layers.Rescaling(100.0)(layers.Conv2D(4, 1)(y))
    scores = layers.Conv2D(6, 1, activation="sigmoid")(y)
    return keras.Model(x, layers.Concatenate()([boxes, scores]))


def silu() -> keras.Model:
    x = keras.Input((32, 32, 3), name="image")
    y = x
    for filters in (16, 24, 32):
        y = layers.Conv2D(filters, 3, strides=2, padding="same", activation="silu")(y)
    return keras.Model(x, layers.Dense(10)(layers.GlobalAveragePooling2D()(y)))


def transformer() -> keras.Model:
    x = keras.Input((16, 32), name="tokens")
    y = layers.Add()([x, layers.MultiHeadAttention(2, 16)(x, x)])
    y = layers.LayerNormalization()(y)
    z = layers.Dense(32)(layers.Dense(64, activation="gelu")(y))
    y = layers.LayerNormalization()(layers.Add()([y, z]))
    return keras.Model(x, layers.Dense(10)(layers.GlobalAveragePooling1D()(y)))


def recurrent() -> keras.Model:
    x = keras.Input((16, 8), name="steps")
    return keras.Model(x, layers.Dense(10)(layers.LSTM(16, unroll=True)(x)))


def autoencoder() -> keras.Model:
    x = keras.Input((64,), name="spectrum")
    y = x
    for units in (64, 8, 64):
        y = layers.Dense(units, activation="relu")(y)
    return keras.Model(x, layers.Dense(64)(y))


MADE: dict[str, Callable[[], keras.Model]] = {
    "mobile_like": mobile_like,
    "detection_head": detection_head,
    "silu": silu,
    "transformer": transformer,
    "recurrent": recurrent,
    "autoencoder": autoencoder,
}
NETWORKS = (*mlperf_tiny.NETWORKS, *MADE)


REGRESSION = ("anomaly_detection", "autoencoder")


def case(name: str) -> tuple[Case, np.ndarray | None]:
    """Return a trained network with its samples, and the labels of those held out."""
    keras.utils.set_random_seed(0)
    model = MADE[name]() if name in MADE else mlperf(name)
    shape = model.input_shape[1:]
    if name in (*REGRESSION, "detection_head"):
        x, labels = smooth(shape, TRAINED + UNLABELLED, 0), None
        if name in REGRESSION:
            model.compile("adam", "mse")
            model.fit(x[:TRAINED], x[:TRAINED], batch_size=16, epochs=EPOCHS, verbose=0)
        return Case(name, model, x[:CALIBRATION], x[TRAINED:], False), labels
    data, classes = handwritten_digits(), model.output_shape[-1]
    x, y = resized(data.train.x[:TRAINED], shape), data.train.y[:TRAINED] % classes
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    if model.layers[-1].activation is keras.activations.linear:
        logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(3e-3), logits)
    model.fit(x, y, batch_size=16, epochs=EPOCHS, verbose=0)
    model.layers[-1].activation = keras.activations.linear
    held_out, labels = resized(data.test.x, shape)[:LABELLED], data.test.y[:LABELLED] % classes
    return Case(name, model, x[:CALIBRATION], held_out, True), labels


def mlperf(name: str) -> keras.Model:
    """Return a network of MLPerf Tiny whose norms have different scales, as after long training."""
    generator = np.random.default_rng(0)
    model = mlperf_tiny.NETWORKS[name](rl.BatchRenormalization, norm_after_activation=True)
    for layer in model.layers:
        if isinstance(layer, rl.BatchRenormalization):
            spread = np.exp(generator.uniform(np.log(0.3), np.log(3), layer.gamma.shape))
            layer.gamma.assign(layer.gamma * spread)
    return model


def resized(images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return grey images resized to images or sequences of a shape."""
    found = np.asarray(keras.ops.image.resize(images, shape[:2]))
    return np.repeat(found, shape[2], axis=-1) if len(shape) == 3 else found[..., 0]


def ratio(truth: np.ndarray, given: np.ndarray) -> float:
    """Return the mean of the signal-to-noise ratios of the samples."""
    found = [decibels(t, g) for t, g in zip(truth, given, strict=True)]
    return float(np.mean([r for r in found if r is not None]))


def accuracy(given: np.ndarray, labels: np.ndarray | None) -> str:
    return "-" if labels is None else f"{100 * np.mean(given.argmax(axis=-1) == labels):.1f}"


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and its children, which are ended to be counted."""
    child.shared.close()
    return sum(os.times()[:4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", default="tflite,onnx")
    parser.add_argument("networks", nargs="*", metavar="NETWORK")
    arguments = parser.parse_args()
    print(
        "network | format | stock dB | int8 dB | auto dB | noise removed | "
        "accuracy of float, stock, int8, auto in % | bytes | CPU s"
    )
    for name in arguments.networks or NETWORKS:
        measure(*case(name), arguments.formats.split(","))


def measure(one: Case, labels: np.ndarray | None, formats: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        truth = np.asarray(float64_twin(one.model)(one.held_out.astype(np.float64)))
        for name in formats:
            stocks, right = "-", "-"
            if name == "tflite":
                try:
                    given = run_tflite(stock(one), one.held_out)
                    stocks, right = f"{ratio(truth, given):.1f}", accuracy(given, labels)
                except Exception as error:  # the stock converter refuses or cannot run some
                    stocks = type(error).__name__
            started = cpu_seconds()
            manifest = rl.export_model(
                one.model,
                Path(folder) / name,
                formats=(name,),
                precisions=("int8", "auto"),
                calibration=one.calibration,
                equalize="never",
                opset=21,
            )
            seconds = cpu_seconds() - started
            by: dict[str, Artifact] = {a.precision: a for a in manifest.artifacts}
            key = manifest.inputs[0].name
            outputs = [
                next(iter(run_artifact(by[p], Path(folder) / name, {key: one.held_out}).values()))
                for p in ("int8", "auto")
            ]
            plain, best = (ratio(truth, given) for given in outputs)
            gone = 100 * (1 - 10 ** (-(best - plain) / 10))
            size = by["auto"].bytes / by["int8"].bytes - 1
            shares = [accuracy(truth, labels), right, *(accuracy(g, labels) for g in outputs)]
            print(
                f"{one.name} | {name} | {stocks} | {plain:.1f} | {best:.1f} | {gone:.0f} % | "
                f"{', '.join(shares)} | {100 * size:+.1f} % | {seconds:.0f}",
                flush=True,
            )
            for note in by["auto"].notes:
                if "held-out" in note:
                    print(f"    {note}", flush=True)


if __name__ == "__main__":
    main()
