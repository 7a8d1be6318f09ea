"""Limits depend on each sample's own arithmetic, not on samples of other kinds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from renormlite.artifacts.directory import read_export
from renormlite.artifacts.golden_set import GoldenSet, Predictions, read_golden
from renormlite.artifacts.manifest import Artifact
from renormlite.artifacts.precisions import POOLED_LIMIT, WORST_SAMPLE_LIMIT
from renormlite.runtime_checks.end_to_end.bounds import (
    NoiseBound,
    end_to_end_bound,
    float32_bound,
    float_noise,
)
from renormlite.runtime_checks.end_to_end.chance import greatest_rms
from renormlite.runtime_checks.end_to_end.comparison import SampleErrors, sample_errors
from renormlite.runtime_checks.end_to_end.findings import judge_outputs
from renormlite.runtime_checks.parity import check_parity
from renormlite.runtimes import Target
from renormlite.runtimes.run import run_target


@pytest.fixture(scope="module")
def coarse(coarse_export):
    export = read_export(coarse_export)
    return export, read_golden(export.golden, [spec.name for spec in export.outputs])


def artifact_named(export, name):
    return next(entry for entry in export.artifacts if entry.file.endswith(name))


def bound_of(golden, artifact):
    rounding = float32_bound(golden, "scores")
    return end_to_end_bound(golden, artifact, "scores", rounding, follows_rules=True)


def errors_of(actual, bound):
    return sample_errors(actual, bound.expected).rms_error


def noise_finding(export, golden, artifact, actual):
    findings, verdicts = judge_outputs({"scores": actual}, golden, artifact)
    (finding,) = [entry for entry in findings if entry.check == "noise"]
    return finding, verdicts[0]


def test_a_saturating_sample_does_not_widen_the_limits_of_others():
    kind = np.array(["real"] * 6 + ["extreme"] * 2 + ["denormal"] * 2)
    size = np.ones(10)
    error = np.array([1e-7] * 6 + [0.5] * 2 + [1.0] * 2)
    for model in (None, np.full(10, 1e-7)):
        noise = float_noise(SampleErrors(error, size, 0), kind, 2.0**-24, model)
        np.testing.assert_allclose(noise[:6], 1e-7, rtol=1e-6)
        np.testing.assert_allclose(noise[6:8], 0.5)


def test_a_sample_with_little_noise_gets_the_usual_limit_of_its_kind():
    kind = np.array(["real"] * 4)
    error = np.array([1e-6, 1e-6, 1e-6, 0.0])
    noise = float_noise(SampleErrors(error, np.ones(4), 0), kind, 2.0**-24)
    assert 0.5e-6 < noise[3] < 1e-6


def test_float32_without_a_model_uses_the_limit_of_its_kind():
    """A unit vector of a denormal sample may be anything; those of real ones may not."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(9, 4))
    reference = truth * (1 + 1e-7 * rng.normal(size=truth.shape))
    reference[8] = 0.0
    golden = GoldenSet(
        kind=np.array(["real"] * 8 + ["denormal"]),
        inputs={"x": truth},
        truth={"y": truth},
        folded64={"y": truth},
        reference={"y": reference.astype(np.float32)},
        artifacts={},
    )
    bound = float32_bound(golden, "y")
    wrong = truth.copy()
    wrong[:8] *= 1 + 1e-4 * rng.normal(size=(8, 4))
    assert bound.holds(errors_of(reference, bound), golden.kind)
    assert not bound.holds(errors_of(wrong, bound), golden.kind)


@pytest.mark.parametrize("target", ["litert", "litert+reference", "onnxruntime"])
def test_correct_files_are_as_noisy_as_expected(coarse_export, target):
    """Within a factor of the noise: a limit far above what a file does would hide faults."""
    for result in check_parity(coarse_export, (target,)).results:
        (entry,) = result.outputs
        assert entry.pooled_ratio < 1, result.artifact
        if result.precision in ("float32", "dynamic"):
            assert entry.pooled_ratio > 0.2, result.artifact


