"""Wall time of an export relative to the stock pair `model.export(litert)` + `model.export(onnx)`.

Pairs in one process, interleaved, medians of ratios; both sides start from the same Keras network
with batch norms and write float32 TFLite and ONNX. "files" is fold, conversion, writing and
validation; "all" is the whole of `export_model`, including the proof in float64, the golden set,
the network and the manifest, which the stock pair does not write.

    python benchmarks/export_time.py [--pairs 3] [--size 128] [--json FILE] [NETWORK ...]
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import renormlite as rl
from renormlite.export.fold import fold
from renormlite.export.formats.base import Job, format_named
from renormlite.export.formats.freeze import freeze
from renormlite.export.options import ExportOptions
from renormlite.export.signature import signature_of
from rows import median_row, write

NETWORKS = ("MobileNetV2", "ResNet50V2", "DenseNet121")

Way = Callable[[keras.Model, Path], object]


def stock(model: keras.Model, folder: Path) -> None:
    model.export(folder / "stock.tflite", format="litert", verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # warnings of Keras' patch for tf2onnx
        model.export(folder / "stock.onnx", format="onnx", verbose=False)


def files(model: keras.Model, folder: Path) -> dict[str, Path]:
    """Write the float32 files of our export and nothing else; return them by format."""
    folded = fold(model, verify=False).model
    graph, written = freeze(folded, signature_of(model)), {}
    for name in ("tflite", "onnx"):
        file_format = format_named(name)
        job = Job(graph, "float32", ExportOptions(), "{}")
        written[name] = folder / f"files{file_format.suffix}"
        file_format.write(job, written[name])
        file_format.validate(written[name], job)
    return written


def everything(model: keras.Model, folder: Path) -> None:
    rl.export_model(model, folder / "net")


WAYS: dict[str, Way] = {"stock": stock, "files": files, "all": everything}


def seconds(way: Way, model: keras.Model) -> float:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        way(model, Path(folder))
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    found = []
    shape = (arguments.size, arguments.size, 3)
    for name in arguments.networks:
        model = getattr(keras.applications, name)(input_shape=shape, weights=None)
        model(np.zeros((1, *shape), np.float32))  # the stock ONNX export requires one call before
        for way in WAYS.values() if not found else ():  # the first loads libraries: not counted
            seconds(way, model)
        rows = [
            {key: seconds(way, model) for key, way in WAYS.items()} for _ in range(arguments.pairs)
        ]
        case = f"{name}, {arguments.size} px"
        for key in ("files", "all"):
            ratios = [row[key] / row["stock"] for row in rows]
            found.append(median_row(case, f"{key} / stock", "ratio", ratios))
        for key in WAYS:
            found.append(median_row(case, f"{key}, s", "s", [row[key] for row in rows]))
        for row in found[-5:]:
            print(row, flush=True)
    write(found, arguments.json)


if __name__ == "__main__":
    main()
