"""Protects looking inside files that run several samples at once."""

from __future__ import annotations

import numpy as np
import pytest
from renormlite import check_parity, export_model
from renormlite.models import digits
from renormlite.models.data import handwritten_digits
from renormlite.toolkit.layers import BatchRenormalization


@pytest.fixture(scope="module")
def by_four(tmp_path_factory):
    """The digits network in files that take four samples."""
    network = digits.build(lambda: BatchRenormalization(momentum=0.5))
    data = handwritten_digits().train.x
    for start in range(0, 64, 8):
        network(data[start : start + 8], training=True)
    return (
        export_model(
            network,
            folder := tmp_path_factory.mktemp("four") / "digits",
            precisions=("float32", "dynamic", "int8"),
            calibration=data[:40],
            batch_size=4,
            equalize="never",
        )
        and folder
    )


@pytest.mark.parametrize("target", ["litert", "onnxruntime"])
def test_every_op_is_checked_in_batches_too(by_four, target):
    report = check_parity(by_four, (target,), per_op=True)
    for result in report.results:
        assert result.passed, result.reason
    of = {result.precision: result for result in report.results}
    assert len(of["float32"].ops) >= 8
    (finding,) = [f for f in of["int8"].findings if f.check == "rounding"]
    assert ": 0 differences in" in finding.message


def test_one_range_for_a_batch_is_reported(by_four):
    report = check_parity(by_four, ("onnxruntime",), per_op=True)
    (result,) = [r for r in report.results if r.precision == "dynamic"]
    (finding,) = [f for f in result.findings if f.check == "ops"]
    assert "one range for all 4 samples of a batch" in finding.message
    assert result.ops == ()
    assert np.isfinite(result.outputs[0].pooled_ratio)


@pytest.fixture(scope="module")
def positive(tmp_path_factory):
    """A wide dense layer with 4-bit weights, whose inputs are all positive."""
    import keras

    image = keras.Input((640,), name="x")
    model = keras.Model(image, keras.layers.Dense(512, name="wide")(image))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.1, (640, 512)), rng.normal(0, 0.1, 512)])
    inputs = rng.uniform(0, 1, (16, 640)).astype("f4")
    folder = tmp_path_factory.mktemp("positive") / "net"
    export_model(model, folder, formats=("tflite",), precisions=("int4",), inputs=inputs)
    return folder


@pytest.mark.parametrize("target", ["litert", "litert+builtin", "litert+reference"])
def test_inputs_of_four_bit_layers_are_quantized_symmetrically(positive, target):
    """TFLite's own kernels use half of the steps for negative numbers, even if there are none.

    XNNPACK uses all, so its rounding errors are half as large.
    """
    (result,) = check_parity(positive, (target,), per_op=True).results
    assert result.passed, result.reason
    (check,) = result.ops
    # The largest of 17,000 normal deviations is 4 of the 7 that are allowed.
    assert check.ratio == pytest.approx(4 / 7 / (1 + (target == "litert")), rel=0.2)
