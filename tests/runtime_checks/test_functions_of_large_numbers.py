"""Protects that kernels whose error grows with their argument are not taken for faults.

LiteRT's XNNPACK computes exp(x) as 2^(x·log2 e) in float32, with an error relative to x, and sines
with a range reduction that errs with x too. The files run on the real runtimes.
"""

from __future__ import annotations

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import renormlite as rl
from keras import ops

UNITS = 256


def exported(folder, function, greatest, **options):
    """Export a function of numbers up to a size, calibrated on such numbers."""
    x = keras.Input((UNITS,), name="x")
    model = keras.Model(x, keras.layers.Identity(name="y")(function(x)))
    rng = np.random.default_rng(0)
    samples = rng.uniform(-greatest, greatest, (12, UNITS)).astype(np.float32)
    np.savez(folder / "samples.npz", x=samples)
    rl.export_model(model, folder / "net", inputs=folder / "samples.npz", **options)
    return folder / "net"


def failures(report):
    return [
        f"{result.target}: {finding.message}"
        for result in report.results
        for finding in result.findings
        if not finding.passed
    ]


FUNCTIONS = {
    "exponential": (ops.exp, 87),
    "exponential less one": (ops.expm1, 87),
    "bell curve": (lambda x: ops.exp(-x * x), 8),
    "hyperbolic cosine": (ops.cosh, 60),
    "sine": (ops.sin, 1e7),
    "root": (lambda x: ops.sqrt(ops.abs(x)), 1000),
    "deviation of an impulse": (lambda x: ops.std(x, axis=-1, keepdims=True), 1),
    "scaled by its root mean square": (
        lambda x: x * ops.rsqrt(ops.mean(x * x, axis=-1, keepdims=True) + 1e-6),
        3,
    ),
    "remainder": (lambda x: ops.mod(x, 0.7), 1000),
    "floor of a quotient": (lambda x: ops.floor_divide(x, 0.7), 1000),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_correct_kernels_pass(tmp_path, name):
    function, greatest = FUNCTIONS[name]
    folder = exported(tmp_path, function, greatest, precisions=("float32",))
    targets = ["litert", "litert+reference", "onnxruntime", "openvino"]
    assert failures(rl.check_parity(folder, targets=targets, per_op=True)) == []


def test_a_wrong_exponential_fails():
    """An error of a thousandth is found, however large the argument."""
    from renormlite.reference.network import Node, evaluate_node, node_error_bound

    x = np.linspace(-60, 80, 281)
    node = Node("exp", "exp", "exp", ("x",), (None,), {}, {})
    y = evaluate_node(node, [x])
    bound = node_error_bound(node, [x], y, [np.zeros_like(x)], 2.0**-24)
    assert np.all(bound < 1e-4 * y)
    rounded = (x.astype(np.float32) * np.float32(np.log2(np.e))).astype(np.float64)
    error = np.abs(np.exp2(rounded) - y)
    assert np.all(error <= bound)
    assert np.any(error > 16 * 2.0**-24 * y)  # what a table or a double would not have


@pytest.mark.parametrize(("function", "greatest"), [(ops.log, 1e5), (ops.rsqrt, 1e4)])
def test_16_bit_tables_overflow_next_to_a_pole(tmp_path, function, greatest):
    """TFLite's table has differences of 16 bits, which a logarithm exceeds between two points."""
    folder = exported(
        tmp_path,
        lambda x: function(ops.abs(x) + 1e-3),
        greatest,
        formats=("tflite",),
        precisions=("int16x8",),
    )
    for result in rl.check_parity(folder, targets=["litert", "litert+reference"]).results:
        (found,) = [f.message for f in result.findings if f.check == "integers"]
        assert found.startswith("equal to the bit")


def test_float_remainders_in_onnx_are_exact(tmp_path):
    """As in TensorFlow, with the sign of the divisor; less than the error of x - floor(x/y)·y."""
    folder = exported(
        tmp_path,
        lambda x: ops.stack([ops.mod(x, 0.7), ops.mod(x, -2.5), ops.mod(x, 1.0)], axis=-1),
        1e6,
        formats=("onnx",),
        precisions=("float32", "int8"),
    )
    x = np.load(tmp_path / "samples.npz")["x"][:1]
    x[0, :4] = [0.0, 1.4, -1.4, 2.5]
    wanted = np.stack([np.mod(x, np.float32(y)) for y in (0.7, -2.5, 1.0)], axis=-1)
    for file in folder.glob("*.onnx"):
        (found,) = onnxruntime.InferenceSession(file).run(None, {"x": x})
        exact = np.array_equal(found, wanted)
        assert exact if "float32" in file.name else np.abs(found - wanted).max() < 0.02
        kinds = [node.op_type for node in onnx.load(file).graph.node]
        assert kinds.count("Mod") == 3


def test_a_kernel_that_crashes_fails_alone(tmp_path):
    """TFLite's reference softmax of many 8-bit scores fails an assertion and ends its process."""
    x = keras.Input((1024,), name="x")
    model = keras.Model(x, keras.layers.Softmax(name="y")(x))
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "samples.npz", x=rng.uniform(-80, 80, (12, 1024)).astype(np.float32))
    rl.export_model(
        model,
        tmp_path / "net",
        formats=("tflite",),
        precisions=("int8",),
        inputs=tmp_path / "samples.npz",
    )
    report = rl.check_parity(tmp_path / "net", targets=["litert+reference", "litert"])
    crashed, right = report.results
    assert right.passed
    (message,) = [f.message for f in crashed.findings if not f.passed]
    assert "killed by SIGABRT" in message
