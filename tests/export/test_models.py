"""Protects every format and precision on every reference network, and their cleanness."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import renormlite as rl
from renormlite.export.formats.format_table import FORMAT_NAMES, precisions_of
from renormlite.models import digits, mlperf_tiny

NETWORKS = {
    "digits": digits.build,
    "anomaly_detection": mlperf_tiny.anomaly_detection,
    "keyword_spotting": mlperf_tiny.keyword_spotting,
    "visual_wake_words": mlperf_tiny.visual_wake_words,
    "image_classification": mlperf_tiny.image_classification,
}
PRECISIONS = ("float32", "float16", "dynamic", "int8", "int16x8", "int4")

# How much of a network's signal few bits leave depends on the network, but each bit less costs the
# same 6.02 dB in all of them. So every precision is measured from float16, whose bits adapt to
# every number; fixed point spends some of its own on the distance from a tensor's largest value to
# its usual ones, for which PEAK is allowed (a factor of 16 between them).
BITS = {"float32": 24, "float16": 11, "int16x8": 8, "dynamic": 8, "int8": 8, "int4": 4}
PEAK = 24.0


def _smooth(shape: tuple[int, ...], count: int) -> np.ndarray:
    """Samples whose neighbouring values correlate, as pixels and spectra do."""
    generator = np.random.default_rng(0)
    steps = generator.normal(0, 1, (count, *shape))
    for axis in range(1, min(len(shape), 2) + 1):
        steps = np.cumsum(steps, axis=axis)
    return (steps / np.abs(steps).max()).astype(np.float32)


def _warm(model: keras.Model, data: np.ndarray) -> keras.Model:
    """Let the norms' statistics be those of data, as training leaves them."""
    for _ in range(8):
        model(data, training=True)
    for layer in model.layers:
        if isinstance(layer, rl.BatchRenormalization):
            inputs = keras.Model(model.input, layer.input)(data, training=False)
            axes = tuple(range(len(inputs.shape) - 1))
            layer.moving_mean.assign(np.mean(inputs, axes))
            layer.moving_variance.assign(np.var(inputs, axes) + 1e-3)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_every_format_and_precision(name, export):
    model = NETWORKS[name](rl.BatchRenormalization)
    data = _smooth(model.input_shape[1:], 24)
    manifest, _ = export(
        _warm(model, data),
        formats=FORMAT_NAMES,
        precisions=PRECISIONS,
        inputs=data,
        equalize="never",
    )
    written = {(a.format, a.precision) for a in manifest.artifacts}
    assert written == {(f, p) for f in FORMAT_NAMES for p in precisions_of(f) if p in PRECISIONS}
    ratios = {(a.format, a.precision): next(iter(a.snr_db.values())) for a in manifest.artifacts}
    for (name_, precision), ratio in ratios.items():
        lost = 6.02 * (BITS["float16"] - BITS[precision])
        assert ratio > ratios["tflite", "float16"] - lost - PEAK, (name_, precision)


@pytest.mark.parametrize("name", NETWORKS)
def test_float_files_are_those_of_the_network_without_norms(name, tmp_path, settled):
    made = []
    for norm, folder in ((rl.BatchRenormalization, "net"), (None, "twin/net")):
        keras.utils.clear_session()  # layers are numbered alike, so that names are as long
        model = NETWORKS[name](norm)
        generator = np.random.default_rng(0)
        for weight in model.weights:  # converters drop biases of zero and share equal ones
            if weight.name == "bias":
                weight.assign(generator.normal(0, 0.1, weight.shape))
        made.append(rl.export_model(settled(model), tmp_path / folder).artifacts)
    for ours, clean in zip(*made, strict=True):
        assert ours.ops == clean.ops
        assert ours.bytes == pytest.approx(clean.bytes, rel=1e-3)
