"""TensorFlow Lite for Microcontrollers, built for this machine."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

from ..errors import UserError
from ..quiet import held_back_stderr
from .base import ArtifactError, Runner, TensorInfo
from .interpreter import tensor_info


class TFLiteMicroRunner(Runner):
    """Runs .tflite files on the interpreter of the `tflite-micro` package, on one thread."""

    runtime = "tflite-micro"

    _interpreter: Any = None

    def _open(self) -> None:
        try:
            from tflite_micro import runtime
        except ImportError as error:
            raise UserError(
                "The target 'tflite-micro' needs tflite-micro. "
                "Install it: pip install --pre tflite-micro"
            ) from error
        try:
            # Native code prints the reason of a failure; the error has none.
            with held_back_stderr() as printed:
                self._interpreter = runtime.Interpreter.from_file(str(self.artifact))
        except Exception as error:  # damaged files raise exceptions of many types
            reason = " ".join(printed().split()) or str(error).strip()
            raise ArtifactError(
                f"tflite-micro cannot load {self.artifact.name}: {reason}"
            ) from error

    def _close(self) -> None:
        self._interpreter = None

    def _signature(self) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
        # Microcontrollers keep no names; the file does, in the same order.
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise UserError(
                "The target 'tflite-micro' reads a file's input and output names with "
                "ai-edge-litert. Install it: pip install ai-edge-litert"
            ) from error
        plain = Interpreter(model_path=str(self.artifact))
        return (
            tuple(tensor_info(detail) for detail in plain.get_input_details()),
            tuple(tensor_info(detail) for detail in plain.get_output_details()),
        )

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        for index, info in enumerate(self.inputs):
            self._interpreter.set_input(inputs[info.name], index)
        self._interpreter.invoke()
        return {
            info.name: np.array(self._interpreter.get_output(index))
            for index, info in enumerate(self.outputs)
        }

    def describe(self) -> dict[str, object]:
        """Return version and kernels."""
        return {
            "runtime": self.runtime,
            "versions": {"tflite-micro": version("tflite-micro")},
            "kernels": "reference kernels, as built without a vendor's library",
            "threads": 1,
        }
