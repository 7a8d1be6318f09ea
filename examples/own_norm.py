"""Fold a norm of your own: batch normalization with the mean absolute deviation.

    python examples/own_norm.py [FOLDER]

A norm can be folded if it is one scale and one shift per channel at inference, whatever it does in
training. This norm divides by the mean absolute deviation instead of the standard deviation, and
needs no squares and roots (L1 batch normalization, Wu et al. 2018, arXiv:1802.09769). A function of
four lines returns its scale and shift. With it, the norm is folded, exported and checked like any
other.
"""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np
import renormlite as rl
from keras import ops
from renormlite.models import digits
from renormlite.models.data import handwritten_digits
from renormlite.models.recipe import train_classifier


@keras.saving.register_keras_serializable(package="examples")
class MeanDeviationNorm(keras.layers.Layer):
    """Subtracts each channel's mean and divides by its mean absolute deviation."""

    def __init__(self, momentum: float = 0.95, epsilon: float = 1e-3, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.momentum, self.epsilon = momentum, epsilon

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create scale, shift, mean and deviation with one value per channel."""
        shape = (input_shape[-1],)
        self.scale = self.add_weight(shape=shape, initializer="ones", name="scale")
        self.shift = self.add_weight(shape=shape, initializer="zeros", name="shift")
        self.mean = self.add_weight(shape=shape, initializer="zeros", trainable=False, name="mean")
        self.deviation = self.add_weight(
            shape=shape, initializer="ones", trainable=False, name="deviation"
        )

    def call(self, x: keras.KerasTensor, training: bool = False) -> keras.KerasTensor:
        """Normalize with the statistics of the batch in training, else with the moving ones."""
        mean, deviation = self.mean, self.deviation
        if training:
            axes = tuple(range(len(x.shape) - 1))
            mean = ops.mean(x, axes)
            deviation = ops.mean(ops.abs(x - mean), axes)
            self.mean.assign(self.momentum * self.mean + (1 - self.momentum) * mean)
            self.deviation.assign(self.momentum * self.deviation + (1 - self.momentum) * deviation)
        return (x - mean) / (deviation + self.epsilon) * self.scale + self.shift

    def get_config(self) -> dict[str, object]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "momentum": self.momentum, "epsilon": self.epsilon}


@rl.register_affine(MeanDeviationNorm)
def read_mean_deviation_norm(layer: MeanDeviationNorm) -> rl.Affine:
    """Return what the norm computes at inference, in float64."""
    scale, shift, mean, deviation = (np.asarray(w, np.float64) for w in layer.get_weights())
    scale = scale / (deviation + layer.epsilon)
    return rl.Affine.of(scale=scale, shift=shift - mean * scale, axis=-1)


def main(folder: Path) -> int:
    """Train, fold, export and check; the exit code says whether parity holds."""
    keras.utils.set_random_seed(0)
    model = digits.build(MeanDeviationNorm)
    trained = train_classifier(model, handwritten_digits(), epochs=4, batch_size=16)
    print(f"test accuracy {trained.accuracy:.3f}")

    folded = rl.fold(model)
    for record in folded.report.records:
        print(f"{record.name}: {record.outcome} into {', '.join(record.into)}")
    print(f"proved in float64: relative difference {folded.proof.worst:.1e}")

    rl.export_model(model, folder, inputs=trained.test.x[:100])
    report = rl.check_parity(folder)
    print("parity on litert and onnxruntime:", "passed" if report.passed else "FAILED")
    return 0 if report.passed else 1


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/own_norm")))
