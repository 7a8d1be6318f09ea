"""A network with foldable and other norms, and files of it from eight converters and quantizers."""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest


def build():
    """Build a network with three norms, of which converters fold only the first."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="folded")(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="depth")(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization(name="left")(x))
    x = layers.BatchNormalization(name="kept")(x)
    x = layers.Conv2D(12, 3, strides=2, padding="same", activation="relu", name="second")(x)
    x = layers.GlobalAveragePooling2D()(x)
    outputs = [layers.Dense(4, name=name)(x) for name in ("age", "weight")]
    model = keras.Model(image, outputs, name="mixed")
    rng = np.random.default_rng(0)
    for variable in model.weights:
        positive = "variance" in variable.name or "gamma" in variable.name
        values = rng.normal(1, 0.3, variable.shape) if positive else None
        variable.assign(
            np.abs(values) if values is not None else rng.normal(0, 0.4, variable.shape)
        )
    return model


def samples() -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 1, (24, 8, 8, 3)).astype("f4")


@pytest.fixture(scope="session")
def mixed():
    """The network."""
    return build()


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """Samples for the network."""
    return samples()


@pytest.fixture(scope="session")
def foreign(mixed, tmp_path_factory) -> Path:
    """A folder with files of the network; tests must not change it."""
    folder = tmp_path_factory.mktemp("foreign")
    with (
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
        warnings.catch_warnings(action="ignore"),  # warnings of the converters
    ):
        _tflite(mixed, folder)
        _onnx(mixed, folder)
    return folder


def _tflite(model, folder: Path) -> None:
    """Write files with TensorFlow's converter, Keras' export and LiteRT's quantizer."""
    import tensorflow as tf

    def half(converter):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]

    def int8(converter):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([x[None]] for x in samples())

    def uint8(converter):
        int8(converter)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.uint8

    for name, configure in (
        ("float32", None),
        ("float16", half),
        ("int8", int8),
        ("uint8", uint8),
    ):
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        if configure is not None:
            configure(converter)
        (folder / f"{name}.tflite").write_bytes(converter.convert())

    from ai_edge_quantizer import quantizer, recipe

    for suffix, form in (("tflite", "litert"), ("onnx", "onnx")):
        model.export(folder / f"exported.{suffix}", format=form, verbose=False)
    tool = quantizer.Quantizer(str(folder / "float32.tflite"), recipe.dynamic_wi8_afp32())
    (folder / "litert-quantizer.tflite").write_bytes(tool.quantize().quantized_model)


def _onnx(model, folder: Path) -> None:
    """Write files with tf2onnx in both layouts, its optimizers, and ONNX Runtime's quantizers."""
    import onnx
    import onnxsim
    import onnxslim
    import tensorflow as tf
    import tf2onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    spec = [tf.TensorSpec((None, 8, 8, 3), tf.float32, name="image")]
    for name, options in (("float32", {}), ("nchw", {"inputs_as_nchw": ["image"]})):
        path = str(folder / f"{name}.onnx")
        tf2onnx.convert.from_keras(model, spec, opset=17, output_path=path, **options)
    quantize_dynamic(folder / "float32.onnx", folder / "dynamic.onnx")
    onnx.save(onnxsim.simplify(onnx.load(folder / "float32.onnx"))[0], folder / "simplified.onnx")
    onnx.save(onnxslim.slim(str(folder / "float32.onnx")), folder / "slimmed.onnx")

    class Reader(CalibrationDataReader):
        def __init__(self):
            self._left = iter([{"image": x[None]} for x in samples()])

        def get_next(self):
            return next(self._left, None)

    (folder / "unfused").mkdir()
    prepared = folder / "unfused" / "prepared.onnx"
    quant_pre_process(str(folder / "float32.onnx"), str(prepared), skip_symbolic_shape=True)
    for name, form in (("int8", QuantFormat.QDQ), ("operators", QuantFormat.QOperator)):
        path = folder / f"{name}.onnx"
        quantize_static(prepared, path, Reader(), quant_format=form, per_channel=True)
