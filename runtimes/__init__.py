"""One file a runtime, one interface (`base.Runner`), one explicit table of what there is."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..artifacts.precisions import Arithmetic, precision_named
from ..errors import UserError
from .base import Runner
from .isolated import IsolatedRunner, environment

LOCAL = "local"

_NO_REFERENCE = "onnx has no reference for the quantizing operators of the files' opset"


@dataclass(frozen=True)
class Runtime:
    """Where a runtime's runner lives and which artifacts it takes.

    Attributes:
        module: Module of this package; empty for a runtime that only a device has.
        runner: Name of the class in it.
        formats: Artifact formats it loads.
        package: The module whose presence shows that the runtime is installed.
        install: What `pip install` calls it.
        home: The device it runs on when a target names none.
        unable: Kind of arithmetic to the reason why the runtime has no kernels for it.
    """

    module: str
    runner: str
    formats: tuple[str, ...]
    package: str
    install: str
    home: str = LOCAL
    unable: Mapping[Arithmetic, str] = field(default_factory=dict)


RUNTIMES = {
    "litert": Runtime("litert", "LiteRTRunner", ("tflite",), "ai_edge_litert", "ai-edge-litert"),
    "tflite-runtime": Runtime(
        "tflite_runtime",
        "TFLiteRuntimeRunner",
        ("tflite",),
        "tflite_runtime",
        "tflite-runtime==2.14.0 'numpy<2'",
    ),
    "litert-compiled": Runtime(
        "litert_compiled", "LiteRTCompiledRunner", ("tflite",), "ai_edge_litert", "ai-edge-litert"
    ),
    "tf-lite": Runtime("tf_lite", "TFLiteRunner", ("tflite",), "tensorflow", "tensorflow"),
    "onnxruntime": Runtime(
        "onnxruntime", "OnnxRuntimeRunner", ("onnx",), "onnxruntime", "onnxruntime"
    ),
    "onnx-reference": Runtime(
        "onnx_reference",
        "OnnxReferenceRunner",
        ("onnx",),
        "onnx",
        "onnx",
        unable={
            Arithmetic.INTEGER: _NO_REFERENCE,
            Arithmetic.HYBRID: _NO_REFERENCE,
        },
    ),
    "openvino": Runtime("openvino", "OpenVinoRunner", ("tflite", "onnx"), "openvino", "openvino"),
    "tflite-micro": Runtime(
        "tflite_micro",
        "TFLiteMicroRunner",
        ("tflite",),
        "tflite_micro",
        "--pre tflite-micro",
        unable={
            Arithmetic.FLOAT16: "its DEQUANTIZE takes no float16 weights",
            Arithmetic.HYBRID: "it has no kernels for float inputs with int8 weights",
        },
    ),
    # `devices.browser` drives these.
    "litert-web": Runtime("", "", ("tflite",), "playwright", "playwright", "browser"),
    "onnxruntime-web": Runtime("", "", ("onnx",), "playwright", "playwright", "browser"),
}


@dataclass(frozen=True)
class Target:
    """Where to run: `RUNTIME[+VARIANT][@DEVICE]`, such as `litert+reference@qemu-aarch64`."""

    runtime: str
    variant: str = ""
    device: str = LOCAL

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read a target as the user writes it.

        Raises:
            UserError: The runtime is unknown.
        """
        what, _, device = text.strip().partition("@")
        runtime, _, variant = what.partition("+")
        if runtime not in RUNTIMES:
            raise UserError(
                f"A target is RUNTIME[+VARIANT][@DEVICE] with a runtime among "
                f"{', '.join(RUNTIMES)}. Received: '{text}'."
            )
        return cls(runtime, variant, device or RUNTIMES[runtime].home)

    @property
    def formats(self) -> tuple[str, ...]:
        """Artifact formats that the runtime loads."""
        return RUNTIMES[self.runtime].formats

    def cannot_run(self, precision: str) -> str:
        """Return why the runtime has no kernels for a precision; empty where it has them."""
        return RUNTIMES[self.runtime].unable.get(precision_named(precision).arithmetic, "")

    def __str__(self) -> str:
        """Return the target as the user writes it."""
        variant = f"+{self.variant}" if self.variant else ""
        device = "" if self.device == LOCAL else f"@{self.device}"
        return f"{self.runtime}{variant}{device}"


def runner_class(runtime: str) -> type[Runner]:
    """Import and return the runner of a runtime; only that runtime's package is imported."""
    entry = RUNTIMES[runtime]
    found: type[Runner] = getattr(
        importlib.import_module(f".{entry.module}", __package__), entry.runner
    )
    return found


def make_runner(target: Target, artifact: Path, *, threads: int = 1) -> Runner:
    """Return the runner of a target, in the runtime's own environment where it is not in this one.

    Args:
        target: Runtime and variant.
        artifact: The file to load.
        threads: Threads that the runtime may use.

    Raises:
        UserError: The variant is unknown.
    """
    kind = runner_class(target.runtime)
    if importlib.util.find_spec(RUNTIMES[target.runtime].package) is None:
        python = environment(target.runtime)
        if python is not None:
            return IsolatedRunner(
                artifact, python=python, kind=kind, threads=threads, variant=target.variant
            )
    return kind(artifact, threads=threads, variant=target.variant)
