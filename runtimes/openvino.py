"""OpenVINO on the CPU, which reads both formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import UserError
from .base import Runner, TensorInfo


class OpenVinoRunner(Runner):
    """Runs .tflite and .onnx files on OpenVINO's CPU plugin, in the precision of the file."""

    runtime = "openvino"

    _model: Any = None
    _compiled: Any = None

    def _open(self) -> None:
        try:
            import openvino
        except ImportError as error:
            raise UserError(
                "The target 'openvino' needs openvino. Install it: pip install openvino"
            ) from error
        core = openvino.Core()
        # Without the hint the plugin computes float32 networks in bfloat16 where the CPU has it.
        properties = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": str(self.threads),
            "EXECUTION_MODE_HINT": "ACCURACY",
        }
        self._model = core.read_model(str(self.artifact))
        self._compiled = core.compile_model(self._model, "CPU", properties)

    def _close(self) -> None:
        self._model = self._compiled = None

    def _signature(self) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
        # The names in the file; compiling may add others.
        return (
            tuple(_info(port) for port in self._model.inputs),
            tuple(_info(port) for port in self._model.outputs),
        )

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = self._compiled([inputs[info.name] for info in self.inputs])
        return {info.name: np.array(results[i]) for i, info in enumerate(self.outputs)}

    def describe(self) -> dict[str, object]:
        """Return version, precision, threads and the devices that ran."""
        import openvino

        devices = [str(name) for name in self._compiled.get_property("EXECUTION_DEVICES")]
        precision = str(self._compiled.get_property("INFERENCE_PRECISION_HINT"))
        record: dict[str, object] = {
            "runtime": self.runtime,
            "versions": {"openvino": openvino.__version__},
            "kernels": f"CPU plugin, {precision}",
            "threads": self.threads,
            "devices": devices,
        }
        if devices != ["CPU"] or ("float" not in precision and "f32" not in precision):
            record["fallback"] = f"CPU in float32 was required, but {devices} in {precision} ran"
        return record


def _info(port: Any) -> TensorInfo:
    """Translate one port; free sizes become -1.

    An input that a loop reads also has the name of the loop's variable; its node has that of the
    file.
    """
    name = port.get_node().get_friendly_name()
    if name not in port.get_names():
        name = port.get_any_name()
    sizes = tuple(d.get_length() if d.is_static else -1 for d in port.get_partial_shape())
    return TensorInfo(name, sizes, np.dtype(port.get_element_type().to_dtype()))
