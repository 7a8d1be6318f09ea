"""Protects the verdict on integers of an unknown rule whose operators are all within one step."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from renormlite.artifacts.golden_set import GoldenSet, Predictions
from renormlite.artifacts.manifest import Artifact, TensorSpec
from renormlite.runtime_checks.end_to_end.findings import (
    Finding,
    TargetResult,
    judge_outputs,
    judge_unknown_rule,
)

TRUTH = np.linspace(-1, 1, 12).reshape(6, 2)
SPEC = TensorSpec("y", (1, 2), "float32")
FILE = Artifact("n.int8.tflite", "tflite", "int8", "", 0, {}, (), (SPEC,))
GOLDEN = GoldenSet(
    kind=np.full(6, "real"),
    inputs={"x": TRUTH},
    truth={"y": TRUTH},
    folded64={"y": TRUTH},
    reference={"y": TRUTH.astype(np.float32)},
    artifacts={FILE.file: {"y": TRUTH}},
    # One step in every operation moves an output by 1; known rules differ from each other by 0.1.
    file_noise={FILE.file: {"y": np.ones(6)}},
    predictions={FILE.file: Predictions({"a": {"y": TRUTH}, "b": {"y": TRUTH + 0.1}}, {"y": 0.1})},
)
OTHER = Finding("snr", False, "output 'y' is bad", "y")


def result(error: float) -> TargetResult:
    """Return the verdict on outputs that differ by this much from every known rule."""
    signs = np.array([1.0, -1.0] * 6).reshape(6, 2) * np.array([1.0, 0.9])
    given = TRUTH + error * signs
    findings, verdicts = judge_outputs({"y": given}, GOLDEN, FILE)
    return TargetResult(
        "litert", FILE.file, "int8", (*findings, OTHER), tuple(verdicts), given={"y": given}
    )


def checks(result: TargetResult) -> dict[str, bool]:
    return {finding.check: finding.passed for finding in result.findings}


def test_the_limit_is_that_of_one_step_in_every_operation():
    before = result(0.9)
    assert not checks(before)["noise"]
    after = judge_unknown_rule(before, GOLDEN, FILE)
    assert checks(after)["noise"]
    assert checks(after)["integers"]
    (verdict,) = after.outputs
    np.testing.assert_allclose(verdict.bound.noise, 1.0)
    np.testing.assert_allclose(verdict.ratios, 0.9 * np.sqrt((1 + 0.81) / 2))
    (integers,) = (f for f in after.findings if f.check == "integers")
    (said,) = (f for f in before.findings if f.check == "integers")
    assert integers.message == (
        said.message + "; each operator is within one step of a known rule, as an unknown rule is"
    )
    assert OTHER in after.findings
    assert len(after.findings) == len(before.findings)


def test_a_greater_error_still_fails():
    after = judge_unknown_rule(result(2.0), GOLDEN, FILE)
    assert not checks(after)["noise"]
    assert not after.outputs[0].within


def test_a_finding_on_another_output_is_kept():
    before = result(0.9)
    other = Finding("noise", False, "output 'z' differs", "z")
    before = dataclasses.replace(before, findings=(*before.findings, other))
    after = judge_unknown_rule(before, GOLDEN, FILE)
    assert after.findings[-1] is other


@pytest.mark.parametrize(("bound", "passes"), [(False, True), (True, False)])
def test_integers_of_no_known_rule_fail_only_on_a_runtime_of_a_known_one(bound, passes):
    findings, _ = judge_outputs({"y": TRUTH + 0.05}, GOLDEN, FILE, bound_to_rules=bound)
    (integers,) = (f for f in findings if f.check == "integers")
    assert integers.passed is passes
    assert integers.message.endswith("; the outputs are compared within a limit instead")


def test_outputs_that_are_missing_or_of_another_shape_fail():
    findings, verdicts = judge_outputs({}, GOLDEN, FILE)
    assert not verdicts
    assert "output 'y' is missing from n.int8.tflite" in [f.message for f in findings]
    findings, verdicts = judge_outputs({"y": TRUTH[:, :1]}, GOLDEN, FILE)
    assert not verdicts
    (found,) = (f for f in findings if f.check == "outputs")
    assert not found.passed
    assert "must have the shape (6, 2)" in found.message


def test_an_output_without_a_finite_number_fails():
    findings, verdicts = judge_outputs({"y": np.full((6, 2), np.nan)}, GOLDEN, FILE)
    assert not verdicts
    (found,) = (f for f in findings if f.check == "noise")
    assert not found.passed
    assert found.message.endswith("zero comparisons")