def test_other_integer_kernels_differ_by_steps(coarse):
    """The noise of integers is what other kernels differ by, and not the file's own error."""
    export, golden = coarse
    artifact = artifact_named(export, "int8.tflite")
    bound = bound_of(golden, artifact)
    given = run_target(
        export.path / artifact.file, artifact, golden.inputs, Target.parse("litert+reference")
    ).outputs["scores"]
    usual = golden.kind != "nonfinite"
    ratios = bound.ratios(errors_of(given, bound))[usual]
    assert 0 < np.sqrt(np.mean(ratios**2)) < 1
    assert ratios.max() < WORST_SAMPLE_LIMIT


@pytest.mark.parametrize("file", ["int8.tflite", "int8.onnx", "float16.tflite", "float32.onnx"])
def test_an_error_on_real_samples_alone_is_found(coarse, file):
    """Extreme samples of this file are off by tens of per cent; real ones must not be."""
    export, golden = coarse
    artifact = artifact_named(export, file)
    given = golden.artifacts[artifact.file]["scores"].astype(np.float64)
    passed, _ = noise_finding(export, golden, artifact, given)
    assert passed.passed
    real = golden.kind == "real"
    spoiled = given.copy()
    spoiled[real] = np.roll(given[real], 1, axis=-1)
    found, verdict = noise_finding(export, golden, artifact, spoiled)
    assert not found.passed
    assert golden.kind[verdict.worst_sample] == "real"


def test_a_difference_of_the_expected_size_has_the_ratio_one(coarse):
    export, golden = coarse
    artifact = artifact_named(export, "int8.tflite")
    bound = bound_of(golden, artifact)
    rng = np.random.default_rng(0)
    shape = bound.expected.shape
    moved = bound.expected + bound.noise[:, None] * np.sign(rng.normal(size=shape))
    usual = golden.kind != "nonfinite"
    np.testing.assert_allclose(bound.ratios(errors_of(moved, bound))[usual], 1, rtol=1e-6)
    assert bound.holds(errors_of(moved, bound), golden.kind)
    twice = bound.expected + 1.01 * POOLED_LIMIT * (moved - bound.expected)
    assert not bound.holds(errors_of(twice, bound), golden.kind)


def test_integer_files_without_a_model_are_limited_by_their_quantization(coarse):
    export, golden = coarse
    artifact = artifact_named(export, "int8.tflite")
    bare = dataclasses.replace(golden, file_noise={})
    bound = bound_of(bare, artifact)
    assert bound.reason == "the file's own quantization"
    given = golden.artifacts[artifact.file]["scores"]
    assert bound.holds(errors_of(given, bound), golden.kind)
    assert not bound.holds(errors_of(np.roll(given, 1, axis=-1), bound), golden.kind)


def test_a_runtime_of_unknown_rounding_may_differ_as_the_known_rules_do():
    """Rules differ by 0.1: as much again is allowed, or a quarter of the modelled single steps."""
    truth = np.linspace(-1, 1, 12).reshape(6, 2)
    artifact = Artifact("n.int8.tflite", "tflite", "int8", "", 0, {}, (), ())
    rules = {"single": {"y": truth}, "double": {"y": truth + 0.1}}
    for step, noise in ((1.0, np.hypot(0.1, 0.1)), (0.2, np.hypot(0.1, 0.05)), (0.1, 0.1)):
        golden = GoldenSet(
            kind=np.full(6, "real"),
            inputs={"x": truth},
            truth={"y": truth},
            folded64={"y": truth},
            reference={"y": truth.astype(np.float32)},
            artifacts={artifact.file: {"y": truth}},
            file_noise={artifact.file: {"y": np.full(6, step)}},
            predictions={artifact.file: Predictions(rules, {"y": 0.1})},
        )
        rounding = float32_bound(golden, "y")
        known = end_to_end_bound(golden, artifact, "y", rounding, follows_rules=True)
        np.testing.assert_allclose(known.noise, noise)
        assert known.reason == "the difference between known rounding rules"
        floats = end_to_end_bound(golden, artifact, "y", rounding, follows_rules=False)
        np.testing.assert_allclose(floats.noise, step)


