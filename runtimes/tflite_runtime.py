"""TensorFlow Lite as devices have long had it: the `tflite-runtime` package.

Its last release, 2.14, needs Python 3.11 or older and NumPy 1, so on a host it usually lives in an
environment of its own (`isolated`).
"""

from __future__ import annotations

from types import ModuleType

from ..errors import UserError
from .interpreter import InterpreterRunner


class TFLiteRuntimeRunner(InterpreterRunner):
    """Runs .tflite files on tflite-runtime."""

    runtime = "tflite-runtime"

    def _load_module(self) -> ModuleType:
        try:
            from tflite_runtime import interpreter
        except ImportError as error:
            raise UserError(
                "The target 'tflite-runtime' needs tflite-runtime, Python 3.11 or older and NumPy "
                "1. Install it: pip install tflite-runtime==2.14.0 'numpy<2'"
            ) from error
        return interpreter

    def _version(self) -> dict[str, str]:
        import tflite_runtime

        return {"tflite-runtime": tflite_runtime.__version__}
