"""Quantization-aware training: a digits network with 4-bit weights, on real data.

python examples/quantize_digits.py build/digits4
"""

import sys

import keras
import numpy as np
import renormlite as rl
from renormlite.models import digits
from renormlite.models.data import handwritten_digits


def accuracy(model: keras.Model, test) -> float:
    """Return the share of correct answers."""
    return float(np.mean(np.array(model(test.x)).argmax(axis=-1) == test.y))


def main(directory: str) -> None:
    """Train in float, then with quantization; export without calibration, and check."""
    data = handwritten_digits()
    model = digits.train(epochs=2).model
    print("float", accuracy(model, data.test))

    quantized = rl.quantize_aware(model, weight_bits=4, samples=data.train.x[:200])
    print("4-bit weights, not trained for it", accuracy(quantized, data.test))
    quantized.compile(keras.optimizers.Adam(3e-4), "sparse_categorical_crossentropy")
    quantized.fit(data.train.x, data.train.y, batch_size=32, epochs=2, verbose=2)
    print("4-bit weights, trained", accuracy(quantized, data.test))

    rl.export_model(quantized, directory, precisions=("int8",), inputs=data.test.x)
    report = rl.check_parity(directory, targets=("litert", "onnxruntime"))
    print("passed" if report.passed else "failed")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "build/digits4")
