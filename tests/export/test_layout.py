"""Protects channels-first ONNX files and the rewrites that take layout changes out."""

from __future__ import annotations

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import renormlite as rl
from keras import layers
from renormlite.errors import UserError
from renormlite.models import digits, mlperf_tiny

CONVOLUTIONAL = {
    "digits": digits.build,
    "keyword_spotting": mlperf_tiny.keyword_spotting,
    "visual_wake_words": mlperf_tiny.visual_wake_words,
    "image_classification": mlperf_tiny.image_classification,
}


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_channels_first_needs_no_transpose_in_a_convolutional_network(name, export, settled):
    model = settled(CONVOLUTIONAL[name](rl.BatchRenormalization))
    manifest, _ = export(model, formats=("onnx",), layout="nchw")
    (artifact,) = manifest.artifacts
    assert "Transpose" not in artifact.ops
    height, width, channels = model.input_shape[1:]
    assert artifact.inputs[0].shape == (1, channels, height, width)
    assert artifact.inputs[0].axes == (0, 3, 1, 2)
    assert all(ratio > 100 for ratio in artifact.snr_db.values())


def test_channels_first_outputs_of_a_fully_convolutional_network(export, settled):
    x = keras.Input((8, 8, 3), name="x")
    y = layers.ReLU()(rl.BatchRenormalization()(layers.Conv2D(4, 3, padding="same")(x)))
    y = layers.Conv2DTranspose(2, 3, strides=2, padding="same", name="mask")(y)
    model = settled(keras.Model(x, y))
    manifest, folder = export(model, formats=("onnx",), layout="nchw")
    (artifact,) = manifest.artifacts
    assert "Transpose" not in artifact.ops
    assert artifact.outputs[0].shape == (1, 2, 16, 16)
    image = np.random.default_rng(0).random((1, 8, 8, 3), np.float32)
    session = onnxruntime.InferenceSession(folder / artifact.file)
    (mask,) = session.run(None, {"x": image.transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(mask.transpose(0, 2, 3, 1), model(image), atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3])
def test_channels_first_of_sequences_and_volumes(rank, export):
    conv = {1: layers.Conv1D, 3: layers.Conv3D}[rank]
    x = keras.Input((6,) * rank + (3,), name="x")
    y = conv(4, 3, activation="relu", name="y")(x)
    manifest, _ = export(keras.Model(x, y), formats=("onnx",), layout="nchw")
    (artifact,) = manifest.artifacts
    assert artifact.inputs[0].shape == (1, 3) + (6,) * rank
    assert artifact.snr_db["y"] > 100


def test_layout_does_not_change_tflite_files(small, export):
    manifest, _ = export(small, formats=("tflite", "onnx"), layout="nchw")
    assert manifest.artifacts[0].inputs[0].shape == (1, 12, 12, 3)
    assert manifest.artifacts[0].inputs[0].axes is None


def test_int8_calibrates_channels_first(small, images, export):
    manifest, _ = export(
        small, formats=("onnx",), precisions=("int8",), inputs=images, layout="nchw"
    )
    assert manifest.artifacts[0].snr_db["scores"] > 25


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_rows_of_a_dense_layer_follow_the_order_of_the_flattened_map(layout, export):
    x = keras.Input((5, 4, 3), name="x")
    maps = layers.Conv2D(7, 2, name="maps")(x)
    model = keras.Model(x, layers.Dense(6, name="y")(layers.Flatten()(maps)))
    manifest, _ = export(model, formats=("onnx",), layout=layout)
    (artifact,) = manifest.artifacts
    assert artifact.ops.get("Transpose", 0) == (1 if layout == "nhwc" else 0)
    assert artifact.snr_db["y"] > 110


def test_a_flattened_map_with_other_readers_keeps_its_order(export):
    x = keras.Input((5, 4, 3), name="x")
    flat = layers.Flatten(name="flat")(layers.Conv2D(7, 2)(x))
    model = keras.Model(x, [flat, layers.Dense(6, name="y")(flat)])
    manifest, _ = export(model, formats=("onnx",))
    assert all(ratio > 110 for ratio in manifest.artifacts[0].snr_db.values())


@pytest.mark.parametrize("opset", [13, 15, 17, 18, 21])
def test_opset(opset, small, export):
    manifest, folder = export(small, formats=("onnx",), opset=opset)
    model = onnx.load(folder / "net.float32.onnx")
    assert [(o.domain, o.version) for o in model.opset_import] == [("", opset)]
    assert model.ir_version >= onnx.helper.find_min_ir_version_for(list(model.opset_import))
    assert manifest.artifacts[0].snr_db["scores"] > 110


@pytest.mark.parametrize("opset", [13, 21])
def test_int8_at_either_end_of_the_opsets(opset, small, images, export):
    manifest, _ = export(small, formats=("onnx",), precisions=("int8",), inputs=images, opset=opset)
    assert manifest.artifacts[0].snr_db["scores"] > 25


@pytest.mark.parametrize("width", [4, 6])
def test_a_bias_as_long_as_the_last_axis(width, export, settled):
    """Keras adds it to that axis, not to the channels, and not in every way of running a model."""
    x = keras.Input((3, 5, width), name="x")
    first = {"padding": "same", "data_format": "channels_first"}
    model = settled(keras.Model(x, layers.Conv2DTranspose(4, 3, name="y", **first)(x)))
    shift = np.arange(1, 5)
    model.get_layer("y").bias.assign(shift)
    zeros = model.predict(np.zeros((1, 3, 5, width)), verbose=0)
    along = shift if width == 4 else shift[:, None, None]
    np.testing.assert_array_equal(zeros, np.broadcast_to(along, zeros.shape))
    if width == 4:
        with pytest.raises(UserError, match="layer 'y' to its last axis instead of its channels"):
            export(model, formats=("onnx",))
    else:
        manifest, _ = export(model, formats=("onnx",))
        assert manifest.artifacts[0].snr_db["y"] > 100


def test_a_bias_that_tensorflow_adds_to_the_channels_after_all(export, settled):
    """Its layout optimizer runs this convolution, of the same sizes, with channels last."""
    x = keras.Input((3, 5, 4), name="x")
    y = layers.Conv2D(4, 3, padding="same", data_format="channels_first", name="y")(x)
    model = settled(keras.Model(x, y))
    model.get_layer("y").bias.assign(np.arange(1, 5))
    manifest, folder = export(model, formats=("onnx",))
    image = np.random.default_rng(0).random((1, 3, 5, 4), np.float32)
    session = onnxruntime.InferenceSession(folder / manifest.artifacts[0].file)
    (given,) = session.run(None, {"x": image})
    np.testing.assert_allclose(given, model.predict(image, verbose=0), atol=1e-5)
