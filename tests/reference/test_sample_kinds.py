"""Protects the expected results for NaN, infinity and denormals."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers as kl
from renormlite.artifacts.golden_set import GoldenSet
from renormlite.artifacts.manifest import Artifact, TensorSpec
from renormlite.artifacts.sample_kinds import (
    file_inputs,
    kinds_of,
    pooled,
    without,
    without_undefined,
)
from renormlite.export.network.write import build_network
from renormlite.reference.network import evaluate_network, evaluate_node, node_error_bound
from renormlite.reference.noise import expected_noise
from renormlite.reference.nonfinite import expected
from renormlite.runtime_checks.end_to_end.bounds import SMALLEST_NORMAL, float_noise
from renormlite.runtime_checks.end_to_end.comparison import compare_output
from renormlite.runtime_checks.end_to_end.findings import judge_outputs

SHAPE = (8, 8, 2)


def network_of(make):
    keras.utils.set_random_seed(3)
    x = keras.Input(SHAPE, name="x")
    model = keras.Model(x, make(x))
    network = build_network(model)
    return model, network.named(["x"], ["y"])


def local(x):
    """A NaN in one pixel reaches a patch of the output, and no more."""
    return kl.Conv2D(3, 3, padding="same")(kl.ReLU()(kl.Conv2D(4, 3, padding="same")(x)))


def with_nan():
    x = np.random.default_rng(1).normal(size=(3, *SHAPE)).astype(np.float32)
    x[1, 4, 4, 0] = np.nan
    x[2, 0, 0, 1] = np.inf
    return x


def golden_of(make):
    model, network = network_of(make)
    x = with_nan()
    reference = np.asarray(model(x))
    with np.errstate(invalid="ignore"):
        truth = evaluate_network(network, {"x": x})
    wanted = expected(network, {"x": x}, truth, {"y": reference})
    truth, known = without(truth, wanted), without({"y": reference}, wanted)
    noise = expected_noise(network, {"x": x})
    golden = GoldenSet(kinds_of({"x": x}), {"x": x}, truth, truth, known, {}, noise)
    return golden, reference


def judged(golden, output, precision="float32"):
    spec = TensorSpec("y", output.shape, "float32", "y")
    artifact = Artifact("y.tflite", "tflite", precision, "", 0, {}, (), (spec,))
    outputs = without_undefined({"y": output}, golden.kind, golden.reference, precision)
    findings, _ = judge_outputs(outputs, golden, artifact)
    return {finding.check: finding.passed for finding in findings}


def test_kinds_of_samples():
    assert list(kinds_of({"x": with_nan()})) == ["real", "nonfinite", "nonfinite"]


def test_outputs_of_the_trained_model_pass():
    golden, reference = golden_of(local)
    assert np.isnan(golden.reference["y"][1]).any()
    assert np.isfinite(golden.reference["y"][1]).any()
    assert judged(golden, reference) == {"finite": True, "noise": True}


def test_a_runtime_whose_relu_drops_nan_passes():
    golden, reference = golden_of(local)
    assert judged(golden, np.nan_to_num(reference)) == {"finite": True, "noise": True}


def test_nan_that_the_trained_model_lacks_fails():
    golden, reference = golden_of(local)
    place = np.argwhere(np.isfinite(reference[1]))[0]
    spread = reference.copy()
    spread[(1, *place)] = np.nan
    assert judged(golden, spread)["finite"] is False


def test_a_wrong_number_beside_a_nan_fails():
    golden, reference = golden_of(local)
    place = np.argwhere(np.isfinite(reference[1]))[0]
    wrong = reference.copy()
    wrong[(1, *place)] += 1
    assert judged(golden, wrong)["noise"] is False


def test_keras_drops_nan_and_runtimes_do_not():
    """TensorFlow's max pooling drops a NaN that others keep: nothing is expected there."""
    golden, reference = golden_of(lambda x: kl.MaxPooling2D(2)(x))
    place = (1, 2, 2, 0)
    assert np.isnan(golden.reference["y"][place])
    for value in (np.nan, 0.5):
        other = reference.copy()
        other[place] = value
        assert judged(golden, other) == {"finite": True, "noise": True}


@pytest.mark.parametrize("precision", ["int8", "dynamic"])
def test_integers_have_no_nan(precision):
    golden, reference = golden_of(local)
    other = np.nan_to_num(reference)
    other[1:] += 9
    assert judged(golden, other, precision) == {"finite": True, "noise": True}
    assert np.isfinite(file_inputs(golden.inputs, precision)["x"]).all()
    assert file_inputs(golden.inputs, "float32")["x"] is golden.inputs["x"]


