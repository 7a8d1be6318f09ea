"""Protects that one file at fault fails alone: others are judged, every report is written."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from renormlite import check_parity
from renormlite.cli.check import command
from renormlite.files import sha256
from renormlite.runtimes.onnxruntime import OnnxRuntimeRunner

BAD, GOOD = "tiny.float32.onnx", "tiny.float32.tflite"


@pytest.fixture(scope="module")
def alien(tmp_path_factory):
    """Files of a network with another input, by the name of the change."""
    import keras
    import renormlite as rl

    def export(name, shape):
        image = keras.Input(shape, name=name)
        scores = keras.layers.Dense(10, name="scores")(keras.layers.Flatten()(image))
        folder = tmp_path_factory.mktemp("alien") / "net"
        rl.export_model(keras.Model(image, scores), folder, formats=("onnx",))
        return folder / "net.float32.onnx"

    return {"shape": export("image", (1, 8, 8)), "name": export("picture", (8, 8, 1))}


def with_another_output(path, alien):
    model = onnx.load(path)
    inner = onnx.ValueInfoProto(name=model.graph.node[0].output[0])
    model.graph.output.append(inner)
    onnx.save(model, path)


DAMAGES = {
    "another output": (with_another_output, "than manifest.json lists: it returns"),
    "another shape": (lambda path, alien: shutil.copy(alien["shape"], path), "(1, 1, 8, 8)"),
    "another name": (lambda path, alien: shutil.copy(alien["name"], path), "'picture'"),
    "missing": (lambda path, alien: path.unlink(), "is missing, though manifest.json lists it"),
    "empty": (lambda path, alien: path.write_bytes(b""), "has 0 bytes"),
    "longer": (lambda path, alien: path.write_bytes(path.read_bytes() + b"0"), "bytes where"),
    "text": (lambda path, alien: path.write_text("<!DOCTYPE html>"), "has 15 bytes"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_others_are_judged_and_the_reports_written(export, alien, tmp_path, damage):
    spoil, sentence = DAMAGES[damage]
    spoil(export / BAD, alien)
    paths = {"json": tmp_path / "report.json", "junit": tmp_path / "report.xml"}
    options = [text for name, path in paths.items() for text in (f"--{name}", str(path))]
    result = CliRunner().invoke(command, [str(export), *options], catch_exceptions=False)
    assert result.exit_code == 1
    assert paths["junit"].read_text().count("<failure")
    assert (export / "report.html").is_file()
    results = {r["artifact"]: r for r in json.loads(paths["json"].read_text())["results"]}
    assert results[GOOD]["verdict"] == "pass"
    assert results[BAD]["verdict"] == "fail"
    messages = " ".join(f["message"] for f in results[BAD]["findings"] if not f["passed"])
    assert sentence in messages


def test_an_exception_of_a_runtime_is_a_verdict(export, monkeypatch):
    """Runtimes have error types of their own; none of them may end the check."""

    def broken(self, inputs):
        raise LookupError("no kernel")

    monkeypatch.setattr(OnnxRuntimeRunner, "_infer", broken)
    report = check_parity(export)
    verdicts = {result.artifact: result for result in report.results}
    assert verdicts[GOOD].passed
    assert "onnxruntime fails to run tiny.float32.onnx: no kernel" in verdicts[BAD].reason


def test_a_missing_network_fails_only_its_file(coarse_export, tmp_path):
    """The truth for an equalized file is computed by that file's own network."""
    export = tmp_path / "tiny"
    shutil.copytree(coarse_export, export)
    manifest = json.loads((export / "manifest.json").read_text())
    entry = manifest["artifacts"][0]
    entry["network"] = {"file": "gone.npz", "sha256": 64 * "0"}
    (export / "manifest.json").write_text(json.dumps(manifest))
    report = check_parity(export)
    failed = {result.artifact for result in report.results if not result.passed}
    assert failed == {entry["file"]}


def test_own_samples_and_search_with_a_bad_file(export, alien):
    shutil.copy(alien["shape"], export / BAD)
    own = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    report = check_parity(export, inputs=own, search=8)
    verdicts = {result.artifact: result.passed for result in report.results}
    assert verdicts == {GOOD: True, BAD: False}


@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
@pytest.mark.parametrize("renamed", [True, False])
def test_a_float_file_that_the_manifest_calls_int8_fails(coarse_export, tmp_path, suffix, renamed):
    """Otherwise the limits of another arithmetic would apply; all hashes are updated."""
    folder = shutil.copytree(coarse_export, tmp_path / "tiny")
    manifest = json.loads((folder / "manifest.json").read_text())
    plain, eight = (
        next(e for e in manifest["artifacts"] if e["file"] == f"tiny.{name}.{suffix}")
        for name in ("float32", "int8")
    )
    if renamed:
        shutil.copy(folder / plain["file"], folder / eight["file"])
        eight |= {key: plain[key] for key in ("sha256", "bytes")}
    else:
        plain["precision"] = "int8"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    report = check_parity(folder, artifacts=((eight if renamed else plain)["file"],))
    assert "says that it was exported in float32" in report.results[0].reason


def rewritten(folder, file, change):
    """Change an ONNX file of an export, and its hash in the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = next(e for e in manifest["artifacts"] if e["file"] == file)
    model = onnx.load(folder / file)
    change(model.graph)
    onnx.save(model, folder / file)
    entry |= {"sha256": sha256(folder / file), "bytes": (folder / file).stat().st_size}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_operators_that_are_not_well_formed_fail_alone(coarse_export, tmp_path):
    """ONNX Runtime accepts names that would move a terminal's cursor; nothing prints them."""
    folder = shutil.copytree(coarse_export, tmp_path / "tiny")
    rewritten(folder, BAD, lambda graph: setattr(graph.node[0], "name", "\x1b[2J"))
    report = check_parity(folder, artifacts=(BAD, GOOD), per_op=True)
    by_file = {result.artifact: result for result in report.results}
    assert not by_file[BAD].passed
    assert "control characters" in by_file[BAD].reason
    assert "\x1b" not in by_file[BAD].reason
    assert by_file[GOOD].passed


def test_an_output_that_is_not_listed_fails(coarse_export, tmp_path):
    """Applications may read outputs by their place; the hash is updated."""

    def list_inner(graph):
        inner = onnx.helper.make_empty_tensor_value_info(graph.node[0].output[0])
        graph.output.append(inner)

    folder = shutil.copytree(coarse_export, tmp_path / "tiny")
    rewritten(folder, BAD, list_inner)
    (result,) = check_parity(folder, artifacts=(BAD,)).results
    assert not result.passed
    assert "has an output that manifest.json does not list" in result.reason
