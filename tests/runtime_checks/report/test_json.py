"""Protects the JSON: reports follow the schema, and the documentation covers the schema."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

SCHEMA = json.loads(
    importlib.resources.files("renormlite.runtime_checks.report")
    .joinpath("parity.schema.json")
    .read_text(encoding="utf-8")
)
DOCS = Path(__file__).parents[3] / "docs" / "reports.md"


def record(report) -> dict:
    """Return a report as a reader of its JSON sees it: strictly, so NaN is no number."""

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(report.to_json(), parse_constant=refuse)


def test_schema_is_valid():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("which", ["healthy", "walked", "failing"])
def test_reports_follow_the_schema(which, request):
    found = record(request.getfixturevalue(which))
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    assert found["schema"] == "renormlite/parity/1"


def test_omitted_targets_follow_the_schema(healthy):
    report = dataclasses.replace(healthy, left_out=("a.onnx was not run on b: c",))
    found = record(report)
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    assert found["left_out"] == ["a.onnx was not run on b: c"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: r.pop("verdict"),
        lambda r: r.update(extra=1),
        lambda r: r["results"][0].update(verdict="maybe"),
        lambda r: r["results"][0]["stages"]["digit"]["stages"][0].update(cause="bad luck"),
        lambda r: r["results"][0]["stages"]["digit"]["stages"][0].pop("share"),
        lambda r: r["results"][0]["metrics"]["digit"].update(max_abs="big"),
        lambda r: r["results"][0]["findings"][0].update(passed="yes"),
        lambda r: r["results"][0]["ops"][0].pop("ratio"),
    ],
)
def test_the_schema_refuses_what_is_wrong(walked, spoil):
    found = record(walked)
    spoil(found)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(found)


def test_the_json_equals_the_report(failing):
    found = record(failing)
    assert found["verdict"] == "fail"
    by_file = {entry["artifact"]: entry for entry in found["results"]}
    wrong = by_file["digits.float32.tflite"]
    assert wrong["faults"][0]["layer"] == "conv2d_1"
    assert wrong["stages"]["digit"]["stages"][-1]["cause"] == "fault"
    lost = by_file["digits.float32.onnx"]["stages"]["digit"]["stages"][-1]
    assert (lost["error_rms"], lost["snr_db"]) == ("inf", "-inf")
    budget = by_file["digits.int8.tflite"]["stages"]["digit"]
    assert [stage["name"] for stage in budget["stages"]] == [
        "folded",
        "exported",
        "quantized",
        "target",
    ]
    assert sum(stage["share"] for stage in budget["stages"]) == pytest.approx(1)
    result = next(r for r in failing.results if r.artifact == "digits.int8.tflite")
    error = result.given["digit"] - failing.golden.truth["digit"]
    rms = float(np.sqrt(np.mean(error[failing.golden.kind == "real"] ** 2)))
    assert budget["stages"][-1]["error_rms"] == pytest.approx(rms)


def test_every_field_is_documented():
    """Every field must be named in docs/reports.md."""
    text = DOCS.read_text(encoding="utf-8")
    objects = [SCHEMA, *SCHEMA["$defs"].values()]
    fields = {name for entry in objects for name in entry.get("properties", {})}
    assert fields
    assert [name for name in sorted(fields) if f"`{name}`" not in text] == []
