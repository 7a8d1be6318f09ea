"""Runs a file with the names, floats and axes of the Keras model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Optional

import numpy as np

from ..advance import partly_done
from ..artifacts.axes import transposition
from ..artifacts.manifest import Artifact, TensorSpec
from ..artifacts.sample_kinds import file_inputs
from .base import ArtifactError, Runner, TensorInfo

# A tensor of the file, and the order of the Keras axes in it (None: the same).
Bound = tuple[TensorInfo, Optional[tuple[int, ...]]]  # noqa: UP045 (Python 3.9 evaluates it)


class Session:
    """Runs an artifact with the names and float values of the trained model.

    Inputs are quantized and outputs dequantized with the scales in the file; the samples are run in
    batches of the size the file was exported with.

    Args:
        runner: An opened runner of ``artifact``.
        artifact: The manifest's entry of the file, which maps its names to Keras names.

    Attributes:
        runner: The runner.
        seconds: Wall time of every inference that `run` made, in order.

    Raises:
        ArtifactError: The file's inputs are not those of the manifest, so it cannot be run, or it
            has more outputs.
    """

    def __init__(self, runner: Runner, artifact: Artifact) -> None:
        self.runner = runner
        self.seconds: list[float] = []
        self._first: Mapping[str, np.ndarray] = {}
        self._precision = artifact.precision
        self._inputs = _bind(artifact.inputs, runner.inputs)
        self._outputs = _bind(artifact.outputs, runner.outputs)
        sizes = [info.shape[0] for info, _ in self._inputs.values() if info.shape]
        # Samples in one run of the file; 1 where the file leaves it free.
        self.batch_size = min((size for size in sizes if size > 0), default=1)
        if not _same_inputs(artifact.inputs, runner.inputs):
            takes = f"takes {_described(runner.inputs)}, expected {_described(artifact.inputs)}"
            orders = _other_axes(artifact.inputs, runner.inputs)
            raise _other_interface(artifact, takes, orders)
        if not artifact.foreign and len(runner.outputs) > len(artifact.outputs):
            returns = (
                f"returns {_described(runner.outputs)}, expected {_described(artifact.outputs)}"
            )
            raise _other_interface(artifact, returns)

    def batch(self, inputs: Mapping[str, np.ndarray], start: int) -> dict[str, np.ndarray]:
        """Return the file's inputs for the samples from ``start``, padded to the file's batch."""
        size = self.batch_size
        parts = {name: inputs[name][start : start + size] for name in self._inputs}
        taken = {}
        for name, part in file_inputs(parts, self._precision).items():
            info, axes = self._inputs[name]
            if len(part) < size:
                part = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            taken[info.name] = quantize(part if axes is None else np.transpose(part, axes), info)
        return taken

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run all samples.

        Args:
            inputs: Keras input name to (N, …) floats.

        Returns:
            Keras output name to (N, …); quantized outputs are dequantized to float32, others have
            the dtype of the file.
        """
        samples = len(next(iter(inputs.values())))
        size = self.batch_size
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self._outputs}
        for start in range(0, samples, size):
            batch = self.batch(inputs, start)
            results = self.runner.infer(batch)
            self.seconds.append(self.runner.seconds)
            if start == 0:
                self._first = results
            for name, (info, axes) in self._outputs.items():
                real = dequantize(results[info.name], info)
                if not real.ndim:
                    raise ArtifactError(
                        f"{self.runner.artifact.name} returns one number for a whole batch as "
                        f"{name!r}; an output needs a batch axis to be compared per sample"
                    )
                parts[name].append(real if axes is None else np.transpose(real, np.argsort(axes)))
            partly_done(min(start + size, samples) / samples)
        return {name: np.concatenate(part)[:samples] for name, part in parts.items()}

    def differing_rerun(self, inputs: Mapping[str, np.ndarray]) -> list[str]:
        """Run the first batch again and return the outputs whose bits differ from the first run.

        Args:
            inputs: Keras input name to (N, …) floats, the same as for `run`.
        """
        again = self.runner.infer(self.batch(inputs, 0))
        return [
            name
            for name, (info, _) in self._outputs.items()
            if self._first[info.name].tobytes() != again[info.name].tobytes()
        ]


