"""The runtimes: one module each, one interface (`base.Runner`), one table."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..artifacts.precisions import Arithmetic, precision_named
from ..errors import UserError, did_you_mean
from .base import Runner
from .isolated import IsolatedRunner, environment, this_python

LOCAL = "local"

_NO_REFERENCE = "onnx has no reference for the quantizing operators of the files' opset"


@dataclass(frozen=True)
class Runtime:
    """An entry of the table of runtimes.

    Attributes:
        runner: "MODULE:CLASS" in this package, imported on use; the class itself for a runtime that
            a user registers; empty for a runtime that only a device has.
        formats: File formats that it loads.
        package: The module whose presence shows that the runtime is installed; empty where nothing
            has to be installed.
        install: Arguments of `pip install` that install it.
        home: The device it runs on when a target names none.
        unable: Kind of arithmetic to the reason why the runtime has no kernels for it.
        crashes: Whether some valid files crash it; it then always runs in a child process.
        unsaturated: Precisions that it computes in floats, without the limits of the integers.
        follows_rules: Whether it rounds the sums of integer files by one rule; one that computes
            them in floats does not.
    """

    runner: str | type[Runner]
    formats: tuple[str, ...]
    package: str
    install: str
    home: str = LOCAL
    unable: Mapping[Arithmetic, str] = field(default_factory=dict)
    crashes: bool = False
    unsaturated: tuple[str, ...] = ()
    follows_rules: bool = True

    @property
    def installed(self) -> bool:
        """Whether this Python can import the runtime."""
        return not self.package or importlib.util.find_spec(self.package) is not None


RUNTIMES = {
    "litert": Runtime("litert:LiteRTRunner", ("tflite",), "ai_edge_litert", "ai-edge-litert"),
    "tflite-runtime": Runtime(
        "tflite_runtime:TFLiteRuntimeRunner",
        ("tflite",),
        "tflite_runtime",
        "tflite-runtime==2.14.0 'numpy<2'",
    ),
    "litert-compiled": Runtime(
        "litert_compiled:LiteRTCompiledRunner", ("tflite",), "ai_edge_litert", "ai-edge-litert"
    ),
    "tf-lite": Runtime("tf_lite:TFLiteRunner", ("tflite",), "tensorflow", "tensorflow"),
    "onnxruntime": Runtime(
        "onnxruntime:OnnxRuntimeRunner", ("onnx",), "onnxruntime", "onnxruntime"
    ),
    "onnx-reference": Runtime(
        "onnx_reference:OnnxReferenceRunner",
        ("onnx",),
        "onnx",
        "onnx",
        unable={
            Arithmetic.INTEGER: _NO_REFERENCE,
            Arithmetic.HYBRID: _NO_REFERENCE,
        },
    ),
    # Version 2026.4 crashes on a Reverse, as in an unrolled Bidirectional GRU.
    "openvino": Runtime(
        "openvino:OpenVinoRunner",
        ("tflite", "onnx"),
        "openvino",
        "openvino",
        crashes=True,
        unsaturated=("int16x8",),
        follows_rules=False,
    ),
    "tflite-micro": Runtime(
        "tflite_micro:TFLiteMicroRunner",
        ("tflite",),
        "tflite_micro",
        "--pre tflite-micro",
        unable={
            Arithmetic.FLOAT16: "its DEQUANTIZE takes no float16 weights",
            Arithmetic.HYBRID: "it has no kernels for float inputs with int8 weights",
        },
    ),
    # `devices.browser` drives these.
    "litert-web": Runtime("", ("tflite",), "playwright", "playwright", "browser"),
    "onnxruntime-web": Runtime("", ("onnx",), "playwright", "playwright", "browser"),
}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_NO_KERNEL = re.compile(r"Didn't find op for builtin opcode '(\w+)' version '(\d+)'")


def register_runtime(
    name: str,
    runner: type[Runner],
    *,
    formats: Sequence[str],
    unable: Mapping[Arithmetic, str] | None = None,
) -> None:
    """Register a custom runtime as a target of the checks.

    Afterwards `check_parity(directory, targets=[name])` runs files on it, and
    `renormlite check DIR --on NAME --import MODULE` does where importing MODULE registers it.
    See docs/extending.md and examples/own_runtime.py.

    Args:
        name: Its name in targets: letters, digits, dots and dashes. Registering the same name again
            replaces the runner; names of built-in runtimes cannot be used.
        runner: A subclass of `runtimes.base.Runner` that implements `_open`, `_close`,
            `_signature`, `_infer` and `describe`.
        formats: File formats that it loads, among "tflite" and "onnx".
        unable: Kind of arithmetic to the reason why the runtime has no kernels for it; files of
            such precisions are left out and the report says why.

    Raises:
        UserError: The name is invalid or that of a built-in runtime, the runner is not a subclass
            of `Runner`, or a format is unknown.
    """
    if not _NAME.fullmatch(name) or isinstance(getattr(RUNTIMES.get(name), "runner", None), str):
        raise UserError(
            "A runtime's name must consist of letters, digits, dots and dashes, and be none of the "
            f"built-in ones ({', '.join(RUNTIMES)}). Received: {name!r}."
        )
    if not (isinstance(runner, type) and issubclass(runner, Runner)):
        raise UserError(
            f"Expected a subclass of renormlite.runtimes.base.Runner. Received: {runner!r}."
        )
    unknown = set(formats) - {known for entry in RUNTIMES.values() for known in entry.formats}
    if unknown or not formats or isinstance(formats, str):
        raise UserError(
            f'Expected formats among "tflite" and "onnx", such as ("onnx",). Received: {formats!r}.'
        )
    runner.runtime = name
    RUNTIMES[name] = Runtime(runner, tuple(formats), "", "", unable=unable or {})


# The default runtime of each format.
HOSTS = {"tflite": "litert", "onnx": "onnxruntime"}


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
                f"{', '.join(RUNTIMES)}. Received: '{text}'.{did_you_mean(runtime, RUNTIMES)}"
            )
        return cls(runtime, variant, device or RUNTIMES[runtime].home)

    @property
    def formats(self) -> tuple[str, ...]:
        """Artifact formats that the runtime loads."""
        return RUNTIMES[self.runtime].formats

    def cannot_run(self, precision: str) -> str:
        """Return why the runtime cannot run a precision; empty if it can."""
        return RUNTIMES[self.runtime].unable.get(precision_named(precision).arithmetic, "")

    def no_kernel(self, problem: str) -> str:
        """Return which operator the kernels of a variant lack; empty if none.

        Reference kernels serve to compare others with. That they lack an operator is no fault of a
        file, unlike an operator that the kernels of the runtime itself lack.

        Args:
            problem: Why a file could not be loaded.
        """
        found = _NO_KERNEL.search(problem) if self.variant == "reference" else None
        if not found:
            return ""
        kind, version = found.groups()
        return f"{self.runtime} has no reference kernel for {kind} of version {version}"

    def __str__(self) -> str:
        """Return the target as the user writes it."""
        variant = f"+{self.variant}" if self.variant else ""
        device = "" if self.device == LOCAL else f"@{self.device}"
        return f"{self.runtime}{variant}{device}"


def computed_in_floats(precision: str) -> bool:
    """Return whether some runtime computes files of that precision in floats, not in integers."""
    return any(precision in runtime.unsaturated for runtime in RUNTIMES.values())


def runner_class(runtime: str) -> type[Runner]:
    """Import and return the runner of a runtime; only that runtime's package is imported."""
    runner = RUNTIMES[runtime].runner
    if not isinstance(runner, str):
        return runner
    module, _, name = runner.partition(":")
    found: type[Runner] = getattr(importlib.import_module(f".{module}", __package__), name)
    return found


def usable_here(runtime: str) -> bool:
    """Return whether a runtime is installed in this environment or in one of its own."""
    return RUNTIMES[runtime].installed or environment(runtime) is not None


def make_runner(
    target: Target, artifact: Path, *, threads: int = 1, fenced: bool = False
) -> Runner:
    """Return the runner of a target, in another environment if the runtime is not in this one.

    Args:
        target: Runtime and variant.
        artifact: The file to load.
        threads: Threads that the runtime may use.
        fenced: Whether it runs in a child process, so that a crash does not end this process.

    Raises:
        UserError: The variant is unknown.
    """
    kind, runtime = runner_class(target.runtime), RUNTIMES[target.runtime]
    fenced = (fenced or runtime.crashes) and isinstance(runtime.runner, str)
    if fenced or not runtime.installed:
        python = this_python() if runtime.installed else environment(target.runtime)
        if python is not None:
            return IsolatedRunner(
                artifact, python=python, kind=kind, threads=threads, variant=target.variant
            )
    return kind(artifact, threads=threads, variant=target.variant)
