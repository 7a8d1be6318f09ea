"""Protects the JUnit XML: CI servers can read it, count tests and recognize them in later runs."""

from __future__ import annotations

import dataclasses

import junitparser
import pytest
from renormlite import check_parity
from renormlite.runtime_checks.end_to_end.findings import Finding


def parsed(report) -> junitparser.JUnitXml:
    return junitparser.JUnitXml.fromstring(report.to_junit().encode())


def test_one_suite_per_target_and_one_case_per_finding(healthy):
    xml = parsed(healthy)
    assert [suite.name for suite in xml] == ["litert", "onnxruntime"]
    for suite in xml:
        results = [r for r in healthy.results if r.target == suite.name]
        assert suite.tests == sum(len(r.findings) for r in results) == len(list(suite))
        assert suite.skipped == suite.errors == 0
    assert xml.tests == sum(suite.tests for suite in xml)


def test_failures_say_what_and_where(failing):
    xml = parsed(failing)
    wrong = [
        (case.name, case.result[0])
        for suite in xml
        for case in suite
        if case.result and isinstance(case.result[0], junitparser.Failure)
    ]
    assert (
        xml.failures
        == len(wrong)
        == sum(not finding.passed for result in failing.results for finding in result.findings)
    )
    name, failure = next(entry for entry in wrong if entry[0].endswith("noise digit"))
    assert name == "digits.float32.tflite: noise digit"
    assert "differs from float64 truth" in failure.message
    assert "has a fault on the target" in failure.text


def test_names_are_unique_and_the_same_in_every_run(healthy, digits_export):
    def names(report):
        return [(case.classname, case.name) for suite in parsed(report) for case in suite]

    first = names(healthy)
    assert len(set(first)) == len(first)
    again = check_parity(digits_export, ("litert", "onnxruntime"))
    assert names(again) == first


def test_zero_comparisons_are_a_failure(healthy):
    """A result whose findings all passed but which compared nothing did not pass."""
    empty = dataclasses.replace(
        healthy.results[0], outputs=(), findings=(Finding("file", True, "it is there"),)
    )
    xml = parsed(dataclasses.replace(healthy, results=(empty,)))
    assert (xml.tests, xml.failures) == (2, 1)


def test_omitted_targets_are_skipped_cases(healthy):
    xml = parsed(dataclasses.replace(healthy, left_out=("a.onnx was not run on b: reason",)))
    suite = next(suite for suite in xml if suite.name == "left out")
    assert (suite.tests, suite.skipped, suite.failures) == (1, 1, 0)


@pytest.mark.parametrize("text", ["\x1b[31mred\x00", "a < b & \"c\" ]]> 'd'", "\ud800 \uffff é"])
def test_any_message_gives_valid_xml(healthy, text):
    """Messages of runtimes may contain control characters."""
    odd = dataclasses.replace(
        healthy.results[0], findings=(Finding("load", False, text),), outputs=()
    )
    xml = parsed(dataclasses.replace(healthy, results=(odd,)))
    assert xml.failures == 1
