"""Protects the verdict: healthy files pass, and every kind of damage ends in one clear sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from renormlite import UserError, check_parity
from renormlite.artifacts.directory import read_export
from renormlite.cli.check import command

TARGETS = ("litert", "tf-lite", "onnxruntime")


def corrupt(path, old: float, new: float) -> None:
    """Overwrite the one place where a file holds a float32 by another."""
    data = path.read_bytes()
    pattern = np.float32(old).tobytes()
    assert data.count(pattern) == 1
    path.write_bytes(data.replace(pattern, np.float32(new).tobytes()))


@pytest.fixture
def weight(export) -> float:
    """The first kernel weight of the network, as the folded network has it."""
    with np.load(export / "network.npz") as archive:
        kernel = next(archive[key] for key in archive.files if key.endswith("kernel"))
    return float(kernel.flat[0])


def run_cli(directory, *options: str):
    """Run `renormlite check` and return its exit code and output, or the error it prints."""
    try:
        result = CliRunner().invoke(
            command, [str(directory), *options], catch_exceptions=False, standalone_mode=True
        )
    except UserError as error:
        return 2, str(error)
    return result.exit_code, result.output


@pytest.mark.parametrize("target", TARGETS)
def test_healthy_export_passes(healthy_export, target):
    report = check_parity(healthy_export, (target,))
    assert report.passed
    assert report.results
    for result in report.results:
        assert result.outputs[0].metrics.elements == 160
        assert result.outputs[0].metrics.agreement.flips == 0


def test_cli_prints_a_table_and_writes_the_reports(export, tmp_path):
    code, output = run_cli(export, "--json", str(tmp_path / "r.json"))
    assert code == 0
    assert "tiny.float32.tflite" in output
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["schema"] == "renormlite/parity/1"
    assert record["verdict"] == "pass"
    assert "<title>tiny: PASS</title>" in (export / "report.html").read_text()


@pytest.mark.parametrize(("suffix", "target"), [("tflite", "litert"), ("onnx", "onnxruntime")])
def test_corrupted_weight_fails(export, weight, suffix, target):
    corrupt(export / f"tiny.float32.{suffix}", weight, weight + 0.1)
    report = check_parity(export, (target,))
    assert not report.passed
    failed = {finding.check for finding in report.results[0].findings if not finding.passed}
    assert {"file", "noise"} <= failed
    code, output = run_cli(export, "--on", target)
    assert code == 1
    assert "is not the file that was exported" in " ".join(output.split())


@pytest.mark.parametrize(("suffix", "target"), [("tflite", "litert"), ("onnx", "onnxruntime")])
def test_nan_fails(export, weight, suffix, target):
    corrupt(export / f"tiny.float32.{suffix}", weight, float("nan"))
    report = check_parity(export, (target,))
    finite = next(f for f in report.results[0].findings if f.check == "finite")
    assert not finite.passed
    assert "nan" in finite.message
    assert run_cli(export, "--on", target)[0] == 1


def test_artifact_that_no_longer_loads_fails(export):
    path = export / "tiny.float32.tflite"
    path.write_bytes(path.read_bytes()[:200])
    report = check_parity(export, ("litert",))
    assert not report.passed
    assert "has 200 bytes where the export wrote" in report.results[0].reason


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda d: (d / "manifest.json").unlink(), "holds no manifest.json"),
        (
            lambda d: (d / "manifest.json").write_text((d / "manifest.json").read_text()[:300]),
            "is cut short or damaged",
        ),
        (lambda d: (d / "manifest.json").write_text("{}"), "must have the schema"),
        (lambda d: (d / "golden.npz").unlink(), "golden.npz, the golden set to compare with"),
        (
            lambda d: (d / "golden.npz").write_bytes((d / "golden.npz").read_bytes()[:-50]),
            "is damaged: its SHA-256",
        ),
        (lambda d: (d / "network.npz").unlink(), "network.npz, the folded network to compare"),
    ],
)
def test_damaged_reference_data_is_a_user_error(export, damage, sentence):
    damage(export)
    code, output = run_cli(export)
    assert code == 2
    assert sentence in output
    assert "\n" not in output.strip()


def test_path_that_is_not_a_directory(tmp_path):
    assert run_cli(tmp_path / "nothing")[0] == 2
    with pytest.raises(UserError, match="does not exist"):
        check_parity(tmp_path / "nothing")


def test_manifest_without_an_entry(export):
    record = json.loads((export / "manifest.json").read_text())
    del record["artifacts"][0]["sha256"]
    (export / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"artifacts\[0\]\.sha256 is missing"):
        read_export(export)


def test_target_without_a_file_says_what_would_run(export):
    record = json.loads((export / "manifest.json").read_text())
    record["artifacts"] = [a for a in record["artifacts"] if a["format"] == "onnx"]
    (export / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="run on: onnxruntime"):
        check_parity(export, ("litert",))


def test_unknown_target_and_variant(export):
    with pytest.raises(UserError, match="runtime among"):
        check_parity(export, ("tensorrt",))
    with pytest.raises(UserError, match="has no variant 'turbo'"):
        check_parity(export, ("litert+turbo",))


def test_missing_output_fails(export):
    """A file that lost an output must fail even when the others are right."""
    record = json.loads((export / "manifest.json").read_text())
    artifact = next(a for a in record["artifacts"] if a["format"] == "tflite")
    artifact["outputs"].append(dict(artifact["outputs"][0], name="gone", keras_name="gone"))
    (export / "manifest.json").write_text(json.dumps(record))
    report = check_parity(export, ("litert",))
    assert not report.passed
    assert "output 'gone' is missing" in report.results[0].reason
