"""Runs a SavedModel folder in TensorFlow, for the export; it is not a target of the checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .base import ArtifactError, Runner, TensorInfo

SIGNATURE_KEY = "serving_default"


class SavedModelRunner(Runner):
    """Runs the serving signature of a SavedModel."""

    runtime = "tensorflow"

    _loaded: Any = None

    def _open(self) -> None:
        import tensorflow as tf

        try:
            self._loaded = tf.saved_model.load(str(self.artifact))
        except (OSError, ValueError) as error:
            raise ArtifactError(f"tensorflow cannot load {self.artifact.name}: {error}") from error

    def _close(self) -> None:
        self._loaded = None

    @property
    def _function(self) -> Any:
        return self._loaded.signatures[SIGNATURE_KEY]

    def _signature(self) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
        _, inputs = self._function.structured_input_signature
        outputs = self._function.structured_outputs
        return tuple(map(_info, inputs, inputs.values())), tuple(
            map(_info, outputs, outputs.values())
        )

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import tensorflow as tf

        results = self._function(**{name: tf.constant(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in results.items()}

    def describe(self) -> dict[str, object]:
        """Return the version of TensorFlow."""
        import tensorflow as tf

        return {"runtime": self.runtime, "versions": {"tensorflow": tf.__version__}}


def _info(name: str, spec: Any) -> TensorInfo:
    """Return a tensor of the signature."""
    shape = tuple(-1 if size is None else int(size) for size in spec.shape)
    return TensorInfo(name, shape, np.dtype(spec.dtype.as_numpy_dtype))
