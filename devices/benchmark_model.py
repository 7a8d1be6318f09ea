"""Android devices without Python: LiteRT's `benchmark_model`, copied and run through adb.

The binary reads each input tensor from a file of raw bytes (`--input_layer_value_files`) and writes
all outputs, one after the other in the model's order, to another (`--output_filepath`). That makes
it a runner: the host provides its inputs and compares its outputs.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..runtimes.base import ArtifactError, Runner, TensorInfo
from ..runtimes.litert import LiteRTRunner
from .adb import Adb
from .base import ConnectionLostError, DeviceError, DeviceOptions

_LEASE_S = 300
_TIMED_RUNS = 50
# Once per run; by default the tool repeats each for a second.
_ONCE = ("--num_runs=1", "--warmup_runs=0", "--min_secs=0", "--warmup_min_secs=0")


class BenchmarkModelRunner(Runner):
    """Runs one .tflite file on an Android device.

    Args:
        artifact: The file to load.
        threads: Threads that the runtime may use.
        variant: One of `variants`.
        adb: The device.
        options: Where the binary is, and how long it may take.
    """

    runtime = "litert"
    variants: ClassVar[Mapping[str, str]] = {
        "": "as benchmark_model chooses",
        "xnnpack": "XNNPACK required",
        "builtin": "builtin kernels, no delegate",
    }
    _flags: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "": (),
        "xnnpack": ("--use_xnnpack=true",),
        "builtin": ("--use_xnnpack=false",),
    }

    def __init__(
        self,
        artifact: Path,
        *,
        threads: int = 1,
        variant: str = "",
        adb: Adb,
        options: DeviceOptions,
    ) -> None:
        super().__init__(artifact, threads=threads, variant=variant)
        self._adb = adb
        self._options = options
        self._folder = ""
        self._scratch = tempfile.TemporaryDirectory(prefix="renormlite-")
        self._said = ""

    def _open(self) -> None:
        binary = self._options.benchmark_model
        if binary is None or not binary.is_file():
            raise DeviceError(
                f"--benchmark-model must name LiteRT's binary for the device. Received: '{binary}'."
            )
        made = self._adb.shell("mktemp -d $TMPDIR/renormlite-XXXXXX")
        if made.code != 0:
            raise DeviceError(f"{self._adb.name} has no writable folder: {made.last_line}")
        self._folder = made.out.decode().strip()
        self._adb.shell(self._watch())
        limit = self._options.timeout_s
        self._adb.push(binary, f"{self._folder}/benchmark_model", timeout_s=limit)
        self._adb.push(self.artifact, f"{self._folder}/model.tflite", timeout_s=limit)
        self._adb.shell(f"chmod 755 {self._folder}/benchmark_model")

    def _watch(self) -> str:
        """Return the command that starts a watchdog on the device, in case the host disappears."""
        age = f"$(($(date +%s) - $(stat -c %Y {self._folder}/lease)))"
        wait = f"while [ {age} -lt {_LEASE_S} ]; do sleep 5; done; rm -rf {self._folder}"
        lease = f"touch {self._folder}/lease"
        return f"{lease}; setsid sh -c '{wait}' </dev/null >/dev/null 2>&1 &"

    def _close(self) -> None:
        self._scratch.cleanup()
        if self._folder:
            folder, self._folder = self._folder, ""
            try:
                self._adb.shell(f"rm -rf {folder}", timeout_s=20)
            except ConnectionLostError:
                return  # unreachable: the watchdog on the device removes the folder

    def _signature(self) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
        # The tool reports neither names nor types, so LiteRT on this machine reads them from the
        # file.
        with LiteRTRunner(self.artifact) as local:
            return local.inputs, local.outputs

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        limit = self._options.timeout_s
        scratch = Path(self._scratch.name)
        for index, info in enumerate(self.inputs):
            file = scratch / f"input{index}"
            file.write_bytes(np.ascontiguousarray(inputs[info.name]).tobytes())
            self._adb.push(file, f"{self._folder}/input{index}", timeout_s=limit)
        self._benchmark(f"--output_filepath={self._folder}/output", *_ONCE)
        self._adb.pull(f"{self._folder}/output", scratch / "output", timeout_s=limit)
        return self._split((scratch / "output").read_bytes())

    def _split(self, data: bytes) -> dict[str, np.ndarray]:
        """Split the outputs, which the file holds one after the other."""
        expected = sum(int(np.prod(info.shape)) * info.dtype.itemsize for info in self.outputs)
        if len(data) != expected:
            raise ArtifactError(
                f"benchmark_model wrote {len(data)} bytes of outputs for {self.artifact.name}, "
                f"which has {expected}: it must be of TensorFlow 2.14 or newer."
            )
        outputs, start = {}, 0
        for info in self.outputs:
            size = int(np.prod(info.shape))
            outputs[info.name] = np.frombuffer(data, info.dtype, size, start).reshape(info.shape)
            start += size * info.dtype.itemsize
        return outputs

    def _benchmark(self, *flags: str) -> str:
        """Run the tool on the inputs on the device and return its output."""
        names = [f"i{index}" for index in range(len(self.inputs))]
        shapes = [",".join(str(size) for size in info.shape) for info in self.inputs]
        files = [f"{name}:{self._folder}/input{index}" for index, name in enumerate(names)]
        arguments = [
            f"--graph={self._folder}/model.tflite",
            f"--num_threads={self.threads}",
            f"--input_layer={','.join(names)}",
            f"--input_layer_shape={':'.join(shapes)}",
            f"--input_layer_value_files={','.join(files)}",
            *self._flags[self.variant],
            *flags,
        ]
        found = self._adb.shell(
            f"touch {self._folder}/lease; rm -f {self._folder}/output; "
            f"{self._folder}/benchmark_model {' '.join(arguments)}",
            timeout_s=self._options.timeout_s,
        )
        self._said = (found.out + found.err).decode(errors="replace")
        if found.code != 0:
            raise ArtifactError(
                f"benchmark_model cannot run {self.artifact.name} on {self._adb.name}: "
                f"{found.last_line}"
            )
        return self._said

    def measured(self) -> dict[str, Any]:
        """Time the inputs of the last inference, as the tool itself measures."""
        said = self._benchmark(
            f"--num_runs={_TIMED_RUNS}", "--min_secs=0", "--report_peak_memory_footprint=true"
        )
        micro = {
            key: float(value)
            for key, value in re.findall(r"(Init|Inference \(avg\)): ([\d.e+]+)", said)
        }
        peak = re.search(r"peak memory footprint \(MB\)[^=\d]*[:=]\s*([\d.]+)", said)
        measured: dict[str, Any] = {}
        if "Init" in micro:
            measured["load_ms"] = micro["Init"] / 1e3
        if "Inference (avg)" in micro:
            # The tool reports the mean of its runs, no percentile.
            measured["latency_ms"] = {"mean": micro["Inference (avg)"] / 1e3}
        if peak:
            measured["peak_memory_bytes"] = int(float(peak.group(1)) * 1e6)
        return measured

    def describe(self) -> dict[str, object]:
        """Return a description of what ran: the binary, kernels, threads."""
        delegated = re.search(r"(\w+) delegate", self._said)
        return {
            "runtime": self.runtime,
            "versions": {"benchmark_model": "of the user"},
            "kernels": self.variants[self.variant],
            "threads": self.threads,
            "delegate": delegated.group(1) if delegated else None,
        }
