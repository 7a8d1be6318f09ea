"""MobileNetV2 from keras.applications: batch renormalization, fine-tuning, export and checks.

    python examples/mobilenet_renorm.py [FOLDER]

The program replaces the 52 batch norms of MobileNetV2 by batch renormalization, trains it briefly
with batches of 8 on scanned digits, folds every norm, writes TFLite and ONNX files to FOLDER
(build/mobilenet_digits by default), and checks both files against the trained model. To train a
useful network, pass `weights="imagenet"` and train for more epochs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np
import renormlite as rl
from renormlite.models.data import handwritten_digits

SIZE, BATCH_SIZE, STEPS = 64, 8, 40


def images(gray: np.ndarray) -> np.ndarray:
    """Resize scans of 8 x 8 pixels in [0, 1] for MobileNetV2, to three channels in [-1, 1]."""
    large = keras.ops.image.resize(gray, (SIZE, SIZE), interpolation="bilinear")
    return np.repeat(2.0 * keras.ops.convert_to_numpy(large) - 1.0, 3, axis=-1)


def main(folder: Path) -> int:
    """Convert, train, export and check; the exit code says whether parity holds."""
    keras.utils.set_random_seed(0)
    digits = handwritten_digits()
    x_train, x_test = images(digits.train.x[: STEPS * BATCH_SIZE]), images(digits.test.x[:100])

    with_batch_norm = keras.applications.MobileNetV2(
        input_shape=(SIZE, SIZE, 3), alpha=0.35, weights=None, classes=10
    )
    # MobileNetV2 averages its statistics over a thousand batches, which is too slow for r and d.
    model = rl.to_renorm(with_batch_norm, bounds=rl.paper_schedule(STEPS), momentum=0.9)
    before, after = (m.predict(x_test[:4], verbose=0) for m in (with_batch_norm, model))
    print("inference is unchanged, bit for bit:", np.array_equal(before, after))

    watch = rl.RenormDiagnostics(every=5)
    model.compile(
        keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    model.fit(
        x_train, digits.train.y[: len(x_train)], batch_size=BATCH_SIZE, verbose=2, callbacks=[watch]
    )
    rl.plot_diagnostics(watch.readings, folder / "diagnostics.png")

    manifest = rl.export_model(model, folder, inputs=x_test)
    for artifact in manifest.artifacts:
        print(f"{artifact.file}: {artifact.bytes:,} bytes, {sum(artifact.ops.values())} operators")
    report = rl.check_parity(folder)
    print("parity on litert and onnxruntime:", "passed" if report.passed else "FAILED")
    return 0 if report.passed else 1


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/mobilenet_digits")))
