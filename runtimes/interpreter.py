"""The Interpreter interface that LiteRT, tf.lite and tflite-runtime share.

Which nodes a delegate took is read from the native wrapper inside `Interpreter`. No public
interface reports it, and `Interpreter._get_ops_details` also looks up every tensor of every node,
which takes longer than running a small network.
"""

from __future__ import annotations

import abc
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from ..quiet import stderr_without
from .base import CHATTER, Runner, TensorInfo, TensorReader

# Variant to the name of the op resolver that has exactly these kernels.
_RESOLVERS = {
    "": "AUTO",
    "xnnpack": "BUILTIN",
    "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "reference": "BUILTIN_REF",
}


class InterpreterRunner(Runner):
    """Runs a .tflite file with the Interpreter of the module a subclass names."""

    variants: ClassVar[Mapping[str, str]] = {
        "": "the runtime's default: XNNPACK where it can, builtin kernels elsewhere",
        "xnnpack": "XNNPACK required: the check fails if it takes no op",
        "builtin": "optimized builtin kernels, no delegate",
        "reference": "reference kernels, no delegate",
    }

    _interpreter: Any = None
    _places: _Places

    @abc.abstractmethod
    def _load_module(self) -> ModuleType:
        """Import and return the module that has `Interpreter` and `OpResolverType`."""

    @abc.abstractmethod
    def _version(self) -> dict[str, str]:
        """Return the version of the package that runs."""

    def _open(self) -> None:
        self._interpreter = self._build(preserve=False)
        self._places = _Places.of(self._interpreter)

    def _build(self, *, preserve: bool) -> Any:
        """Return an interpreter with its tensors allocated."""
        module = self._load_module()
        resolver = getattr(module.OpResolverType, _RESOLVERS[self.variant])
        # tf.lite announces its move to LiteRT, and keeping tensors its cost in memory, on each
        # construction; neither says anything about this file.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            interpreter = module.Interpreter(
                model_path=str(self.artifact),
                num_threads=self.threads,
                experimental_op_resolver_type=resolver,
                experimental_preserve_all_tensors=preserve,
            )
            interpreter.allocate_tensors()
        return interpreter

    def _close(self) -> None:
        self._interpreter = None

    def _signature(self) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
        return (
            tuple(tensor_info(detail) for detail in self._interpreter.get_input_details()),
            tuple(tensor_info(detail) for detail in self._interpreter.get_output_details()),
        )

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return _invoke(self._interpreter, self._places, inputs)

    def describe(self) -> dict[str, object]:
        """Return version, kernels, threads and how many ops the delegate took."""
        native = self._interpreter._interpreter
        kinds = [native.NodeName(node) for node in range(native.NumNodes())]
        delegates = [node for node, kind in enumerate(kinds) if kind == "DELEGATE"]
        taken = len({int(index) for node in delegates for index in native.NodeInputs(node)})
        record: dict[str, object] = {
            "runtime": self.runtime,
            "versions": self._version(),
            "kernels": self.variants[self.variant],
            "threads": self.threads,
            "delegate": "XNNPACK" if delegates else None,
            "delegate_partitions": len(delegates),
            "delegate_tensors": taken,
            "ops": len(kinds) - len(delegates),
        }
        if self.variant == "xnnpack" and not delegates:
            record["fallback"] = "XNNPACK was required but took no op; builtin kernels ran instead"
        return record


class TensorKeeper(InterpreterRunner, TensorReader):
    """An interpreter that can keep every tensor.

    tflite-runtime 2.14 cannot: operators overwrite inputs that are no longer needed.
    """

    def _infer_all(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once with every tensor kept and return them by index.

        Kernels and delegate are those of the variant; LiteRT keeps the tensors between operators.
        """
        with stderr_without(*CHATTER):
            interpreter = self._build(preserve=True)
        _invoke(interpreter, _Places.of(interpreter), inputs)
        tensors = {}
        for detail in interpreter.get_tensor_details():
            try:
                tensors[str(detail["index"])] = interpreter.get_tensor(detail["index"])
            except ValueError:
                # Scratch space of a kernel, which has no value.
                continue
        return tensors


@dataclass(frozen=True)
class _Places:
    """Indexes of inputs and outputs by name; a look-up takes longer than running a small network.

    Attributes:
        inputs: Name to index.
        outputs: Name to index.
    """

    inputs: Mapping[str, int]
    outputs: Mapping[str, int]

    @classmethod
    def of(cls, interpreter: Any) -> _Places:
        """Ask an interpreter."""
        return cls(
            {detail["name"]: detail["index"] for detail in interpreter.get_input_details()},
            {detail["name"]: detail["index"] for detail in interpreter.get_output_details()},
        )


def _invoke(
    interpreter: Any, places: _Places, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Set the inputs, run, and return copies of the outputs by name."""
    for name, index in places.inputs.items():
        interpreter.set_tensor(index, inputs[name])
    interpreter.invoke()
    return {name: interpreter.get_tensor(index) for name, index in places.outputs.items()}


def tensor_info(detail: Mapping[str, Any]) -> TensorInfo:
    """Translate one entry of get_input_details or get_output_details."""
    scales = detail["quantization_parameters"]["scales"]
    points = detail["quantization_parameters"]["zero_points"]
    return TensorInfo(
        name=detail["name"],
        shape=tuple(int(size) for size in detail["shape"]),
        dtype=np.dtype(detail["dtype"]),
        scale=float(scales[0]) if len(scales) else None,
        zero_point=int(points[0]) if len(points) else None,
    )