@pytest.mark.parametrize(
    ("count", "quantile"),
    # Of the chi-squared distribution with as many degrees of freedom, at one in 10,000.
    [(1, 15.14), (2, 18.42), (5, 25.74), (10, 35.56), (30, 67.63), (100, 161.3)],
)
def test_few_independent_errors_may_be_larger_by_chance(count, quantile):
    assert greatest_rms(count) == pytest.approx(np.sqrt(quantile / count), rel=0.04)


def test_errors_of_equal_elements_are_one_error():
    """An element with the same value in all samples has one rounding, not one for each sample."""
    samples, elements = 16, 24
    kind, noise = np.full(samples, "real"), np.full(samples, 0.01)
    error = np.tile([0.02, -0.02], samples * elements // 2).reshape(samples, elements)
    varied = np.arange(samples * elements).reshape(samples, elements).astype(float)
    constant = np.tile(varied[:1], (samples, 1))
    # As large as `error`, but in two elements.
    few = np.where(np.arange(elements) < 2, np.sqrt(elements / 2) * error, 0.0)
    for expected, errors, right in (
        (varied, error, False),
        (constant, error, False),  # 24 errors
        (varied, few, False),
        (constant, few, True),  # 2 errors
        (constant, 1.6 * few, False),
    ):
        bound = NoiseBound(expected, noise, 5.0, 1.5, "rounding")
        actual = expected + errors
        assert bound.holds(sample_errors(actual, expected).rms_error, kind, actual) == right


def test_float_operators_of_an_integer_file_add_their_noise():
    """Two samples, of which the second saturates at a tenth of its value."""
    truth = np.array([[3.0, 4.0], [30.0, 40.0]])
    exported = np.array([[3.0, 4.0], [3.0, 4.0]])
    artifact = Artifact("n.int16x8.tflite", "tflite", "int16x8", "", 0, {}, (), ())
    golden = GoldenSet(
        kind=np.array(["real", "extreme"]),
        inputs={},
        truth={"y": truth},
        folded64={},
        reference={"y": truth.astype(np.float32)},
        artifacts={artifact.file: {"y": exported}},
        noise={"y": np.array([4e-3, 4e-2])},
        file_noise={artifact.file: {"y": np.array([3e-3, 3e-3])}},
    )
    bound = end_to_end_bound(golden, artifact, "y", float32_bound(golden, "y"), follows_rules=True)
    np.testing.assert_allclose(bound.noise, [5e-3, 5e-3])


@pytest.mark.parametrize(("file", "told"), [("float16.tflite", True), ("float32.onnx", False)])
def test_infinity_in_half_precision_is_explained(coarse, file, told):
    export, golden = coarse
    artifact = artifact_named(export, file)
    given = golden.artifacts[artifact.file]["scores"].copy()
    given[3, 0] = np.inf
    findings, _ = judge_outputs({"scores": given}, golden, artifact)
    (found,) = [entry for entry in findings if entry.check == "finite"]
    assert not found.passed
    assert ("beyond 65504" in found.message) == told


def test_a_kind_of_vanishing_samples_does_not_end_the_search_for_usual_errors():
    """Denormal samples come first by name; flushing them to zero says nothing of the others."""
    kind = np.array(["denormal"] * 2 + ["real"] * 4)
    size = np.array([1e-40, 1e-40, 1.0, 1.0, 1.0, 1.0])
    error = np.array([1e-40, 0.0, 1e-6, 1e-6, 1e-6, 0.0])
    noise = float_noise(SampleErrors(error, size, 0), kind, 2.0**-24)
    usual = 1e-6 * np.sqrt(3 / 4)
    np.testing.assert_allclose(noise, [2.0**-126, 2.0**-126, 1e-6, 1e-6, 1e-6, usual])


@pytest.mark.parametrize(("rules", "least"), [(True, [0.0625, 0.25]), (False, [0.25, 0.25])])
def test_a_runtime_of_floats_rounds_relative_to_the_end_of_the_range(rules, least):
    """It may compute an integer's number as a sum of which one part is as large as the greatest."""
    truth = np.array([[0.0625, 0.0625], [0.25, 0.25]])
    artifact = Artifact("n.int8.tflite", "tflite", "int8", "", 0, {}, (), ())
    golden = GoldenSet(
        kind=np.full(2, "real"),
        inputs={},
        truth={"y": truth},
        folded64={},
        reference={"y": truth.astype(np.float32)},
        artifacts={artifact.file: {"y": truth}},
        noise={"y": np.zeros(2)},
        file_noise={artifact.file: {"y": np.zeros(2)}},
    )
    rounding = float32_bound(golden, "y")
    bound = end_to_end_bound(golden, artifact, "y", rounding, follows_rules=rules)
    np.testing.assert_allclose(bound.noise, 2.0**-24 * np.array(least), rtol=1e-12)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ([1e-6, 1e-6, 1e-6], [2e-6, 2e-6, 1e-6]),  # scaled up to the errors of its kind
        ([9e-6, 9e-6, 9e-6], [9e-6, 9e-6, 9e-6]),
        ([1e-6, np.nan, 1e-6], [2e-6, 2e-6, 1e-6]),  # a sample without a model has its own error
        ([1e-9, 1e-9, 1e-9], [2e-6, 2e-6, 2.0**-24]),  # one rounding of the result
    ],
)
def test_a_model_of_noise_is_scaled_up_to_the_errors_of_each_kind(model, expected):
    kind = np.array(["real", "real", "zero"])
    errors = SampleErrors(np.array([2e-6, 2e-6, 0.0]), np.ones(3), 0)
    noise = float_noise(errors, kind, 2.0**-24, np.array(model))
    np.testing.assert_allclose(noise, expected, rtol=1e-6)


