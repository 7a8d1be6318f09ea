"""Protects checks over adb, with the real adb client and a server that speaks its wire protocol."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from renormlite.artifacts.directory import read_export
from renormlite.artifacts.golden_set import read_golden
from renormlite.devices import run_on_device
from renormlite.devices.adb import AdbDevice
from renormlite.devices.base import DeviceError, DeviceOptions
from renormlite.runtimes import Target
from renormlite.runtimes.run import run_target

pytestmark = pytest.mark.devices

OPTIONS = DeviceOptions(python=sys.executable, timeout_s=60, reconnect_s=10)

# Stands for LiteRT's tool: accepts only these flags and does the same.
BENCHMARK_MODEL = f"""#!{sys.executable}
import argparse, sys, time
import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

parser = argparse.ArgumentParser(allow_abbrev=False)
for name in ("graph", "input_layer", "input_layer_shape", "input_layer_value_files",
             "output_filepath", "use_xnnpack", "report_peak_memory_footprint"):
    parser.add_argument("--" + name)
for name in ("num_threads", "num_runs", "warmup_runs", "min_secs", "warmup_min_secs"):
    parser.add_argument("--" + name, type=float)
given = parser.parse_args()
resolver = OpResolverType.AUTO
if given.use_xnnpack == "false":
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
begin = time.perf_counter()
model = Interpreter(given.graph, num_threads=int(given.num_threads),
                    experimental_op_resolver_type=resolver)
model.allocate_tensors()
init = time.perf_counter() - begin
files = dict(item.split(":") for item in given.input_layer_value_files.split(","))
shapes = given.input_layer_shape.split(":")
details = model.get_input_details()
assert len(details) == len(shapes) == len(files)
for detail, name, shape in zip(details, given.input_layer.split(","), shapes):
    values = np.fromfile(files[name], detail["dtype"])
    model.set_tensor(detail["index"], values.reshape([int(size) for size in shape.split(",")]))
model.invoke()
if given.output_filepath:
    with open(given.output_filepath, "wb") as stream:
        for detail in model.get_output_details():
            stream.write(model.get_tensor(detail["index"]).tobytes())
print("INFO: Inference timings in us: Init: %d, First inference: 99, Warmup (avg): 98, "
      "Inference (avg): 97.5" % (init * 1e6), file=sys.stderr)
if given.report_peak_memory_footprint == "true":
    print("INFO: Overall peak memory footprint (MB) via periodic monitoring: 12.5", file=sys.stderr)
"""


def left_behind(adb: Any) -> list[str]:
    """Return the files that are still on the device after the agent had time to remove them."""
    for _ in range(50):
        if not adb.leftovers():
            break
        time.sleep(0.1)
    return list(adb.leftovers())


def test_a_bundle_runs_with_the_python_of_the_device(adb: Any, echo_bundle: Path) -> None:
    with AdbDevice("", echo_bundle, OPTIONS) as device:
        device.require("litert")
        run = device.run("litert", ["--outputs-mb", "2"])
        assert len(adb.leftovers()) == 1
    assert run.exit_code == 0
    assert run.report["device"]["serial"] == "PHONE1"
    np.testing.assert_array_equal(run.outputs["y"], np.arange(500_000, dtype=np.float32))
    assert left_behind(adb) == []


def test_a_bundle_runs_with_the_python_of_termux(adb: Any, echo_bundle: Path) -> None:
    termux = adb.folder / "root" / "termux"
    for name in ("usr/bin", "usr/tmp", "home"):
        (termux / name).mkdir(parents=True)
    python = termux / "usr" / "bin" / "python-of-termux"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    # Android's run-as changes the user; this one changes the folder of Termux.
    adb.install(
        "run-as",
        f"#!{sys.executable}\nimport os, sys\nassert sys.argv[1] == 'com.termux'\n"
        f"argv = [a.replace('/data/data/com.termux/files', {str(termux)!r}) "
        "for a in sys.argv[2:]]\nos.execvp(argv[0], argv)\n",
    )
    options = replace(OPTIONS, python="python-of-termux")
    with AdbDevice("PHONE1", echo_bundle, options) as device:
        assert device.run("litert", []).exit_code == 0
        assert len(list((termux / "usr" / "tmp").iterdir())) == 1
    assert adb.leftovers() == []


def test_a_device_without_python_is_refused(adb: Any, echo_bundle: Path) -> None:
    with pytest.raises(DeviceError, match=r"has no 'python7' that .* --benchmark-model PATH"):
        AdbDevice("", echo_bundle, replace(OPTIONS, python="python7")).__enter__()
    assert adb.leftovers() == []


@pytest.mark.parametrize(
    ("attached", "serial", "message"),
    [
        ({}, "", r"No Android device is attached: plug one in"),
        ({"A": "unplugged"}, "A", r"No Android device 'A' is attached: .* None is attached"),
        ({"A": "device"}, "B", r"No Android device 'B' is attached: .* Attached are A"),
        ({"A": "device", "B": "device"}, "", r"Several Android devices .* name one as adb:A"),
        ({"A": "unauthorized"}, "", r"'A' is not ready \(unauthorized\): confirm the dialog"),
        ({"A": "offline"}, "A", r"'A' is not ready \(offline\): unplug it and plug it in"),
    ],
)
def test_devices_that_cannot_be_used_are_refused(
    adb: Any, echo_bundle: Path, attached: dict[str, str], serial: str, message: str
) -> None:
    adb.attach(**attached)
    with pytest.raises(DeviceError, match=message):
        AdbDevice(serial, echo_bundle, OPTIONS).__enter__()


def test_a_run_continues_after_the_device_was_unplugged_and_attached_again(
    adb: Any, echo_bundle: Path
) -> None:
    def replug() -> None:
        time.sleep(1.0)
        adb.attach(PHONE1="unplugged")
        time.sleep(1.0)
        adb.attach(PHONE1="device")

    with AdbDevice("PHONE1", echo_bundle, OPTIONS) as device:
        thread = threading.Thread(target=replug)
        thread.start()
        run = device.run("litert", ["--sleep", "3", "--outputs-mb", "1"])
        thread.join()
    assert run.exit_code == 0
    assert left_behind(adb) == []


def test_a_device_that_stays_unplugged_is_an_error(adb: Any, echo_bundle: Path) -> None:
    with AdbDevice("PHONE1", echo_bundle, replace(OPTIONS, reconnect_s=1)) as device:
        adb.attach(PHONE1="unplugged")
        with pytest.raises(DeviceError, match=r"adb:PHONE1 broke and did not come back within 1 s"):
            device.run("litert", [])
        adb.attach(PHONE1="device")
    assert left_behind(adb) == []


@pytest.fixture
def benchmark_model(tmp_path: Path) -> DeviceOptions:
    """Options with a tool that has the interface of LiteRT's benchmark_model."""
    binary = tmp_path / "benchmark_model"
    binary.write_text(BENCHMARK_MODEL)
    return DeviceOptions(benchmark_model=binary, timeout_s=60)


