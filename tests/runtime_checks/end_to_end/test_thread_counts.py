"""Protects the comparison of thread counts: different bits are reported, wrong outputs fail."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from renormlite import UserError, check_parity
from renormlite.cli.check import command
from renormlite.runtime_checks.bundle.write import write_bundle
from renormlite.runtime_checks.end_to_end.thread_counts import compare_bits, parse_threads
from renormlite.runtimes.onnxruntime import OnnxRuntimeRunner


def findings_of(report):
    (result,) = report.results
    return [finding for finding in result.findings if finding.check == "threads"]


@pytest.fixture
def disturbed(monkeypatch):
    """ONNX Runtime with results that an error is added to where it has two threads."""

    def disturb(error: float) -> None:
        real = OnnxRuntimeRunner._infer

        def infer(self, inputs):
            results = real(self, inputs)
            return {k: v + np.float32(error) * (self.threads == 2) for k, v in results.items()}

        monkeypatch.setattr(OnnxRuntimeRunner, "_infer", infer)

    return disturb


def test_one_count_compares_nothing(healthy_export):
    report = check_parity(healthy_export, ("onnxruntime",))
    assert findings_of(report) == []
    assert report.results[0].threads == ()


@pytest.mark.parametrize("target", ["litert", "litert+builtin", "onnxruntime"])
def test_healthy_runtime_passes_with_every_count(healthy_export, target):
    report = check_parity(healthy_export, (target,), threads=(1, 2, 3))
    assert report.passed
    assert [(entry.against, entry.threads) for entry in report.results[0].threads] == [
        (1, 2),
        (1, 3),
    ]
    assert all("bits" in finding.message for finding in findings_of(report))


def test_different_bits_within_the_bound_are_reported_and_pass(healthy_export, disturbed):
    disturbed(2.0**-26)
    report = check_parity(healthy_export, ("onnxruntime",), threads=(1, 2))
    assert report.passed
    (entry,) = report.results[0].threads
    assert 0 < entry.differing <= entry.elements == 160
    assert 0 < entry.max_abs <= 2.0**-24
    (finding,) = findings_of(report)
    assert "differs in bits between 2 threads and 1" in finding.message
    assert finding.message.endswith("within the bound")
    assert json.loads(report.to_json())["results"][0]["threads"][0]["threads"] == 2
    assert "differs in bits between 2 threads" in report.to_html()


def test_outputs_beyond_the_bound_fail(healthy_export, disturbed):
    disturbed(1e-2)
    report = check_parity(healthy_export, ("onnxruntime",), threads=(1, 2))
    assert not report.passed
    failed = [f for f in report.results[0].findings if not f.passed]
    assert {finding.check for finding in failed} >= {"threads"}
    (finding,) = findings_of(report)
    assert "with 2 threads output 'scores' differs from float64 truth" in finding.message


def test_different_bits_on_each_run_fail(healthy_export, monkeypatch):
    """The usual fault of threads: a race, that one thread does not show."""
    real, calls = OnnxRuntimeRunner._infer, iter(range(10**6))

    def racing(self, inputs):
        shift = np.float32(1e-9 * next(calls)) if self.threads == 2 else np.float32(0)
        return {k: v + shift for k, v in real(self, inputs).items()}

    monkeypatch.setattr(OnnxRuntimeRunner, "_infer", racing)
    report = check_parity(healthy_export, ("onnxruntime",), threads=(1, 2))
    messages = [finding.message for finding in findings_of(report) if not finding.passed]
    assert (
        "with 2 threads two runs on the same input gave different bits in output 'scores'"
        in messages
    )


def test_command_line_reports_and_refuses(export):
    told = CliRunner().invoke(command, [str(export), "--on", "litert", "--threads", "1,2"])
    assert told.exit_code == 0, told.output
    assert "threads tiny.float32.tflite on litert: output 'scores' has" in " ".join(
        told.output.split()
    )


@pytest.mark.parametrize("text", ["0", "1,1", "two", "1,", "", "-1", "1.5"])
def test_invalid_counts_are_refused(text):
    with pytest.raises(UserError, match=r"such as 1,4|as in 1,4"):
        parse_threads(text)


def test_bundle_compares_thread_counts(healthy_export, tmp_path):
    bundle = write_bundle(healthy_export, tmp_path / "tiny.pyz")
    done = subprocess.run(
        [sys.executable, bundle, "--runtime", "litert", "--threads", "1,2", "--json", "out.json"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "bits" in done.stdout
    (entry,) = json.loads((tmp_path / "out.json").read_text())["threads"]
    assert (entry["against"], entry["threads"]) == (1, 2)


def test_bits_are_compared():
    """0.0 equals -0.0 and NaN does not equal NaN; their bits say the contrary."""
    first = np.array([[0.0, np.nan, 1.0]], np.float32)
    other = np.array([[-0.0, np.nan, 1.5]], np.float32)
    entry = compare_bits("y", first, other, 1, 2)
    assert (entry.differing, entry.elements, entry.max_abs) == (2, 3, 0.5)
