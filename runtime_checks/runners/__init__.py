"""One file a runtime, one interface (`base.Runner`), one explicit table of what there is."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from ...errors import UserError
from .base import Runner


@dataclass(frozen=True)
class Runtime:
    """Where a runtime's runner lives and which artifacts it takes.

    Attributes:
        module: Module of this package.
        runner: Name of the class in it.
        formats: Artifact formats it loads.
    """

    module: str
    runner: str
    formats: tuple[str, ...]


RUNTIMES = {
    "litert": Runtime("litert", "LiteRTRunner", ("tflite",)),
    "tf-lite": Runtime("tf_lite", "TFLiteRunner", ("tflite",)),
    "onnxruntime": Runtime("onnxruntime", "OnnxRuntimeRunner", ("onnx",)),
}


@dataclass(frozen=True)
class Target:
    """Where to run: `RUNTIME[+VARIANT][@DEVICE]`, such as `litert+reference@qemu-aarch64`."""

    runtime: str
    variant: str = ""
    device: str = "local"

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
        return cls(runtime, variant, device or "local")

    @property
    def formats(self) -> tuple[str, ...]:
        """Artifact formats that the runtime loads."""
        return RUNTIMES[self.runtime].formats

    def __str__(self) -> str:
        """Return the target as the user writes it."""
        variant = f"+{self.variant}" if self.variant else ""
        device = "" if self.device == "local" else f"@{self.device}"
        return f"{self.runtime}{variant}{device}"


def runner_class(runtime: str) -> type[Runner]:
    """Import and return the runner of a runtime; only that runtime's package is imported."""
    entry = RUNTIMES[runtime]
    found: type[Runner] = getattr(
        importlib.import_module(f".{entry.module}", __package__), entry.runner
    )
    return found
