"""ONNX's reference evaluator: NumPy, operator by operator, without optimization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import UserError
from .base import Runner, TensorInfo


class OnnxReferenceRunner(Runner):
    """Runs .onnx files on `onnx.reference.ReferenceEvaluator`."""

    runtime = "onnx-reference"

    _evaluator: Any = None
    _graph: Any = None

    def _open(self) -> None:
        try:
            import onnx
            from onnx.reference import ReferenceEvaluator
        except ImportError as error:
            raise UserError(
                "The target 'onnx-reference' needs onnx. Install it: pip install onnx"
            ) from error
        model = onnx.load(self.artifact)
        self._graph = model.graph
        self._evaluator = ReferenceEvaluator(model, new_ops=[_global_max_pool()])

    def _close(self) -> None:
        self._evaluator = self._graph = None

    def _signature(self) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
        return (
            tuple(_info(value) for value in self._graph.input),
            tuple(_info(value) for value in self._graph.output),
        )

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [info.name for info in self.outputs]
        # NaN and infinity among the inputs must not raise warnings.
        with np.errstate(invalid="ignore", over="ignore"):
            return dict(zip(names, self._evaluator.run(names, dict(inputs))))

    def describe(self) -> dict[str, object]:
        """Return version and kernels."""
        import onnx

        return {
            "runtime": self.runtime,
            "versions": {"onnx": onnx.__version__, "numpy": np.__version__},
            "kernels": "NumPy, op by op, no optimization",
            "threads": self.threads,
        }


def _global_max_pool() -> type:
    """Return GlobalMaxPool by its definition; onnx 1.23 takes other axes unless there are two."""
    from onnx.reference.op_run import OpRun

    class GlobalMaxPool(OpRun):
        op_domain = ""

        def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
            return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)

    return GlobalMaxPool


def _info(value: Any) -> TensorInfo:
    """Translate one ValueInfoProto; symbolic sizes become -1."""
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    sizes = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    return TensorInfo(value.name, sizes, np.dtype(tensor_dtype_to_np_dtype(tensor.elem_type)))