@pytest.mark.parametrize("variant", ["", "builtin"])
def test_benchmark_model_gives_the_same_bits_as_the_same_kernels(
    adb: Any, exports: dict[str, Path], benchmark_model: DeviceOptions, variant: str
) -> None:
    export = read_export(exports["digits"])
    golden = read_golden(export.golden, [spec.name for spec in export.outputs])
    inputs = {name: array[:3] for name, array in golden.inputs.items()}
    artifacts = [entry for entry in export.artifacts if entry.format == "tflite"]
    target = Target("litert", variant, "adb:PHONE1")
    runs = {
        artifact.file: run
        for artifact, run in run_on_device(
            export, artifacts, inputs, target, options=benchmark_model
        )
    }
    assert len(runs) == 4
    for artifact in artifacts:
        run = runs[artifact.file]
        here = run_target(export.path / artifact.file, artifact, inputs, Target("litert", variant))
        assert run.problem == ""
        for name, expected in here.outputs.items():
            np.testing.assert_array_equal(run.outputs[name], expected)
        assert run.measured["latency_ms"] == {"mean": pytest.approx(0.0975)}
        assert run.measured["peak_memory_bytes"] == 12_500_000
        assert run.measured["load_ms"] > 0
    assert left_behind(adb) == []


def test_benchmark_model_that_fails_is_a_finding(
    adb: Any, exports: dict[str, Path], benchmark_model: DeviceOptions
) -> None:
    assert benchmark_model.benchmark_model is not None
    export = read_export(exports["digits"])
    golden = read_golden(export.golden, [spec.name for spec in export.outputs])
    target = Target("litert", "", "adb")
    for text, expected in (
        ("#!/bin/sh\necho 'ERROR: no such op' >&2; exit 1\n", "cannot run .*: ERROR: no such op"),
        ("#!/bin/sh\nfor a; do case $a in --output_filepath=*) echo short > ${a#*=};; esac; done\n",
         "wrote 6 bytes of outputs for digits.float32.tflite, which has 40"),
    ):  # fmt: skip
        benchmark_model.benchmark_model.write_text(text)
        runs = run_on_device(
            export, export.artifacts[:1], golden.inputs, target, options=benchmark_model
        )
        ((_, run),) = runs
        assert not run.outputs
        assert re.search(expected, run.problem), run.problem
    assert left_behind(adb) == []


def test_a_full_device_is_an_error(
    adb: Any, exports: dict[str, Path], benchmark_model: DeviceOptions
) -> None:
    (adb.folder / "full").touch()
    export = read_export(exports["digits"])
    golden = read_golden(export.golden, [spec.name for spec in export.outputs])
    runs = run_on_device(
        export, export.artifacts[:1], golden.inputs, Target("litert", "", "adb"),
        options=benchmark_model,
    )  # fmt: skip
    with pytest.raises(DeviceError, match="adb has no space left: free some"):
        list(runs)
    assert left_behind(adb) == []


def test_a_tool_that_hangs_is_ended(
    adb: Any, exports: dict[str, Path], benchmark_model: DeviceOptions
) -> None:
    assert benchmark_model.benchmark_model is not None
    benchmark_model.benchmark_model.write_text("#!/bin/sh\nsleep 37.5\n")
    export = read_export(exports["digits"])
    golden = read_golden(export.golden, [spec.name for spec in export.outputs])
    runs = run_on_device(
        export, export.artifacts[:1], golden.inputs, Target("litert", "", "adb"),
        options=replace(benchmark_model, timeout_s=1.5),
    )  # fmt: skip
    with pytest.raises(DeviceError, match=r"adb gave no answer within 1.5 s"):
        list(runs)
    for _ in range(150):  # the device notices the end of the connection
        running = subprocess.run(
            ["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True
        ).stdout
        if "sleep 37.5" not in running:
            break
        time.sleep(0.1)
    assert "sleep 37.5" not in running
    assert left_behind(adb) == []