def test_errors_without_expected_noise_are_infinite_and_none_are_nothing():
    bound = NoiseBound(np.zeros((3, 1)), np.array([0.0, 0.0, 2.0]), 5.0, 1.5, "")
    assert bound.ratios(np.array([0.0, 1.0, 3.0])).tolist() == [0.0, np.inf, 1.5]
    assert bound.greatest.tolist() == [0.0, 0.0, 10.0]


@pytest.mark.parametrize(
    ("errors", "holds"),
    [
        ([1.5, 1.5, 1.5, 1.5], True),
        ([1.6, 1.6, 1.6, 1.6], False),  # together
        ([2.9, 0.0, 0.0, 0.0], True),
        ([3.1, 0.0, 0.0, 0.0], False),
    ],
)
def test_errors_are_limited_together_and_each(errors, holds):
    """Together means the root mean square; 2.9 in one of four samples is 1.45."""
    bound = NoiseBound(np.zeros((4, 1)), np.ones(4), 5.0, 1.5, "")
    assert bound.holds(np.array(errors), np.full(4, "real")) is holds
    each = NoiseBound(np.zeros((4, 1)), np.ones(4), 2.0, 1.5, "")
    assert each.holds(np.array(errors), np.full(4, "real")) is (holds and max(errors) <= 2)


def test_a_sample_that_the_model_cannot_bound_has_the_error_usual_for_its_kind() -> None:
    """Such as an extreme sample of an attention, on which Keras may round to the right number."""
    kind = np.array(["extreme"] * 4)
    error = np.array([1e-9, 3e-6, 4e-6, 5e-6])
    errors = SampleErrors(error, np.ones(4), np.zeros(4))
    noise = float_noise(errors, kind, 2.0**-24, np.full(4, np.inf))
    usual = np.sqrt(np.mean(np.square(error)))
    np.testing.assert_allclose(noise, [usual, usual, 4e-6, 5e-6])
