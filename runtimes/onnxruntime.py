"""ONNX Runtime on the CPU, at each level of graph optimization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ..errors import UserError
from .base import ArtifactError, TensorInfo, TensorReader

_LEVELS = {
    "": "ORT_ENABLE_ALL",
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
# Levels at which operators between DequantizeLinear and QuantizeLinear run in integers.
_FUSING = ("", "extended", "all")
# Where a model that is not read from a file looks for weights in other files.
_FOLDER = "session.model_external_initializers_file_folder_path"
_PROVIDER = "CPUExecutionProvider"
# ONNX Runtime's names of the element types of inputs and outputs.
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class OnnxRuntimeRunner(TensorReader):
    """Runs .onnx files on ONNX Runtime's CPU provider."""

    runtime = "onnxruntime"
    variants: ClassVar[Mapping[str, str]] = {
        "": "all graph optimizations, the runtime's default",
        "disabled": "no graph optimization",
        "basic": "basic graph optimizations",
        "extended": "extended graph optimizations",
        "all": "all graph optimizations",
    }

    _session: Any = None

    def _open(self) -> None:
        try:
            import onnxruntime  # noqa: F401
        except ImportError as error:
            raise UserError(
                "The target 'onnxruntime' needs onnxruntime. Install it: pip install onnxruntime"
            ) from error
        self._session = self._load(str(self.artifact))

    def _load(self, model: str | bytes) -> Any:
        """Return a session at the variant's level of optimization."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(
            onnxruntime.GraphOptimizationLevel, _LEVELS[self.variant]
        )
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors are raised, and their text may quote the file
        if isinstance(model, bytes):
            options.add_session_config_entry(_FOLDER, str(self.artifact.parent))
            # On x86, int8 activations become uint8, except those that are outputs. Their ops would
            # run in floats.
            options.add_session_config_entry("session.qdqisint8allowed", "1")
        # The fallback, which tries the same provider again, prints the failure on standard output.
        return onnxruntime.InferenceSession(
            model, options, providers=[_PROVIDER], enable_fallback=False
        )

    def _close(self) -> None:
        self._session = None

    def _signature(self) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
        return (
            tuple(_info(value) for value in self._session.get_inputs()),
            tuple(_info(value) for value in self._session.get_outputs()),
        )

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [info.name for info in self.outputs]
        return dict(zip(names, self._session.run(names, dict(inputs))))

    def _infer_all(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once with every value as an output and return the values by name.

        A value that is an output cannot be fused away, so with optimizations on some kernels differ
        from an ordinary run. Floats inside a group that runs in integers are therefore not
        requested: as outputs they would turn the group into float operators.
        """
        import onnx

        # Weights in another file stay there: the model could not be written with them.
        model = onnx.load(self.artifact, load_external_data=False)
        known = {value.name for value in model.graph.output}
        hidden = _inside_groups(model.graph.node) if self.variant in _FUSING else set()
        for node in model.graph.node:
            for name in node.output:
                if name and name not in known and name not in hidden:
                    model.graph.output.append(onnx.ValueInfoProto(name=name))
        session = self._load(model.SerializeToString())
        names = [value.name for value in session.get_outputs()]
        return {**inputs, **dict(zip(names, session.run(names, dict(inputs))))}

    def describe(self) -> dict[str, object]:
        """Return version, provider, optimization level and threads."""
        import onnxruntime

        providers = self._session.get_providers()
        record: dict[str, object] = {
            "runtime": self.runtime,
            "versions": {"onnxruntime": onnxruntime.__version__},
            "kernels": self.variants[self.variant],
            "threads": self.threads,
            "providers": providers,
        }
        if providers != [_PROVIDER]:
            record["fallback"] = f"{_PROVIDER} was required but {providers} were used"
        return record


def _inside_groups(nodes: Sequence[Any]) -> set[str]:
    """Return the floats inside the groups between DequantizeLinear and QuantizeLinear."""
    real = {out for node in nodes if node.op_type == "DequantizeLinear" for out in node.output}
    computed = {out for node in nodes if real & set(node.input) for out in node.output}
    taken = {node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    return real | (computed & taken)


def _info(value: Any) -> TensorInfo:
    """Translate one NodeArg; symbolic sizes become -1."""
    if value.type not in _DTYPES:
        raise ArtifactError(
            f"'{value.name}' has the type {value.type}, which the checks do not feed."
        )
    return TensorInfo(
        name=value.name,
        shape=tuple(size if isinstance(size, int) else -1 for size in value.shape),
        dtype=np.dtype(_DTYPES[value.type]),
    )
