"""Protects healthy files whose converter merged a function with the layer before it."""

from pathlib import Path

import keras
import numpy as np
import renormlite as rl
from keras import layers


def test_merged_functions_are_no_faults(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 4), name="x")
    y = layers.Conv1D(6, 3, activation="hard_sigmoid", bias_initializer="normal")(x)
    # Behind a relu, a PReLU is written out with the negative slope.
    y = layers.PReLU(shared_axes=[1], alpha_initializer="normal")(layers.ReLU()(y))
    model = keras.Model(x, layers.Dense(3, name="y")(y))
    samples = np.random.default_rng(0).normal(0, 2, (32, 8, 4)).astype(np.float32)
    rl.export_model(
        model,
        tmp_path / "net",
        formats=("tflite",),
        precisions=("float32", "int8"),
        inputs=samples,
    )
    report = rl.check_parity(tmp_path / "net", targets=("litert", "litert+builtin"))
    assert not [f.message for result in report.results for f in result.findings if not f.passed]


def test_numbers_merged_before_and_behind_layers_are_no_faults(tmp_path: Path) -> None:
    """A number goes into the bias before it, or into the kernel and the bias behind it."""
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 4), name="image")
    a = layers.Conv2DTranspose(3, 3, use_bias=False, activation="hard_sigmoid")(image)
    b = layers.Conv2DTranspose(3, 3, use_bias=False)(image) - 0.7
    c = layers.Dense(3)(image) - 0.7
    d = layers.Conv3D(3, 2, activation="hard_sigmoid")(layers.Reshape((3, 2, 6, 4))(image))
    e = layers.Average()([layers.ReLU()(image), layers.Activation("tanh")(image)])
    outputs = [layers.Dense(2, name=f"y{i}")(x) for i, x in enumerate((a, b, c, d, e))]
    rl.export_model(
        keras.Model(image, outputs),
        tmp_path / "net",
        formats=("tflite",),
        precisions=("float32", "float16", "int8"),
        calibration="random",
    )
    report = rl.check_parity(tmp_path / "net", targets=("litert",))
    assert not [f.message for result in report.results for f in result.findings if not f.passed]


def test_a_prelu_of_rounded_slopes_is_no_fault(tmp_path: Path) -> None:
    """For volumes, the file has relu(x) + (-alpha) * -min(x, 0), with rounded slopes."""
    keras.utils.set_random_seed(0)
    image = keras.Input((3, 4, 5, 2), name="image")
    y = layers.PReLU(alpha_initializer="normal")(layers.Conv3DTranspose(2, 2)(image))
    model = keras.Model(image, layers.Dense(2)(y))
    rl.export_model(model, tmp_path / "net", formats=("tflite",), precisions=("float16",))
    report = rl.check_parity(tmp_path / "net", targets=("litert",))
    assert not [f.message for result in report.results for f in result.findings if not f.passed]
