"""Writes one healthy file of every kind that renormlite reads, for tests that damage it."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path

import keras
import numpy as np
import pyarrow as pa
import renormlite as rl
from pyarrow import parquet
from renormlite.runtime_checks.bundle.write import write_bundle
from tar_shard import write_tar_shard


def write_healthy_files(folder: Path) -> dict[str, Path]:
    """Write the files; return each by its name in `hostile.PARSERS`."""
    layers = keras.layers
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(4, 3, strides=2, name="conv")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(3, activation="softmax", name="scores")(x))
    images = np.random.default_rng(0).normal(size=(4, 12, 12, 3)).astype(np.float32)
    export = folder / "tiny"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the converters
        model.save(folder / "tiny.keras")
        rl.export_model(model, export, precisions=("float32", "int8"), calibration=images)
        report = rl.check_parity(export)
    np.savez(folder / "samples.npz", image=images, label=np.arange(4))
    np.save(folder / "samples.npy", images)
    parquet.write_table(
        pa.table({"image": images.tolist(), "label": np.arange(4)}), folder / "samples.parquet"
    )
    write_tar_shard(folder / "samples.tar", images, range(4))
    (folder / "report.json").write_text(report.to_json())
    with contextlib.redirect_stdout(None):
        bundle = write_bundle(export, folder / "tiny.pyz")
    return {
        "manifest": export / "manifest.json",
        "baseline": folder / "report.json",
        "golden set": export / "golden.npz",
        "network": export / "network.npz",
        "samples .npz": folder / "samples.npz",
        "samples .tar": folder / "samples.tar",
        "samples .parquet": folder / "samples.parquet",
        "samples .npy": folder / "samples.npy",
        "tflite": export / "tiny.int8.tflite",
        "onnx": export / "tiny.int8.onnx",
        "bundle": Path(bundle),
        "keras": folder / "tiny.keras",
    }
