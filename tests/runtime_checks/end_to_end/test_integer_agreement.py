"""Protects the comparison of integers with those of the known rules, on planted differences."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from renormlite.artifacts.golden_set import GoldenSet, Predictions
from renormlite.artifacts.manifest import Artifact
from renormlite.runtime_checks.end_to_end.integer_agreement import (
    IntegerAgreement,
    integer_agreement,
    must_agree,
)

STEP = 0.5
KIND = np.array(["nonfinite", "real", "real", "random", "random"])
CLASSES = 100  # 400 integers in the samples that are compared


def artifact(precision: str = "int8") -> Artifact:
    return Artifact("net.tflite", "tflite", precision, "", 0, {}, (), ())


def zeros() -> np.ndarray:
    return np.zeros((len(KIND), CLASSES), np.float32)


def with_ones(first: int, count: int, value: float = 1.0) -> np.ndarray:
    """Return integers that are 0, and 1 at some places of the compared samples."""
    array = zeros()
    array[1:].reshape(-1)[first : first + count] = value
    return STEP * array


def agreement(got, rules, of=None, reference=None, **options) -> IntegerAgreement:
    by_rule = {name: {"y": array} for name, array in rules.items()}
    golden = GoldenSet(
        kind=KIND,
        inputs={"x": np.zeros((len(KIND), 1), np.float32)},
        truth={"y": zeros()},
        folded64={},
        reference={"y": zeros() if reference is None else reference},
        artifacts={},
        predictions={"net.tflite": Predictions(by_rule, {"y": STEP})},
    )
    outputs = got if isinstance(got, dict) else {"y": got}
    return integer_agreement(of or artifact(), outputs, golden, **options)


# Rule b has ten integers outside the range of the other two, and so has rule c.
RULES = {"a": zeros(), "b": with_ones(0, 10), "c": with_ones(20, 10)}


def test_rules_with_equal_integers_are_named():
    found = agreement(with_ones(0, 10), RULES | {"d": with_ones(0, 10)})
    assert (found.kernels, found.nearest, found.differing) == (("b", "d"), "b", 0)
    assert (found.samples, found.elements) == (4, 400)
    assert found.plausible
    assert found.sentence == (
        "equal to the bit: the rounding of b (and of d), 400 integers of 4 samples"
    )


def test_numbers_without_an_expected_value_are_not_compared():
    """The trained model gives no number there, such as the logarithm of a negative one."""
    reference = zeros()
    reference[2, 5:8] = [np.nan, np.inf, np.nan]
    got = with_ones(0, 10)
    got[2, 5:8] = 7.0
    found = agreement(got, {"a": with_ones(0, 10)}, reference=reference)
    assert (found.kernels, found.elements) == (("a",), 397)
    got[2, 8] = np.nan  # the model gives a number here
    found = agreement(got, {"a": with_ones(0, 10)}, reference=reference)
    assert (found.kernels, found.differing, found.first) == ((), 1, ("y", (2, 8)))


def test_first_difference_has_the_number_of_its_sample():
    got = with_ones(0, 10)
    got[0] = 7.0  # a sample with NaN, which is not compared
    got[3, 8] = -STEP
    found = agreement(got, {"a": zeros(), "b": with_ones(0, 10)})
    assert (found.kernels, found.nearest, found.differing) == ((), "b", 1)
    assert found.first == ("y", (3, 8))
    assert "1 of 400 integers of 4 samples differ from the nearest, the rounding of b" in (
        found.sentence
    )
    assert "first output 'y' at [3, 8]" in found.sentence


@pytest.mark.parametrize(("steps", "differing"), [(1 / 65, 0), (1 / 63, 1)])
def test_a_difference_of_float_rounding_is_none(steps, differing):
    got = zeros()
    got[2, 0] = steps * STEP
    assert agreement(got, RULES).differing == differing


@pytest.mark.parametrize(("outside", "plausible"), [(20, True), (21, False)])
def test_an_unknown_rule_has_at_most_twice_as_many_integers_outside(outside, plausible):
    found = agreement(with_ones(100, outside, 3.0), RULES)
    assert (found.outside, found.allowed, found.plausible) == (outside, 20, plausible)
    says = f"{outside} lie outside the range of all known rules, where rounding explains 20"
    assert (says in found.sentence) is not plausible


def test_two_percent_of_all_integers_may_lie_outside():
    rules = {"a": zeros(), "b": with_ones(0, 1), "c": with_ones(2, 1)}
    assert agreement(with_ones(100, 9, 3.0), rules).allowed == 8


def test_integers_within_a_64th_of_a_step_of_the_range_are_inside():
    got = with_ones(100, 30)
    got[got > 0] = STEP / 65
    got[1, 0] = 3.0
    assert agreement(got, RULES).outside == 1


def test_the_range_is_judged_only_for_three_different_rules():
    two = {"a": zeros(), "b": with_ones(0, 10), "c": zeros()}
    for rules, outside, allowed in ((two, 0, 0), (RULES, 90, 20)):
        found = agreement(with_ones(100, 90, 3.0), rules)
        assert (found.outside, found.allowed, found.differing) == (outside, allowed, 90)


def test_the_range_is_not_judged_for_16_bits_or_a_runtime_without_a_rule():
    got = with_ones(100, 90, 3.0)
    for found in (
        agreement(got, RULES, artifact("int16x8")),
        agreement(got, RULES, follows_rules=False),
    ):
        assert (found.outside, found.allowed, found.differing) == (0, 0, 90)


@pytest.mark.parametrize("got", [{}, {"y": np.zeros((5, 2))}, {"z": zeros()}])
def test_a_missing_output_differs_everywhere(got):
    found = agreement(got, RULES)
    assert (found.kernels, found.differing, found.first) == ((), 400, ("y", (1, 0)))
    assert (found.outside, found.allowed, found.function) == (0, 0, "")


def test_a_function_of_the_integers_is_named():
    x = STEP * np.random.default_rng(0).integers(-100, 100, zeros().shape).astype(np.float32)
    found = agreement(2 * x, {"a": x})
    assert found.function.startswith("those of a times 2, plus ")
    assert not found.plausible
    assert "the last operator is computed wrongly" in found.sentence
    assert agreement(2 * x, {"a": x}, follows_rules=False).function == ""


def test_a_function_is_found_in_any_output():
    """The first output is missing, the second is as predicted."""
    x = STEP * np.random.default_rng(0).integers(-100, 100, zeros().shape).astype(np.float32)
    golden = GoldenSet(
        kind=KIND,
        inputs={},
        truth={},
        folded64={},
        reference={},
        artifacts={},
        predictions={
            "net.tflite": Predictions({"a": dict.fromkeys("uvw", x)}, dict.fromkeys("uvw", STEP))
        },
    )
    found = integer_agreement(artifact(), {"v": x, "w": 2 * x}, golden)
    assert found.function.startswith("those of a times 2")


def test_excluded_samples_keep_the_values_expected_without_a_prediction():
    found = agreement(with_ones(0, 10), RULES)
    expected = np.full(zeros().shape, 9.0)
    instead = found.instead_of(expected, "y", KIND)
    np.testing.assert_array_equal(instead[0], expected[0])
    np.testing.assert_array_equal(instead[1:], with_ones(0, 10)[1:])


def test_files_without_predictions():
    golden = GoldenSet(
        kind=KIND,
        inputs={},
        truth={"y": zeros()},
        folded64={},
        reference={},
        artifacts={},
        predictions={"net.tflite": Predictions({}, {}, "LOG is not known")},
    )
    found = integer_agreement(artifact(), {"y": zeros()}, golden)
    assert (found.kernels, found.nearest, found.plausible) == ((), "", True)
    assert found.sentence == (
        "the file's integers cannot be predicted to the bit: LOG is not known"
    )
    other = Artifact("net.onnx", "onnx", "int8", "", 0, {}, (), ())
    assert integer_agreement(other, {"y": zeros()}, golden) is None


@pytest.mark.parametrize(
    ("change", "bound"),
    [
        ({}, True),
        ({"machine": "aarch64"}, False),  # ONNX Runtime has other kernels there
        ({"machine": "AMD64"}, True),
        ({"variant": "openvino"}, False),
        ({"runtime": "openvino"}, False),
        ({"versions": {"onnxruntime": "1.0"}}, False),
        ({"versions": {}}, False),
        ({"format": "saved_model"}, False),
        ({"exported": 1.0}, False),  # it followed no known rule at export
    ],
)
def test_only_the_runtime_of_the_export_has_to_follow_a_known_rule(change, bound, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: change.get("machine", "x86_64"))
    file = dataclasses.replace(artifact(), format=change.get("format", "onnx"))
    golden = GoldenSet(
        kind=KIND,
        inputs={"x": np.zeros((len(KIND), 1), np.float32)},
        truth={"y": zeros()},
        folded64={},
        reference={"y": zeros()},
        artifacts={file.file: {"y": zeros() + change.get("exported", 0.0)}},
        predictions={file.file: Predictions({"a": {"y": zeros()}}, {"y": STEP})},
    )
    ran = {
        "runtime": change.get("runtime", "onnxruntime"),
        "versions": change.get("versions", {"onnxruntime": "1.2"}),
    }
    variant = change.get("variant", "")
    assert must_agree(file, golden, ran, variant, {"onnxruntime": "1.2"}) is bound
