"""Ten networks that lose accuracy in stock int8, and how much the precision `auto` recovers.

The networks are the four of MLPerf Tiny with the norm after the activation (briefly trained, norms
spread over a decade), and six small ones with random weights: channels of different ranges as in
MobileNet, a detection head, SiLU, a transformer block, a recurrent layer, an autoencoder. Measured
on samples that neither calibration nor the search used: signal-to-noise ratio against float64,
size, CPU seconds of both exports with their child processes, and the share of the noise power of
the plain int8 file that is removed.

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
from export_int8 import Case, mlperf_tiny_case, smooth, stock
from export_int8 import run as run_tflite
from keras import layers
from renormlite.artifacts.manifest import Artifact
from renormlite.export.fold import float64_twin
from renormlite.export.golden_set import decibels
from renormlite.export.host import run_artifact
from renormlite.models import mlperf_tiny

CALIBRATION, HELD_OUT = 100, 64


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
    return keras.Model(x, layers.Dense(5)(layers.GlobalAveragePooling1D()(y)))


def recurrent() -> keras.Model:
    x = keras.Input((16, 8), name="steps")
    return keras.Model(x, layers.Dense(5)(layers.LSTM(16, unroll=True)(x)))


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


def case(name: str) -> Case:
    if name in mlperf_tiny.NETWORKS:
        return mlperf_tiny_case(name, True, 0)
    keras.utils.set_random_seed(0)
    model = MADE[name]()
    shape = model.input_shape[1:]
    made = smooth(shape if len(shape) != 2 else (shape[0] * shape[1],), CALIBRATION + HELD_OUT, 0)
    data = made.reshape(-1, *shape)
    return Case(name, model, data[:CALIBRATION], data[CALIBRATION:], False)


def ratio(truth: np.ndarray, given: np.ndarray) -> float:
    """Return the mean of the signal-to-noise ratios of the samples."""
    found = [decibels(t, g) for t, g in zip(truth, given, strict=True)]
    return float(np.mean([r for r in found if r is not None]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", default="tflite,onnx")
    parser.add_argument("networks", nargs="*", metavar="NETWORK")
    arguments = parser.parse_args()
    print("network | format | stock dB | int8 dB | auto dB | noise removed | bytes | CPU s")
    for name in arguments.networks or NETWORKS:
        measure(case(name), arguments.formats.split(","))


def measure(one: Case, formats: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        truth = np.asarray(float64_twin(one.model)(one.held_out.astype(np.float64)))
        try:
            stocks = ratio(truth, run_tflite(stock(one), one.held_out))
        except Exception as error:  # the stock converter refuses or cannot run some
            print(f"{one.name}: stock: {type(error).__name__}")
            stocks = float("nan")
        for name in formats:
            started = sum(os.times()[:4])
            manifest = rl.export_model(
                one.model,
                Path(folder) / name,
                formats=(name,),
                precisions=("int8", "auto"),
                calibration=one.calibration,
                equalize="never",
                opset=21,
            )
            seconds = sum(os.times()[:4]) - started
            by: dict[str, Artifact] = {a.precision: a for a in manifest.artifacts}
            key = manifest.inputs[0].name
            plain, best = (
                ratio(truth, next(iter(given.values())))
                for p in ("int8", "auto")
                for given in [run_artifact(by[p], Path(folder) / name, {key: one.held_out})]
            )
            gone = 100 * (1 - 10 ** (-(best - plain) / 10))
            size = by["auto"].bytes / by["int8"].bytes - 1
            shown = f"{stocks:.1f}" if name == "tflite" else "-"
            print(
                f"{one.name} | {name} | {shown} | {plain:.1f} | {best:.1f} | {gone:.0f} % | "
                f"{100 * size:+.1f} % | {seconds:.0f}",
                flush=True,
            )
            for note in by["auto"].notes:
                if "held-out" in note:
                    print(f"    {note}", flush=True)


if __name__ == "__main__":
    main()
