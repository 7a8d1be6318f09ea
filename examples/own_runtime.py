"""Add a runtime of your own to the checks: an accelerator that stores weights in bfloat16.

    python examples/own_runtime.py [FOLDER]

Any program that can load and run a .tflite or .onnx file can be a target: subclass `Runner`,
implement five methods and register the class. This example simulates an accelerator by ONNX Runtime
with every float weight rounded to bfloat16, which has 8 bits of precision instead of 24. The check
fails, since the accelerator is less accurate than a float32 file requires.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import renormlite as rl
from renormlite.models import digits
from renormlite.models.data import handwritten_digits
from renormlite.models.recipe import train_classifier
from renormlite.runtimes.base import Runner, TensorInfo


class BFloat16Accelerator(Runner):
    """ONNX Runtime with weights rounded to bfloat16."""

    _session: Any = None

    def _open(self) -> None:
        model = onnx.load(self.artifact)
        for tensor in model.graph.initializer:
            weight = onnx.numpy_helper.to_array(tensor)
            if weight.dtype == np.float32:
                bits = weight.view(np.uint32) & np.uint32(0xFFFF0000)
                rounded = bits.view(np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(rounded, tensor.name))
        self._session = onnxruntime.InferenceSession(model.SerializeToString())

    def _close(self) -> None:
        self._session = None

    def _signature(self) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
        def infos(values: Any) -> tuple[TensorInfo, ...]:
            return tuple(TensorInfo(v.name, tuple(v.shape), np.dtype("float32")) for v in values)

        return infos(self._session.get_inputs()), infos(self._session.get_outputs())

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [info.name for info in self.outputs]
        return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))

    def describe(self) -> dict[str, object]:
        """Return a description of the runtime."""
        return {"runtime": self.runtime, "versions": {"onnxruntime": onnxruntime.__version__}}


def main(folder: Path) -> int:
    """Train, export, check on the accelerator; the exit code is 0 if the checks detect the loss."""
    keras.utils.set_random_seed(0)
    model = digits.build(rl.BatchRenormalization)
    trained = train_classifier(model, handwritten_digits(), epochs=2, batch_size=16)
    rl.export_model(model, folder, formats=("onnx",), inputs=trained.test.x[:100])

    rl.register_runtime("bfloat16-accelerator", BFloat16Accelerator, formats=("onnx",))
    report = rl.check_parity(folder, targets=("onnxruntime", "bfloat16-accelerator"))
    for result in report.results:
        print(f"{result.target}: {'passed' if result.passed else 'FAILED'}")
    return 0 if [result.passed for result in report.results] == [True, False] else 1


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/own_runtime")))
