"""Latency of the two ways to carry a norm's shift to a zero-padded convolution.

    python benchmarks/padding.py [--rounds 30] [--precision float32] [--json FILE]

Five 3 x 3 convolutions of equal width, with four norms behind their relus, are folded with a
channel of ones and with an addition, and compared with the same convolutions without norms
(`latency.py`).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from inference import TARGETS, Identity, ours, settled, timed, with_norms
from keras import layers
from renormlite.export.fold import passes
from rows import Row, median_row, write

# Channels and pixels on each side.
WIDTHS = ((8, 32), (12, 32), (16, 32), (24, 32), (32, 32), (64, 28), (128, 28), (256, 14))


def built(channels: int, pixels: int) -> keras.Model:
    """Build the convolutions with their norms."""
    keras.utils.set_random_seed(0)
    x = image = keras.Input((pixels, pixels, channels))
    for _ in range(4):
        x = layers.Conv2D(channels, 3, padding="same", activation="relu")(x)
        x = layers.BatchNormalization()(x)
    x = layers.Conv2D(channels, 3, padding="same")(x)
    return settled(keras.Model(image, layers.GlobalAveragePooling2D()(x)))


def measured(channels: int, pixels: int, precision: str, rounds: int) -> list[Row]:
    """Export and time one width; print and return the ratios."""
    model, rows = built(channels, pixels), []
    with tempfile.TemporaryDirectory() as folder:
        found = {"twin": ours(with_norms(model, Identity), Path(folder) / "twin", precision)}
        for way, slow in (("channel of ones", False), ("ADD", True)):
            with mock.patch.object(passes, "one_more_is_slow", lambda _, slow=slow: slow):
                found[way] = ours(model, Path(folder) / way.replace(" ", "_"), precision)
        for suffix in found["twin"]:
            files = {way: paths[suffix] for way, paths in found.items()}
            for runtime in [name for name, threads in TARGETS[suffix] if threads == 1]:
                seconds = timed(runtime, 1, files, rounds)
                twin = seconds.pop("twin", [])
                for way, values in seconds.items():
                    ratios = [a / b for a, b in zip(values, twin, strict=True)]
                    case = f"{channels} channels, {pixels} x {pixels}"
                    subject = f"{way} / twin, {runtime}"
                    rows.append(median_row(f"{case}, {precision}", subject, "ratio", ratios))
                    print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", choices=("float32", "int8"), default="float32")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json")
    options = parser.parse_args()
    found = (measured(*width, options.precision, options.rounds) for width in WIDTHS)
    write([row for rows in found for row in rows], options.json)


if __name__ == "__main__":
    main()
