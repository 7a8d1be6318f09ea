"""Protects the node data: Model Explorer finds every op, and paints a fault red."""

from __future__ import annotations

import json

import onnx
import pytest
from renormlite.artifacts.graphs import read_graph
from renormlite.artifacts.graphs.base import GraphOp
from renormlite.runtime_checks.report.model_explorer import node_id


def data(report, name: str) -> dict:
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(report.to_model_explorer()[name], parse_constant=refuse)


def test_files_for_every_result_whose_ops_were_checked(walked):
    files = walked.to_model_explorer()
    checked = [r for r in walked.results if r.ops or r.faults]
    assert len(files) == 3 * len(checked) > 0
    assert "digits.float32.tflite.litert.bound.json" in files


def test_tflite_ops_are_identified_by_index(walked, digits_export):
    graph = read_graph(digits_export / "digits.float32.tflite", "tflite")
    found = data(walked, "digits.float32.tflite.litert.bound.json")
    assert set(found) == {"results", "thresholds"}
    assert set(found["results"]) == {str(op.index) for op in graph.ops}
    assert all(0 <= entry["value"] <= 1 for entry in found["results"].values())


def test_onnx_nodes_are_identified_by_name(walked, digits_export):
    nodes = onnx.load(digits_export / "digits.float32.onnx").graph.node
    found = data(walked, "digits.float32.onnx.onnxruntime.drift_db.json")
    assert set(found["results"]) <= {node.name for node in nodes}
    assert len(found["results"]) > 8


@pytest.mark.parametrize(
    ("op", "artifact", "expected"),
    [
        (GraphOp(3, "CONV_2D", "some/name", (), ()), "a.tflite", "3"),
        (GraphOp(3, "Conv", "some/name", (), ()), "a.onnx", "some/name"),
        (GraphOp(3, "Conv", "", (), ()), "a.onnx", "<node_3>"),
    ],
)
def test_node_ids_are_those_of_the_readers(op, artifact, expected):
    assert node_id(op, artifact) == expected


def test_fault_is_red_and_over_its_bound(failing):
    found = data(failing, "digits.float32.tflite.litert.bound.json")
    red = {key: entry for key, entry in found["results"].items() if "bgColor" in entry}
    fault = next(r for r in failing.results if r.artifact == "digits.float32.tflite").faults[0]
    assert set(red) == {str(fault.op.index)}
    assert red[str(fault.op.index)]["value"] > 1


def test_thresholds_rise_and_cover_every_value(walked, failing):
    for report in (walked, failing):
        for name in report.to_model_explorer():
            found = data(report, name)
            limits = [entry["value"] for entry in found["thresholds"]]
            assert limits == sorted(limits)
            assert all(entry["value"] <= limits[-1] for entry in found["results"].values())
