"""Protects runs on devices: ARM code under emulation, a browser, ssh; all of them must run."""

from __future__ import annotations

import functools
import getpass
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from renormlite import check_parity
from renormlite.artifacts.directory import read_export
from renormlite.artifacts.golden_set import read_golden
from renormlite.artifacts.manifest import Artifact
from renormlite.artifacts.precisions import PRECISIONS
from renormlite.artifacts.sample_kinds import NONFINITE
from renormlite.devices import run_on_device
from renormlite.devices.base import EMULATED_NOTE, DeviceOptions
from renormlite.models.data import handwritten_digits
from renormlite.runtime_checks.bench import measure_latency
from renormlite.runtime_checks.end_to_end.quality_gates import QualityLimits
from renormlite.runtime_checks.end_to_end.target_check import judge_run
from renormlite.runtimes import LOCAL, Target
from renormlite.runtimes.run import TargetRun, run_target

pytestmark = pytest.mark.devices

NETWORKS = ("digits", "mobilenet")

# Every target, with the kernels whose rounding rule its int8 arithmetic follows. XNNPACK rounds
# once. TFLite's own kernels round twice, but dense layers of newer portable ones once, in double
# precision. On ARM, tflite-runtime's kernels follow the same rule as TFLite Micro's.
_TFLITE, _ONNX = "TFLite Micro", "ONNX Runtime"
TARGETS = {
    "litert@qemu-aarch64:cortex-a76": "XNNPACK",
    "litert@qemu-aarch64:cortex-a53": "XNNPACK",
    "litert+reference@qemu-aarch64": "TFLite's portable kernels",
    "litert-compiled@qemu-aarch64": "XNNPACK",
    "tflite-runtime@qemu-aarch64": _TFLITE,
    "onnxruntime@qemu-aarch64:cortex-a76": _ONNX,
    "onnxruntime@qemu-aarch64:cortex-a53": _ONNX,
    "onnx-reference@qemu-aarch64": None,  # it has no int8 operators
    "tflite-runtime@qemu-armv7": _TFLITE,
    "tflite-runtime@qemu-armv7:cortex-a7": _TFLITE,
    "litert-web@browser": "XNNPACK",
    "onnxruntime-web@browser": _ONNX,
    "tflite-micro": _TFLITE,
    "litert@ssh:HERE": "XNNPACK",
    "onnxruntime@ssh:HERE": _ONNX,
}
# It takes minutes for a MobileNetV2, because Python itself is emulated.
DIGITS_ONLY = "onnx-reference@qemu-aarch64"
PAIRS = [
    (text, network)
    for text in TARGETS
    for network in NETWORKS
    if (text, network) != (DIGITS_ONLY, "mobilenet")
]
# ONNX Runtime adds quantized tensors in float, by kernels that differ between machines. Where the
# exact sum is close to a tie between two steps, its QLinearAdd may differ by one step from that of
# x86 (docs/devices.md). MobileNetV2 has ten of them; convolutions and pooling agree.
ADD_DIFFERS = ("onnxruntime@qemu", "onnxruntime-web")
EXACT_PAIRS = [
    (text, network)
    for text, network in PAIRS
    if TARGETS[text] and not (text.startswith(ADD_DIFFERS) and network == "mobilenet")
]
# ONNX Runtime computes in half precision where the processor has such arithmetic. A float16 file
# is then computed differently than on x86.
HALF_ARITHMETIC = ("onnxruntime@qemu-aarch64:cortex-a76", "float16")

# The MobileNetV2 has random weights, so the noise of its quantized files is not judged.
LIMITS = {
    "digits": QualityLimits(),
    "mobilenet": QualityLimits(
        max_accuracy_drop=100, min_snr=-math.inf, max_flipped=100, max_clipped=100
    ),
}

Run = dict[str, tuple[Artifact, TargetRun]]


@pytest.fixture(scope="session")
def run(exports: dict[str, Path], sshd: Any) -> Callable[[str, str], Run]:
    """Run a network's artifacts on a target, once for all tests."""

    @functools.cache
    def run_once(network: str, text: str) -> Run:
        export = read_export(exports[network])
        golden = read_golden(export.golden, [spec.name for spec in export.outputs])
        here = f"{getpass.getuser()}@127.0.0.1:{sshd.port}"
        target = Target.parse(text.replace("HERE", here))
        artifacts = [
            entry
            for entry in export.artifacts
            if entry.format in target.formats and not target.cannot_run(entry.precision)
        ]
        if target.device == LOCAL:
            return {
                entry.precision: (
                    entry,
                    run_target(export.path / entry.file, entry, golden.inputs, target),
                )
                for entry in artifacts
            }
        options = DeviceOptions(python=sys.executable)
        runs = run_on_device(export, artifacts, golden.inputs, target, options=options)
        return {entry.precision: (entry, done) for entry, done in runs}

    return run_once


def steps(path: Path, output: np.ndarray) -> np.ndarray:
    """Return the integers that the last op of an int8 file dequantized.

    That op is float arithmetic: ARM rounds once after multiplying and adding, x86 rounds twice.
    """
    if path.suffix == ".onnx":
        return output  # equal to the last bit everywhere
    from ai_edge_litert.interpreter import Interpreter

    model = Interpreter(str(path))
    last = model._get_ops_details()[-1]
    assert last["op_name"] == "DEQUANTIZE"
    details = {detail["index"]: detail for detail in model.get_tensor_details()}
    scale, _ = details[int(last["inputs"][0])]["quantization"]
    numbers = output / np.float64(scale)
    np.testing.assert_allclose(numbers, np.rint(numbers), atol=1e-3)
    integers: np.ndarray = np.rint(numbers).astype(np.int64)
    return integers


