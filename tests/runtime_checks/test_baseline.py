"""Protects the comparison with an earlier check: regressions fail, other changes are listed."""

from __future__ import annotations

import json

import pytest
from renormlite import UserError, check_parity


@pytest.fixture(scope="module")
def record(coarse_export):
    """The JSON report of a healthy check."""
    return json.loads(check_parity(coarse_export, precisions=["float32", "int8"]).to_json())


def against(export, record, tmp_path, **options):
    path = tmp_path / "old.json"
    path.write_text(json.dumps(record))
    return check_parity(export, baseline=path, precisions=["float32", "int8"], **options)


def of(record, artifact):
    return next(entry for entry in record["results"] if entry["artifact"] == artifact)


def test_an_equal_report_has_no_changes(coarse_export, record, tmp_path):
    report = against(coarse_export, record, tmp_path)
    assert report.passed
    assert all("inference takes" in finding.message for finding in report.findings)


CHANGES = {
    "fewer decibels": (
        lambda entry: entry["metrics"]["scores"].update(snr_db=200.0),
        False,
        "dB, before 200.0 dB",
    ),
    "more decibels": (
        lambda entry: entry["metrics"]["scores"].update(snr_db=1.0),
        True,
        "dB, before 1.0 dB",
    ),
    "decisions": (
        lambda entry: entry["tasks"]["scores"].update(same=99),
        False,
        "before 99",
    ),
    "fixed": (lambda entry: entry.update(verdict="fail"), True, "it passes now and failed before"),
    "new": (lambda entry: entry.update(artifact="other.onnx"), True, "was not checked before"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes(coarse_export, record, tmp_path, change):
    edit, passes, sentence = CHANGES[change]
    old = json.loads(json.dumps(record))
    edit(of(old, "tiny.int8.onnx"))
    report = against(coarse_export, old, tmp_path)
    assert report.passed is passes
    findings = [f for f in report.findings if sentence in f.message]
    assert [finding.passed for finding in findings] == [passes]
    assert json.loads(report.to_json())["findings"]
    assert report.to_junit().count('type="baseline"') == (not passes)
    assert findings[0].message in report.to_html().replace("&#39;", "'")


def test_a_target_that_is_no_longer_checked_fails(healthy_export, tmp_path):
    old = json.loads(check_parity(healthy_export).to_json())
    (tmp_path / "old.json").write_text(json.dumps(old))
    report = check_parity(healthy_export, ["litert"], baseline=tmp_path / "old.json")
    assert not report.passed
    assert report.findings[-1].message.startswith("tiny.float32.onnx on onnxruntime was checked")
    part = check_parity(
        healthy_export, artifacts=["tiny.float32.onnx"], baseline=tmp_path / "old.json"
    )
    assert part.passed


@pytest.mark.parametrize("text", ["{}", "no json", '{"schema": "renormlite/replay/1"}'])
def test_no_report(healthy_export, tmp_path, text):
    (tmp_path / "old.json").write_text(text)
    with pytest.raises(UserError, match=r"JSON report|must be a report"):
        check_parity(healthy_export, baseline=tmp_path / "old.json")