def test_nothing_is_expected_if_a_selection_hides_a_nan():
    """Results of comparing or sorting NaN are not specified, so they differ between runtimes."""
    model, network = network_of(lambda x: keras.ops.where(x > 0.1, x, 0.5 * x))
    x = with_nan()
    wanted = expected(network, {"x": x}, {"y": np.asarray(model(x))})["y"]
    assert wanted[0].all()
    assert not wanted[1:].any()


def test_a_network_that_only_keras_evaluates_expects_nothing():
    model, network = network_of(lambda x: keras.ops.cumprod(x, axis=1))
    x = with_nan()
    wanted = expected(network, {"x": x}, {"y": np.asarray(model(x))})["y"]
    assert wanted[0].all()
    assert not wanted[1:].any()


def test_samples_chosen_for_their_error_are_not_averaged_over():
    ratios = np.array([1.0, 1.0, 4.0, 0.0])
    assert pooled(ratios, np.array(["real", "random", "search", "nonfinite"])) == 1.0


def denormal(count=4):
    rng = np.random.default_rng(2)
    sizes = SMALLEST_NORMAL * 2.0 ** -rng.integers(1, 23, (count, *SHAPE))
    return (sizes * rng.choice([-1, 1], sizes.shape)).astype(np.float32)


def gain(x):
    """No bias: what a runtime flushes to zero is all that there is."""
    for _ in range(3):
        x = kl.Conv2D(16, 3, padding="same", use_bias=False, kernel_initializer="random_normal")(x)
        x = kl.ReLU()(x)
    return x


@pytest.mark.parametrize("flushed", [False, True])
def test_flushing_denormals_to_zero_is_within_the_noise(flushed):
    _, network = network_of(gain)
    network = network_scaled(network, 40.0)
    x = denormal()
    truth = evaluate_network(network, {"x": x})["y"]
    given = (
        np.zeros_like(truth)
        if flushed
        else evaluate_network(network, {"x": x}, dtype=np.float32)["y"]
    )
    model = expected_noise(network, {"x": x})["y"]
    metrics = compare_output("y", given, truth)
    assert (metrics.rms_truth > 5 * SMALLEST_NORMAL).any()
    kind = np.full(len(x), "denormal")
    assert np.all(metrics.rms_error <= 5 * float_noise(metrics, kind, 2.0**-24, model))
    assert np.all(metrics.rms_error <= model * (1 + 1e-12))  # both are sums in float64


def network_scaled(network, factor):
    return dataclasses.replace(
        network,
        nodes=tuple(
            dataclasses.replace(
                node, weights={role: factor * array for role, array in node.weights.items()}
            )
            for node in network.nodes
        ),
    )


def test_a_wrong_result_for_denormals_exceeds_the_noise():
    _, network = network_of(gain)
    x = denormal()
    model = expected_noise(network, {"x": x})["y"]
    truth = evaluate_network(network, {"x": x})["y"]
    metrics = compare_output("y", truth + 1e-30, truth)
    assert np.all(metrics.rms_error > 5 * np.maximum(model, SMALLEST_NORMAL))


def test_denormals_among_ordinary_numbers_do_not_change_the_noise():
    """Their part is forty orders below that of rounding."""
    _, network = network_of(local)
    x = with_nan()[:1]
    before = expected_noise(network, {"x": x})["y"]
    x[0, 3, 3, 0] = denormal(1)[0, 0, 0, 0]
    np.testing.assert_allclose(expected_noise(network, {"x": x})["y"], before, rtol=0.05)


@pytest.mark.parametrize("name", ["conv", "relu"])
def test_the_bound_of_an_op_holds_where_denormals_are_flushed(name):
    _, network = network_of(gain)
    node = next(n for n in network.nodes if n.op == name)
    shape = (*SHAPE[:2], node.shape[-1] if name == "relu" else 2)
    x = np.broadcast_to(denormal(1)[..., :1], (1, *shape)).astype(np.float64)
    exact = evaluate_node(node, [x])
    bound = node_error_bound(node, [x], exact, [np.zeros_like(x)], 2.0**-24)
    assert np.all(np.abs(exact) <= bound)
    assert bound.max() < 1e-30
