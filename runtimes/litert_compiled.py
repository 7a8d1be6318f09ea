"""LiteRT's CompiledModel: the newer interface of `ai-edge-litert`, which chooses its kernels."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ..errors import UserError
from ..quiet import held_back_stderr
from .base import Runner, TensorInfo
from .interpreter import tensor_info

_MODES = {"": "DELEGATE", "xnnpack": "DELEGATE", "builtin": "BUILTIN", "reference": "REFERENCE"}


class LiteRTCompiledRunner(Runner):
    """Runs .tflite files on LiteRT's CompiledModel, on the CPU."""

    runtime = "litert-compiled"
    variants: ClassVar[Mapping[str, str]] = {
        "": "the runtime's default: XNNPACK where it can, builtin kernels elsewhere",
        "xnnpack": "XNNPACK required for every op: the check fails if it leaves one out",
        "builtin": "optimized builtin kernels, no delegate",
        "reference": "reference kernels, no delegate",
    }

    _model: Any = None
    _fed: Any = None
    _read: Any = None

    def _open(self) -> None:
        try:
            from ai_edge_litert.compiled_model import CompiledModel
            from ai_edge_litert.cpu_kernel_mode import CpuKernelMode
            from ai_edge_litert.options import CpuOptions, Options
        except ImportError as error:
            raise UserError(
                "The target 'litert-compiled' needs ai-edge-litert 2.3 or newer. "
                "Install it: pip install ai-edge-litert"
            ) from error
        mode = CpuKernelMode[_MODES[self.variant]]
        options = Options(cpu_options=CpuOptions(num_threads=self.threads, kernel_mode=mode))
        # It logs every missing accelerator, on loading and on unloading.
        with held_back_stderr():
            try:
                self._model = CompiledModel.from_file(str(self.artifact), options=options)
                self._fed = self._model.create_input_buffers(0)
                self._read = self._model.create_output_buffers(0)
            except (ValueError, RuntimeError) as error:
                # The frames hold the objects made so far; release them while their log lines are
                # suppressed.
                traceback.clear_frames(error.__traceback__)
                raise

    def _close(self) -> None:
        with held_back_stderr():
            for buffer in [*(self._fed or ()), *(self._read or ())]:
                buffer.destroy()
            if self._model is not None:
                self._model.close()
            self._model = self._fed = self._read = None

    def _signature(self) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
        # The CompiledModel names the tensors in the order it wants them, but not their scales.
        from ai_edge_litert.interpreter import Interpreter

        plain = Interpreter(model_path=str(self.artifact))
        details = [*plain.get_input_details(), *plain.get_output_details()]
        by_name = {detail["name"]: tensor_info(detail) for detail in details}
        signature = self._model.get_signature_by_index(0)
        return (
            tuple(by_name[name] for name in signature["inputs"]),
            tuple(by_name[name] for name in signature["outputs"]),
        )

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        for info, buffer in zip(self.inputs, self._fed):
            buffer.write(np.ascontiguousarray(inputs[info.name]))
        self._model.run_by_index(0, self._fed, self._read)
        return {
            info.name: np.array(buffer.read(int(np.prod(info.shape)), info.dtype.type)).reshape(
                info.shape
            )
            for info, buffer in zip(self.outputs, self._read)
        }

    def describe(self) -> dict[str, object]:
        """Return version, kernels, threads and whether XNNPACK took every op."""
        import ai_edge_litert

        whole = bool(self._model.is_fully_accelerated())
        record: dict[str, object] = {
            "runtime": self.runtime,
            "versions": {"ai-edge-litert": ai_edge_litert.__version__},
            "kernels": self.variants[self.variant],
            "threads": self.threads,
            "fully_accelerated": whole,
        }
        if self.variant == "xnnpack" and not whole:
            record["fallback"] = "XNNPACK was required but left ops to the builtin kernels"
        return record
