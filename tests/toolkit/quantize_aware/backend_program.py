"""Trains a small quantized network on any backend; `test_backends` examines the files it saves.

Arguments: the rounding, the folder. It also saves halfway, continues from the file, and reports
whether both trajectories are the same.
"""

import sys
from pathlib import Path

import keras
import numpy as np
import renormlite as rl
from keras import layers as kl


def network() -> keras.Model:
    """Return a network with every kind of operator that has its own arithmetic."""
    image = keras.Input((6, 6, 1), name="image")
    x = kl.ReLU()(rl.BatchRenormalization()(kl.Conv2D(4, 3, padding="same")(image)))
    y = kl.BatchNormalization()(kl.DepthwiseConv2D(3, padding="same")(x))
    x = kl.Add()([x, y])
    x = kl.Concatenate()([kl.LeakyReLU(0.1)(x), kl.Conv2D(3, 1, activation="sigmoid")(x)])
    x = kl.AveragePooling2D(3, strides=1)(x)
    x = kl.GlobalAveragePooling2D()(kl.Conv2DTranspose(5, 2, strides=2)(x))
    return keras.Model(image, kl.Dense(3, name="scores")(x))


def main(rounding: str, folder: Path) -> None:
    """Train, save, and continue with the model and with the file."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    samples, labels = rng.normal(size=(128, 6, 6, 1)).astype("f4"), rng.integers(0, 3, 128)
    ranges = "learned" if rounding == "double" else "average"
    model = rl.quantize_aware(
        network(), samples=samples[:32], rounding=rounding, ranges=ranges, weight_bits=6
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    def fit(one: keras.Model) -> list[float]:
        options = {"batch_size": 16, "shuffle": False, "verbose": 0}
        return one.fit(samples, labels, **options).history["loss"]

    fit(model)
    model.save(folder / "half.keras")
    resumed = keras.models.load_model(folder / "half.keras")
    same = fit(model) == fit(resumed)
    model.save(folder / "model.keras")
    outputs = keras.ops.convert_to_numpy(model(samples, training=False))
    np.savez(folder / "found.npz", samples=samples, outputs=outputs, same=same)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
