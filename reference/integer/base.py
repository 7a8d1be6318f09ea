"""What an integer op is to the checks: exact integers, waiting for a rule of rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp, GraphTensor, Quantization
from .arithmetic import Arithmetic, Ints, Scales

# What is left to do once the exact sums are known: round them by a rule.
Finish = Callable[[Arithmetic], Ints]


@dataclass(frozen=True)
class IntegerOp:
    """One integer op, all but rounded.

    Attributes:
        op: The op of the file that writes the integers.
        core: The op that computes; another one where a QuantizeLinear writes.
        got: (P, …) what the runtime gave: integers, or floats where it turns them back.
        finish: Integers that a rule of rounding gives, in the shape of ``got``.
        ruled: Whether rules differ on this kind of op at all.
    """

    op: GraphOp
    core: GraphOp
    got: Ints
    finish: Finish
    ruled: bool = True


class Samples:
    """The integers that a runtime showed, and what they stand for.

    Args:
        graph: The file.
        tensors: Key to (P, …): what the runtime computed for each of P samples.
    """

    def __init__(self, graph: ArtifactGraph, tensors: Mapping[str, np.ndarray]) -> None:
        self.graph, self._tensors = graph, tensors
        self.count = len(next(iter(tensors.values())))

    def steps(self, key: str) -> Quantization | None:
        """Return how a tensor's integers stand for numbers, None unless they are 8 bits."""
        steps = self.graph.tensors[key].quantization
        return steps if steps is not None and steps.dtype.itemsize == 1 else None

    def integers(self, key: str) -> Ints | None:
        """Return a computed tensor's integers, samples first; None where there are none to see."""
        array = self._tensors.get(key)
        if array is None or array.dtype.itemsize != 1 or self.steps(key) is None:
            return None
        return array.reshape(-1, *array.shape[2:]).astype(np.int64)

    def of_integers(self, op: GraphOp) -> bool:
        """Return whether an op gives 8-bit integers, or floats that are turned into such."""
        return any(
            self.steps(key) is not None
            or any(after.kind == "QuantizeLinear" for after in self.graph.consumers(key))
            for key in op.outputs
        )

    def shown(self, key: str) -> np.ndarray | None:
        """Return what a runtime gave for a tensor, integers or float32, samples first."""
        integers = self.integers(key)
        return self.floats(key) if integers is None else integers

    def floats(self, key: str) -> np.ndarray | None:
        """Return a computed tensor's float32 numbers, samples first; None where it has none."""
        array = self._tensors.get(key)
        if array is None or array.dtype != np.float32:
            return None
        return array.reshape(-1, *array.shape[2:])

    def centred(self, key: str) -> Ints | None:
        """Return a computed tensor's integers less their zero point: zero stands for zero."""
        integers, steps = self.integers(key), self.steps(key)
        if integers is None or steps is None or steps.scales.size != 1:
            return None
        return np.asarray(integers - steps.zero_points[0])

    def scale(self, key: str) -> Scales:
        """Return a tensor's scales in the type that files hold them in."""
        steps = self.graph.tensors[key].quantization
        assert steps is not None
        return steps.scales.astype(np.float32)

    def constant(self, key: str) -> GraphTensor | None:
        """Return an integer constant, None where there is none."""
        tensor = self.graph.tensors[key] if key else None
        return tensor if tensor is not None and tensor.data is not None else None


def saturated(values: Ints, steps: Quantization, low: float, high: float) -> Ints:
    """Return integers with their zero point, within their type and an activation's real limits."""
    limits, point = np.iinfo(steps.dtype), int(steps.zero_points[0])
    least, most = int(limits.min), int(limits.max)
    scale = np.float32(steps.scales[0])
    if low > -np.inf:
        least = max(least, point + round(float(np.float32(low) / scale)))
    if high < np.inf:
        most = min(most, point + round(float(np.float32(high) / scale)))
    return np.asarray(np.clip(values + point, least, most))


def quantized(values: np.ndarray, steps: Quantization) -> Ints:
    """Return float32 numbers in steps: divided in float32, to the nearest, ties to even."""
    scaled = np.rint(values / np.float32(steps.scales[0])).astype(np.float64)
    limits = np.iinfo(steps.dtype)
    bounded = np.clip(scaled + int(steps.zero_points[0]), limits.min, limits.max)
    return np.asarray(bounded.astype(np.int64))
