"""Compares the range of each input in a file of integers with that of the model's real samples.

Calibration chooses the range. Where the calibration samples were preprocessed otherwise than the
inputs will be, such as pixels of 0..255 for 0..1, most integers are never used, or most values are
clipped. The range shows how the calibration samples differed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..artifacts.graphs.base import ArtifactGraph
from ..artifacts.manifest import Artifact
from .integer_noise import Step, input_steps
from .rounded_parts import rounded_part
from .value_changes import value_changes

# Real samples cover more than this share of the range that was calibrated on similar ones, and at
# most this share of their values is beyond it.
_LEAST_COVERED, _MOST_BEYOND = 0.5, 0.05

# Samples that cover less than this share were scaled otherwise.
_SCALED = 1 / 20

# The ends of a range agree within this share of it: calibration saw other samples.
_SIMILAR = 0.15


@dataclass(frozen=True)
class Miscalibrated:
    """An input whose integers represent another range than that of its real samples.

    Attributes:
        name: The model's name of the input.
        step: The range of the file.
        least: The least real value.
        most: The greatest.
        change: How the calibration samples differed, which continues "values …"; empty if unknown.
    """

    name: str
    step: Step
    least: float
    most: float
    change: str

    @property
    def certain(self) -> bool:
        """Whether no other samples of the same kind can explain the range."""
        covered = _covered(self.step, self.least, self.most)
        return bool(self.change) and covered < _SCALED

    @property
    def sentence(self) -> str:
        """Describe the difference, and how to correct it."""
        why = (
            f"its integers were calibrated on values {self.change}"
            if self.change
            else "it was probably calibrated on other data"
        )
        return (
            f"input '{self.name}' represents {self.step.low:.4g} to {self.step.high:.4g} in the "
            f"file, the real samples reach {self.least:.4g} to {self.most:.4g}: {why}. Export "
            "again with calibration samples that are preprocessed like the inputs"
        )


def miscalibrated_inputs(
    artifact: Artifact, graph: ArtifactGraph, inputs: Mapping[str, np.ndarray]
) -> Iterator[Miscalibrated]:
    """Yield the inputs of a file of integers whose range is not that of their real samples.

    Args:
        artifact: The manifest's entry of the file.
        graph: The file.
        inputs: Keras input name to (N, …) real samples.
    """
    samples = [inputs[spec.keras_name] for spec in artifact.inputs]
    steps = input_steps(graph, [spec.name for spec in artifact.inputs], samples)
    for spec, values in zip(artifact.inputs, samples):
        array = rounded_part(graph, spec.name, values)
        finite = array[np.isfinite(array)]
        if spec.name not in steps or array.dtype.kind != "f" or not finite.size:
            continue
        step, least, most = steps[spec.name], float(finite.min()), float(finite.max())
        beyond = float(np.mean((finite < step.low - step.size) | (finite > step.high + step.size)))
        if _covered(step, least, most) < _LEAST_COVERED or beyond > _MOST_BEYOND:
            yield Miscalibrated(spec.keras_name, step, least, most, _change(step, array))


def _covered(step: Step, least: float, most: float) -> float:
    """Return the share of a range that values cover, zero included."""
    return (max(most, 0.0) - min(least, 0.0)) / (step.high - step.low) * (1 + _symmetric(step))


def _symmetric(step: Step) -> bool:
    """Return whether a range has both signs whatever the values are, as that of 16 bits."""
    return abs(step.low + step.high) <= 2 * step.size and step.high / step.size > np.iinfo("i1").max


def _change(step: Step, array: np.ndarray) -> str:
    """Return the change of the real samples that has the range of the file."""
    for says, change in value_changes(array):
        with np.errstate(all="ignore"):
            changed = change(array)
        changed = changed[np.isfinite(changed)]
        low, high = min(float(changed.min()), 0.0), max(float(changed.max()), 0.0)
        if _symmetric(step):
            high = max(high, -low)
            low = -high
        slack = _SIMILAR * (step.high - step.low)
        if abs(low - step.low) <= slack and abs(high - step.high) <= slack:
            return says
    return ""