@pytest.mark.parametrize(("text", "network"), PAIRS)
def test_every_file_passes_on_the_target(
    ssh_path: Any, exports: dict[str, Path], run: Callable[[str, str], Run], text: str, network: str
) -> None:
    export = read_export(exports[network])
    golden = read_golden(export.golden, [spec.name for spec in export.outputs])
    target = Target.parse(text)
    runs = run(network, text)
    unable = {name for name in PRECISIONS if target.cannot_run(name)}
    assert set(runs) == {"float32", "float16", "dynamic", "int8"} - unable
    for precision, (artifact, done) in runs.items():
        result = judge_run(export, artifact, golden, target, done, limits=LIMITS[network])
        # In two samples, an output of random weights may be constant by chance.
        chance = {"slices"} if network == "mobilenet" else set()
        wrong = {f.check for f in result.findings if not f.passed} - chance
        assert not wrong, f"{artifact.file} ({precision}): {result.reason}"


@pytest.mark.parametrize(("text", "network"), EXACT_PAIRS)
def test_int8_outputs_equal_those_that_the_targets_rounding_rule_predicts(
    ssh_path: Any, exports: dict[str, Path], run: Callable[[str, str], Run], text: str, network: str
) -> None:
    artifact, there = run(network, text)["int8"]
    export = read_export(exports[network])
    golden = read_golden(export.golden, [spec.name for spec in export.outputs])
    predicted = golden.predictions[artifact.file].by_rule[TARGETS[text]]
    assert there.outputs.keys() == predicted.keys()
    path = exports[network] / artifact.file
    for name, expected in predicted.items():
        np.testing.assert_array_equal(steps(path, there.outputs[name]), steps(path, expected))


def test_the_rounding_rules_give_different_outputs(run: Callable[[str, str], Run]) -> None:
    """Otherwise equal bits would not show which rule a device follows."""
    once, twice = (run("digits", name)["int8"][1] for name in ("litert", "litert+reference"))
    assert any(np.any(once.outputs[name] != twice.outputs[name]) for name in once.outputs)


def test_half_precision_arithmetic_shows_on_the_processor_that_has_it(
    exports: dict[str, Path], run: Callable[[str, str], Run]
) -> None:
    text, precision = HALF_ARITHMETIC
    with_it = run("digits", text)[precision][1]
    without = run("digits", text.replace("a76", "a53"))[precision][1]
    x86 = run("digits", "onnxruntime")[precision][1]
    assert "asimdhp" in with_it.ran["cpu"]["features"]
    assert "asimdhp" not in without.ran["cpu"]["features"]
    finite = read_golden(exports["digits"] / "golden.npz", []).kind != NONFINITE
    for name, expected in x86.outputs.items():
        near = np.abs(without.outputs[name] - expected)[finite].max()
        far = np.abs(with_it.outputs[name] - expected)[finite].max()
        assert far > 10 * near


@pytest.mark.parametrize("text", TARGETS)
def test_runs_record_measurements_and_versions(
    ssh_path: Any, run: Callable[[str, str], Run], text: str
) -> None:
    emulated = "@qemu" in text
    for _, done in run("digits", text).values():
        assert done.measured["load_ms"] > 0
        latency = done.measured["latency_ms"]
        assert 0 < latency["median"] <= latency["p90"]
        assert done.measured.get("note") == (EMULATED_NOTE if emulated else None)
        assert all(done.ran["versions"].values())
        if "@" in text:
            assert done.measured["peak_memory_bytes"] > 10_000_000
        if emulated:
            assert done.ran["device"]["cpu"].startswith("cortex-")
            assert done.ran["device"]["emulator"].startswith("qemu 1")


@pytest.mark.parametrize(
    "text",
    ["litert@qemu-aarch64", "onnxruntime@qemu-aarch64:cortex-a53", "onnxruntime-web", "HERE"],
)
def test_samples_of_the_user_run_on_devices(
    ssh_path: Any, exports: dict[str, Path], text: str
) -> None:
    """They run together with the golden set and are judged."""
    target = f"litert@ssh:{ssh_path.address}" if text == "HERE" else text
    own = handwritten_digits().test.x[100:105]
    options = DeviceOptions(python=sys.executable)
    report = check_parity(exports["digits"], [target], own, devices=options)
    assert report.passed
    golden = read_golden(exports["digits"] / "golden.npz", [])
    assert report.samples == golden.samples + 5
    for result in report.results:
        (output,) = result.outputs
        # For samples with NaN or infinity nothing is expected after a dense layer.
        assert output.metrics.elements == 10 * (report.samples - list(golden.kind).count(NONFINITE))
        (here,) = (o for o in result.given.values())
        truth = next(iter(report.golden.truth.values()))
        # Each sample is compared with its own truth.
        assert (here.argmax(1) == truth.argmax(1))[-5:].all()
        assert any(f.check == "determinism" and f.passed for f in result.findings)


def test_files_are_timed_on_devices(ssh_path: Any, exports: dict[str, Path]) -> None:
    targets = ["litert", "litert@qemu-aarch64", f"litert@ssh:{ssh_path.address}", "litert-web"]
    rows = measure_latency(
        exports["digits"], targets, rounds=5, devices=DeviceOptions(python=sys.executable)
    )
    assert [row.target for row in rows] == [
        target for target in map(str, map(Target.parse, targets)) for _ in range(4)
    ]
    assert rows[0].ratio == 1.0
    for row in rows:
        assert row.p90_ms is not None
        assert 0 < row.median_ms <= row.p90_ms
        assert row.ratio > 0
        assert row.note == (EMULATED_NOTE if "qemu" in row.target else "")