def quantize(array: np.ndarray, info: TensorInfo) -> np.ndarray:
    """Return floats as the type that the file takes; round to nearest even, saturate.

    Integers of that type, such as pixels, are not changed.
    """
    if info.scale is None or info.dtype.kind == "f" or array.dtype == info.dtype:
        # Runtimes read their inputs in place, and some processors only from aligned addresses.
        if array.dtype == info.dtype and array.flags.c_contiguous and array.flags.aligned:
            return array
        return np.array(array, info.dtype, order="C")
    limits = np.iinfo(info.dtype)
    steps = np.rint(np.asarray(array, np.float64) / info.scale) + (info.zero_point or 0)
    return np.clip(steps, limits.min, limits.max).astype(info.dtype)


def dequantize(array: np.ndarray, info: TensorInfo) -> np.ndarray:
    """Return the real values of quantized numbers; floats are returned unchanged."""
    if info.scale is None or info.dtype.kind == "f":
        return array
    real = (array.astype(np.float64) - (info.zero_point or 0)) * info.scale
    return real.astype(np.float32)


def _same_inputs(specs: tuple[TensorSpec, ...], infos: tuple[TensorInfo, ...]) -> bool:
    """Return whether a file's inputs have the names, shapes and types that the manifest lists."""
    by_name = {info.name: info for info in infos}
    return by_name.keys() == {spec.name for spec in specs} and all(
        len(by_name[spec.name].shape) == len(spec.shape)
        and all(
            found == -1 or wanted is None or found == wanted
            for found, wanted in zip(by_name[spec.name].shape, spec.shape)
        )
        and by_name[spec.name].dtype == np.dtype(spec.dtype)
        for spec in specs
    )


def _other_axes(specs: tuple[TensorSpec, ...], infos: tuple[TensorInfo, ...]) -> str:
    """Describe inputs whose axes are in another order; empty if none are."""
    by_name = {info.name: info for info in infos}
    found = []
    for spec, info in zip(specs, infos):
        shape = by_name.get(spec.name, info).shape
        axes = transposition(spec.shape, shape)
        if axes is not None:
            found.append(
                f"The axes of input '{spec.name}' are in another order: transpose what the file is "
                f"fed by {axes}."
            )
    return " ".join(found)


def _other_interface(artifact: Artifact, difference: str, mend: str = "") -> ArtifactError:
    """Return the error of a file whose inputs or outputs are not those that are expected."""
    listed, remedy = "manifest.json lists", "Put the exported file back, or export again."
    if mend:
        remedy = f"{mend} {remedy}"
    if artifact.foreign:
        listed, remedy = "the model", "Say which is which with --map-input."
    return ArtifactError(
        f"{artifact.file} has another interface than {listed}: it {difference}. {remedy}"
    )


def _described(tensors: Sequence[TensorInfo | TensorSpec]) -> str:
    """Return the names, types and shapes of tensors: `'image' float32 (1, 8, 8, 1)`."""
    shapes = [[-1 if size is None else size for size in tensor.shape] for tensor in tensors]
    return ", ".join(
        f"'{tensor.name}' {tensor.dtype} ({', '.join('N' if s == -1 else str(s) for s in shape)})"
        for tensor, shape in zip(tensors, shapes)
    )


def _bind(specs: tuple[TensorSpec, ...], infos: tuple[TensorInfo, ...]) -> dict[str, Bound]:
    """Return Keras name to the runtime's tensor; names that are absent from the file are left out.

    If the runtime does not report the quantization of a tensor, as for ONNX, the manifest does.
    """
    by_name = {info.name: info for info in infos}
    bound = {}
    for spec in specs:
        info = by_name.get(spec.name)
        if info is None:
            continue
        if info.scale is None and spec.scale is not None:
            info = replace(info, scale=spec.scale, zero_point=spec.zero_point)
        bound[spec.keras_name] = (info, spec.axes)
    return bound
