"""Protects that a healthy vector quantization is checked op by op without a false alarm."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers, ops


class Codes(layers.Layer):
    """The nearest of 16 codes; the distances are computed in one of three ways."""

    def __init__(self, way: str, **options) -> None:
        super().__init__(**options)
        self.way = way

    def get_config(self):
        return {**super().get_config(), "way": self.way}

    def build(self, shape) -> None:
        random = keras.initializers.RandomNormal(stddev=0.7, seed=3)
        self.book = self.add_weight(shape=(16, shape[-1]), initializer=random, name="book")

    def call(self, x):
        if self.way == "difference":
            distances = ops.sum(ops.square(ops.expand_dims(x, -2) - self.book), axis=-1)
            return ops.take(self.book, ops.argmin(distances, axis=-1), axis=0)
        product = ops.matmul(x, ops.transpose(self.book))
        distances = ops.sum(x**2, axis=-1, keepdims=True) - 2 * product
        distances = distances + ops.sum(self.book**2, axis=1)
        if self.way == "product":
            return ops.take(self.book, ops.argmin(distances, axis=-1), axis=0)
        chosen = ops.matmul(ops.one_hot(ops.argmax(-distances, axis=-1), 16), self.book)
        return x + ops.stop_gradient(chosen - x)


@pytest.mark.parametrize("way", ["difference", "product", "straight through"])
def test_codebooks_are_known_in_every_file(way, tmp_path):
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="first")(image)
    x = Codes(way, name="codes")(layers.Conv2D(4, 1, name="second")(x))
    model = keras.Model(image, layers.Conv2D(3, 3, padding="same", name="last")(x))
    images = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).cumsum(axis=1).cumsum(axis=2) / 4
    images = images.astype(np.float32)
    rl.export_model(
        model,
        tmp_path,
        precisions=("float32", "dynamic", "int8"),
        calibration=images,
        inputs=images[:16],
    )
    report = rl.check_parity(tmp_path, ("litert", "onnxruntime"), per_op=True)
    assert len(report.results) == 6
    for result in report.results:
        failed = {finding.check for finding in result.findings if not finding.passed}
        # Integers of 8 bits choose other codes, which costs quality.
        assert failed <= {"snr"}, (result.artifact, result.reason)
        assert len(result.ops) > 4
