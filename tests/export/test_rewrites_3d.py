"""Protects that 3-D convolutions and pooling reach TFLite as equal ones in two dimensions."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers
from renormlite.export.formats.base import Job, format_named
from renormlite.export.formats.freeze import freeze
from renormlite.export.options import ExportOptions
from renormlite.export.signature import signature_of

SHAPE = (7, 8, 9, 3)


def _model(layer: keras.Layer) -> keras.Model:
    x = keras.Input(SHAPE, name="x")
    layer.name = "y"
    return keras.Model(x, layer(x))


def _run(model, tmp_path, format_name="tflite", batch_size=1):
    """Return the ops of the file, what it computes, and what Keras does."""
    job = Job(freeze(model, signature_of(model), batch_size=batch_size), "float32",
              ExportOptions(batch_size=batch_size), "{}")  # fmt: skip
    file_format = format_named(format_name)
    path = tmp_path / f"net{file_format.suffix}"
    file_format.write(job, path)
    contents = file_format.validate(path, job)
    x = np.random.default_rng(0).normal(size=(batch_size or 3, *SHAPE)).astype(np.float32)
    with file_format.runner(path) as runner:
        parts = np.split(x, len(x) // (batch_size or 1))
        found = np.concatenate([runner.infer({"x": part})["y"] for part in parts])
    return contents.ops, found, np.asarray(model(x))


POOLS = {
    "valid": {"pool_size": 2},
    "overlapping": {"pool_size": (3, 2, 3), "strides": (1, 2, 2)},
    "same": {"pool_size": (2, 3, 2), "strides": (2, 2, 3), "padding": "same"},
    "gaps": {"pool_size": 2, "strides": 3},
}


@pytest.mark.parametrize("batch_size", [1, None])
@pytest.mark.parametrize("pool", POOLS)
def test_maxima_are_bit_equal(pool, batch_size, tmp_path):
    model = _model(layers.MaxPooling3D(**POOLS[pool]))
    ops, found, expected = _run(model, tmp_path, batch_size=batch_size)
    assert set(ops) <= {"MAX_POOL_2D", "RESHAPE"}
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("pool", POOLS)
def test_means_exclude_the_same_padding(pool, tmp_path):
    model = _model(layers.AveragePooling3D(**POOLS[pool]))
    ops, found, expected = _run(model, tmp_path)
    assert set(ops) <= {"AVERAGE_POOL_2D", "RESHAPE"}
    # Two means of at most nine numbers each, none larger than 5: 11 roundings of 2^-24 * 5.
    np.testing.assert_allclose(found, expected, rtol=0, atol=11 * 5 * 2**-24)


CONVOLUTIONS = [
    pytest.param({"kernel_size": 3, "dilation_rate": 2, "padding": "same"}, id="same"),
    pytest.param({"kernel_size": 2, "dilation_rate": 3, "padding": "valid"}, id="valid"),
    pytest.param(
        {"kernel_size": (4, 3, 2), "dilation_rate": (2, 1, 3), "padding": "same"}, id="uneven"
    ),
    pytest.param({"kernel_size": (1, 3, 3), "dilation_rate": (1, 2, 2)}, id="planes-only"),
    pytest.param({"kernel_size": (3, 1, 1), "dilation_rate": (3, 1, 1)}, id="depth-only"),
    pytest.param({"kernel_size": 2, "dilation_rate": 2, "groups": 3, "filters": 6}, id="grouped"),
]


@pytest.mark.parametrize("batch_size", [1, None])
@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_a_dilated_convolution_becomes_one_convolution_per_group(options, batch_size, tmp_path):
    model = _model(layers.Conv3D(**{"filters": 4, "bias_initializer": "normal"} | options))
    ops, found, expected = _run(model, tmp_path, batch_size=batch_size)
    assert ops["CONV_2D"] == options.get("groups", 1)
    left = {"CONV_2D", "CONCATENATION", "PAD", "RESHAPE", "STRIDED_SLICE"}
    assert set(ops) <= left | ({"SPLIT", "ADD"} if "groups" in options else set())
    # At most 72 products of numbers below 5 and weights below 1, summed in another order.
    np.testing.assert_allclose(found, expected, rtol=0, atol=72 * 5 * 72 * 2**-24)


def test_onnx_gets_one_dilated_convolution_per_group(tmp_path):
    layer = layers.Conv3D(6, 3, groups=3, dilation_rate=2, padding="same")
    ops, found, expected = _run(_model(layer), tmp_path, "onnx")
    assert ops["Conv"] == 3
    assert not {"Shape", "Slice", "Pad"} & set(ops)
    np.testing.assert_allclose(found, expected, rtol=0, atol=27 * 5 * 27 * 2**-24)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_an_int8_file_computes_3d_convolutions_in_integers(padding, export):
    # TFLite's CONV_3D takes floats only: the file would hold float weights and compute in float.
    keras.utils.set_random_seed(38)  # weights that leave the convolution's tensor hard to identify
    x = keras.Input(SHAPE, name="x")
    y = layers.Conv3D(8, 3, strides=(2, 1, 2), padding=padding, use_bias=False)(x)
    model = keras.Model(x, layers.ReLU(name="y")(rl.BatchRenormalization()(y)))
    samples = np.random.default_rng(0).normal(size=(32, *SHAPE)).cumsum(2).astype(np.float32)
    manifest, folder = export(model, formats=("tflite",), precisions=("int8",), inputs=samples)
    (artifact,) = manifest.artifacts
    assert not {"CONV_3D", "ADD", "RELU"} & set(artifact.ops)
    assert artifact.ops["QUANTIZE"] == artifact.ops["DEQUANTIZE"] == 1
    assert artifact.snr_db["y"] > 6.02 * 8 - 22  # see test_precisions.py
    report = rl.check_parity(folder, targets=("litert",), per_op=True)
    assert report.passed, [result.reason for result in report.results]
