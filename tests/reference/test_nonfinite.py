"""Protects that NaN is expected only where every runtime keeps it, and finite values elsewhere."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import renormlite as rl
from keras import layers

# Kernel size, and the outputs (rows times columns) that a NaN inside of 8 x 8 inputs may reach in
# XNNPACK. It fills kernels with zeros up to 3, 4, 9 or 25 taps, which read the columns behind.
REACHED = {
    (1, 1): 1 * 3,
    (1, 2): 1 * 3,
    (2, 1): 2 * 2,
    (2, 2): 2 * 2,
    (3, 3): 3 * 3,
    (2, 3): 2 * 5,
    (5, 1): 5 * 2,
}


@pytest.mark.parametrize("size", REACHED)
@pytest.mark.parametrize("grouped", [False, True])
def test_depthwise_kernels_that_xnnpack_fills_with_zeros(size, grouped, tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 2), name="x")
    layer = layers.Conv2D(2, size, groups=2) if grouped else layers.DepthwiseConv2D(size)
    layer.padding = "same"
    samples = np.random.default_rng(0).normal(size=(4, 8, 8, 2)).astype(np.float32)
    samples[1, 4, 4, 0] = np.nan
    rl.export_model(keras.Model(x, layer(x)), tmp_path, formats=("tflite",))
    report = rl.check_parity(tmp_path, targets=("litert", "litert+builtin"), inputs=samples)
    assert report.passed, [result.reason for result in report.results]
    (odd,) = np.flatnonzero(report.golden.kind[-4:] == "nonfinite")
    truth = next(iter(report.golden.truth.values()))[-4:][odd]
    assert np.isnan(truth[..., 0]).sum() == REACHED[size]
    assert np.isfinite(truth[..., 1]).all()


@pytest.mark.parametrize("depthwise", [False, True])
def test_dilated_kernels_that_a_runtime_fills_with_zeros(depthwise, tmp_path):
    """Three taps with a gap between them span five inputs a side, and a NaN reaches as many."""
    keras.utils.set_random_seed(0)
    x = keras.Input((9, 9, 2), name="x")
    kind = layers.DepthwiseConv2D if depthwise else functools.partial(layers.Conv2D, 2)
    y = kind(3, padding="same", dilation_rate=2)(x)
    samples = np.random.default_rng(0).normal(size=(4, 9, 9, 2)).astype(np.float32)
    samples[1, 4, 4, 0] = np.nan
    rl.export_model(keras.Model(x, y), tmp_path, formats=("onnx",))
    targets = ("onnx-reference", "onnxruntime")
    report = rl.check_parity(tmp_path, targets=targets, inputs=samples)
    assert report.passed, [result.reason for result in report.results]
    (odd,) = np.flatnonzero(report.golden.kind[-4:] == "nonfinite")
    truth = next(iter(report.golden.truth.values()))[-4:][odd]
    assert np.isnan(truth).sum(axis=(0, 1)).tolist() == [25, 0 if depthwise else 25]
