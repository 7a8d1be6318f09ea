"""MobileNetV2 from keras.applications, trained with both norms, then exported and checked.

    python examples/mobilenet_renorm.py [FOLDER] [--epochs 5] [--images 1437]

Trains the network from random weights on real scanned digits (1,437, and 360 held out), enlarged to
64 x 64 pixels, with batches of 8: once with its 52 batch norms, once with batch renormalization in
their place. Then folds all norms of the second, writes TFLite and ONNX files to FOLDER
(build/mobilenet_digits by default), and checks both against the trained model.

Held-out accuracy after each of five epochs (one run; standard errors 0.013 at the end):

    batch normalization      0.100  0.100  0.100  0.842  0.939
    batch renormalization    0.639  0.800  0.892  0.914  0.925

At the end the two norms do not differ by more than chance. Before, the network with batch
normalization fits its training batches (0.894 in the third epoch), but not with its stored
statistics, so that no checkpoint is of use until the learning rate has fallen. With batch
renormalization the network that trains is the network that is validated and exported, in every
epoch. Give `weights="imagenet"` for a network of use.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import keras
import numpy as np
import renormlite as rl
from renormlite.models.data import Dataset, handwritten_digits

SIZE, BATCH_SIZE = 64, 8
# Keras' default. MobileNetV2's 0.999 averages over a thousand batches, too many for a run this
# short; with 0.9, batch renormalization trains against the noise of ten batches.
MOMENTUM = 0.99


def images(gray: np.ndarray) -> np.ndarray:
    """Turn scans of 8 x 8 pixels in [0, 1] into inputs of MobileNetV2: colour, large, [-1, 1]."""
    large = keras.ops.image.resize(gray, (SIZE, SIZE), interpolation="bilinear")
    return np.repeat(2.0 * keras.ops.convert_to_numpy(large) - 1.0, 3, axis=-1)


def network() -> keras.Model:
    """Return MobileNetV2 with batch normalization; the same weights each time."""
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(
        input_shape=(SIZE, SIZE, 3), alpha=0.35, weights=None, classes=10
    )
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = MOMENTUM
    return model


def trained(
    model: keras.Model, digits: Dataset, epochs: int, images_used: int | None, *callbacks
) -> list[float]:
    """Train a model and return its accuracy on the held-out digits after each epoch."""
    x, y = images(digits.train.x[:images_used]), digits.train.y[:images_used]
    steps = epochs * (len(x) // BATCH_SIZE)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    model.compile(
        keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    held_out = images(digits.test.x), digits.test.y
    history = model.fit(
        x,
        y,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        validation_data=held_out,
        verbose=2,
        callbacks=callbacks,
    )
    return history.history["val_accuracy"]


def main(folder: Path, epochs: int, images_used: int | None) -> int:
    """Train, convert, export and check; the exit code says whether the check passed."""
    digits = handwritten_digits()
    batch_norm = network()
    model = rl.to_renorm(network())
    x_test = images(digits.test.x[:100])
    before, after = (m.predict(x_test[:4], verbose=0) for m in (batch_norm, model))
    print("inference is unchanged, bit for bit:", np.array_equal(before, after))

    watch = rl.RenormDiagnostics(every=30)
    accuracy = {
        "batch normalization": trained(batch_norm, digits, epochs, images_used),
        "batch renormalization": trained(model, digits, epochs, images_used, watch),
    }
    for norm, shares in accuracy.items():
        print(f"accuracy with {norm}:", *(f"{share:.3f}" for share in shares))
    rl.plot_diagnostics(watch.readings, folder / "diagnostics.png")

    manifest = rl.export_model(model, folder, inputs=x_test)
    for artifact in manifest.artifacts:
        print(f"{artifact.file}: {artifact.bytes:,} bytes, {sum(artifact.ops.values())} operators")
    report = rl.check_parity(folder)
    print("parity on litert and onnxruntime:", "passed" if report.passed else "FAILED")
    return 0 if report.passed else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("build/mobilenet_digits"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, help="train on the first N images only")
    arguments = parser.parse_args()
    raise SystemExit(main(arguments.folder, arguments.epochs, arguments.images))
