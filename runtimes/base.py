"""The interface of a runtime: open an artifact, run it, describe what ran."""

from __future__ import annotations

import abc
import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from ..errors import UserError
from ..quiet import stderr_without
from .managed import Managed

# Lines that LiteRT's native code prints on standard error while it loads and unloads a file.
CHATTER = ("INFO:", "WARNING: [npu_registry")

_Self = TypeVar("_Self", bound="Runner")


class ArtifactError(UserError):
    """The runtime cannot load or run the file, which is a failed check, not a usage error."""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output as the runtime reports it.

    Attributes:
        name: The name in the file.
        shape: Sizes, -1 where free.
        dtype: Element type.
        scale: Real value of one quantization step; None for float tensors.
        zero_point: The quantized value that stands for 0.0; None for float tensors.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    scale: float | None = None
    zero_point: int | None = None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether an array of a shape can be fed."""
        return shape == self.shape or (
            len(shape) == len(self.shape)
            and all(size in (-1, given) for size, given in zip(self.shape, shape))
        )


class Runner(Managed):
    """One artifact, loaded in one runtime; a context manager.

    A subclass defines `variants` and the underscore methods; the public methods validate and turn
    exceptions of the runtime into an `ArtifactError`. Names and element types are those
    of the file; `session.Session` translates from and to the Keras names and floats.

    Args:
        artifact: The file to load.
        threads: Number of threads the runtime may use.
        variant: One of the subclass' `variants`: which kernels or optimizations to use.

    Raises:
        UserError: The runtime is not installed or does not know the variant.
        ArtifactError: On entering: it cannot load the file.
    """

    runtime: ClassVar[str]
    variants: ClassVar[Mapping[str, str]] = {"": "as the runtime ships"}

    def __init__(self, artifact: Path, *, threads: int = 1, variant: str = "") -> None:
        if variant not in self.variants:
            known = ", ".join(f"{self.runtime}+{name}" for name in self.variants if name)
            raise UserError(
                f"{self.runtime} has no variant '{variant}'. "
                + (f"Known are {known}." if known else "It has none.")
            )
        if threads < 1:
            raise UserError(f"threads must be at least 1. Received: {threads}.")
        self.artifact = Path(artifact)
        self.threads = threads
        self.variant = variant
        self._seconds = 0.0
        self._inputs: tuple[TensorInfo, ...] = ()
        self._outputs: tuple[TensorInfo, ...] = ()

    def __enter__(self: _Self) -> _Self:
        with stderr_without(*CHATTER), self._at_fault("cannot load"):
            return super().__enter__()

    def __exit__(self, *error: object) -> None:
        with stderr_without(*CHATTER):
            super().__exit__(*error)

    def _opened(self) -> None:
        self._inputs, self._outputs = self._signature()

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The inputs as the runtime reports them, in the file's order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The outputs as the runtime reports them, in the file's order."""
        return self._outputs

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the artifact once.

        Args:
            inputs: File input name to array of the file's shape and type.

        Returns:
            File output name to array; the caller owns the arrays.

        Raises:
            ArtifactError: An input is missing, unknown, or of the wrong shape or type, or the
                runtime fails while it runs the file.
        """
        self._require_inputs(inputs)
        with self._at_fault("fails to run"):
            begin = time.perf_counter()
            outputs = self._infer(inputs)
            self._seconds = time.perf_counter() - begin
        return outputs

    @property
    def seconds(self) -> float:
        """Wall time of the last inference, without the transfer to and from another process."""
        return self._seconds

    def _require_inputs(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Refuse arrays that are not the file's inputs."""
        if len(inputs) != len(self._inputs) or any(i.name not in inputs for i in self._inputs):
            wanted = sorted(info.name for info in self._inputs)
            raise ArtifactError(
                f"{self.artifact.name} takes the inputs {wanted}. Received: {sorted(inputs)}."
            )
        for info in self._inputs:
            array = inputs[info.name]
            if not info.fits(array.shape) or array.dtype != info.dtype:
                raise ArtifactError(
                    f"Input '{info.name}' of {self.artifact.name} must be {info.dtype} of shape "
                    f"{info.shape}. Received: {array.dtype} of shape {array.shape}."
                )

    @contextlib.contextmanager
    def _at_fault(self, what: str) -> Iterator[None]:
        """Turn exceptions of a runtime into an `ArtifactError`.

        The exception types of runtimes have no common base, and a damaged file can raise any type.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            reason = str(error).strip() or type(error).__name__
            reason = reason.replace(f"{self.artifact.parent}{os.sep}", "")
            raise ArtifactError(f"{self.runtime} {what} {self.artifact.name}: {reason}") from error

    @abc.abstractmethod
    def describe(self) -> dict[str, object]:
        """Return a description of what ran: versions, delegate, kernels, threads.

        The key ``fallback``, when present, is a sentence that says how the runtime silently
        deviated from the request; the checks count it as a failure.
        """

    def measured(self) -> dict[str, Any]:
        """Return load time, latency and memory where the runner measures them itself.

        A runner of a remote runtime returns the measurements from there.
        """
        return {}

    @abc.abstractmethod
    def _signature(self) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
        """Return inputs and outputs."""

    @abc.abstractmethod
    def _infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once on validated inputs."""


class TensorReader(Runner):
    """A runner that also returns every intermediate tensor, by the keys of `artifacts.graphs`."""

    def infer_all(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once and return every tensor that the runtime has a value for, by key.

        Raises:
            ArtifactError: As `infer`.
        """
        self._require_inputs(inputs)
        with self._at_fault("fails to run"):
            return self._infer_all(inputs)

    @abc.abstractmethod
    def _infer_all(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once on validated inputs and return every tensor by key."""
