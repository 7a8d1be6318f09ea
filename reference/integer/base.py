"""What an integer op is to the checks: exact integers, waiting for a rule of rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp, Quantization
from ..operators.linear import LINEAR
from .arithmetic import Arithmetic, Ints, Scales
from .fixed_point import away_from_zero

# What an op gives by a rule: one array, or one for each of several outputs.
Results = np.ndarray | list[np.ndarray]

# What is left to do once the exact sums are known: round them by a rule.
Finish = Callable[[Arithmetic], Results]


class NotKnownError(Exception):
    """The integers of an op cannot be computed here; the message says why."""


# What NumPy raises where a file does what no code here expects.
_UNFORESEEN = (ValueError, IndexError, KeyError, TypeError, ArithmeticError, MemoryError)


def known(op: GraphOp, compute: Callable[[], Any]) -> Any:
    """Return what a computation gives; any failure of it is that the op is not known.

    Raises:
        NotKnownError: It failed.
    """
    try:
        with np.errstate(all="ignore"):
            return compute()
    except _UNFORESEEN as error:
        raise NotKnownError(f"{op.kind} in an unknown form ({error})") from error


def one_of(finish: Finish, place: int) -> Callable[[Arithmetic], np.ndarray]:
    """Return one of an op's results alone."""

    def chosen(rule: Arithmetic) -> np.ndarray:
        results = finish(rule)
        return results[place] if isinstance(results, list) else results

    return chosen


@dataclass(frozen=True)
class IntegerOperator:
    """One kind of integer op.

    Attributes:
        prepare: Computes what does not depend on the rule; raises `NotKnownError`.
        ruled: Whether rules differ on it.
    """

    prepare: Callable[[GraphOp, Values], Finish]
    ruled: bool = True


@dataclass(frozen=True)
class IntegerOp:
    """One integer op, all but rounded.

    Attributes:
        op: The op of the file that writes the integers.
        core: The op that computes; another one where a QuantizeLinear writes.
        got: (P, …) what the runtime gave: integers, or floats where it turns them back.
        finish: Numbers that a rule of rounding gives, in the shape of ``got``.
        ruled: Whether rules differ on this kind of op.
    """

    op: GraphOp
    core: GraphOp
    got: Ints
    finish: Callable[[Arithmetic], Ints]
    ruled: bool = True


class Values:
    """The tensors of a file whose numbers are known, for P samples at once.

    Every array has an axis of samples in front of the shape that the file gives the tensor; that of
    a constant has the size one.

    Args:
        graph: The file.
        tensors: Key to (P, …): integers where the file has integers.
    """

    def __init__(self, graph: ArtifactGraph, tensors: Mapping[str, np.ndarray]) -> None:
        self.graph, self._tensors = graph, tensors

    @property
    def known(self) -> Mapping[str, np.ndarray]:
        """The tensors that were given."""
        return self._tensors

    def array(self, key: str) -> np.ndarray:
        """Return a tensor's numbers.

        Raises:
            NotKnownError: They are neither constant nor computed yet.
        """
        data = self.graph.tensors[key].data if key in self.graph.tensors else None
        if data is not None:
            return data[None]
        if key not in self._tensors:
            raise NotKnownError(f"tensor '{key}' is not known")
        return self._tensors[key]

    def has(self, key: str) -> bool:
        """Return whether a tensor's numbers are known."""
        return key in self._tensors or self.graph.tensors[key].data is not None

    def constant(self, key: str) -> np.ndarray:
        """Return a constant in the shape that the file has it in.

        Raises:
            NotKnownError: It is computed.
        """
        data = self.graph.tensors[key].data if key in self.graph.tensors else None
        if data is None:
            raise NotKnownError(f"tensor '{key}' is no constant")
        return data

    def steps(self, key: str) -> Quantization:
        """Return how a tensor's integers represent numbers.

        Raises:
            NotKnownError: It has no single scale.
        """
        steps = self.graph.tensors[key].quantization
        if steps is None or steps.scales.size != 1 or steps.zero_points.size != 1:
            raise NotKnownError(f"tensor '{key}' has no single scale")
        return steps

    def integers(self, key: str) -> Ints:
        """Return a tensor's integers.

        Raises:
            NotKnownError: It is not known, or holds floats.
        """
        array = self.array(key)
        if array.dtype.kind not in "iu":
            raise NotKnownError(f"tensor '{key}' holds no integers")
        return array.astype(np.int64)

    def floats(self, key: str) -> np.ndarray:
        """Return a tensor's float32 numbers.

        Raises:
            NotKnownError: It is not known, or holds others.
        """
        array = self.array(key)
        if array.dtype != np.float32:
            raise NotKnownError(f"tensor '{key}' holds no float32 numbers")
        return array

    def centred(self, key: str) -> Ints:
        """Return a tensor's integers less their zero point: zero stands for zero."""
        return self.integers(key) - int(self.steps(key).zero_points[0])

    def scale(self, key: str) -> Scales:
        """Return a tensor's scales in the type that files hold them in."""
        steps = self.graph.tensors[key].quantization
        if steps is None:
            raise NotKnownError(f"tensor '{key}' has no scale")
        return steps.scales.astype(np.float32)

    def same_steps(self, *keys: str) -> None:
        """Raise `NotKnownError` unless tensors share scale and zero point."""
        first = self.steps(keys[0])
        for key in keys[1:]:
            other = self.steps(key)
            if first.scales[0] != other.scales[0] or first.zero_points[0] != other.zero_points[0]:
                raise NotKnownError("the steps change where integers are only moved")


def exact_sums(operator: str, x: Ints, parts: Mapping[str, np.ndarray], attributes: Any) -> Ints:
    """Return the exact sums of a linear operator.

    Integers below 2^53 are exact in float64 in any order of summation, those below 2^24 in float32,
    which is faster.

    Args:
        operator: Of `operators.linear`.
        x: Data, less its zero point.
        parts: Kernel and bias as float64 integers.
        attributes: As the operator has them.
    """
    kernel, bias = parts["kernel"], parts.get("bias", np.zeros(1))
    # No result sums more of a kernel than its places times the longer of the last two axes.
    most = np.abs(kernel).sum(axis=tuple(range(kernel.ndim - 2))).max(initial=0.0)
    most *= max(kernel.shape[-2:]) * float(np.abs(x).max(initial=0))
    small = most + float(np.abs(bias).max(initial=0.0)) < 2**24
    dtype = np.float32 if small else np.float64
    weights = {name: array.astype(dtype) for name, array in parts.items()}
    return np.asarray(LINEAR[operator].evaluate([x.astype(dtype)], weights, attributes)).astype(
        np.int64
    )


def aligned(*arrays: np.ndarray) -> list[np.ndarray]:
    """Return arrays of one rank: axes of size one behind the samples, as broadcasting has them."""
    rank = max(array.ndim for array in arrays)
    return [
        array.reshape(array.shape[0], *[1] * (rank - array.ndim), *array.shape[1:])
        for array in arrays
    ]


def saturated(
    values: Ints, steps: Quantization, low: float = -np.inf, high: float = np.inf
) -> Ints:
    """Return integers with their zero point, within their type and an activation's real limits."""
    limits, point = np.iinfo(steps.dtype), int(steps.zero_points[0])
    least, most = int(limits.min), int(limits.max)
    scale = np.float32(steps.scales[0])
    if low > -np.inf:
        least = max(least, point + int(away_from_zero(np.asarray(np.float32(low) / scale))))
    if high < np.inf:
        most = min(most, point + int(away_from_zero(np.asarray(np.float32(high) / scale))))
    return np.asarray(np.clip(values + point, least, most))


def quantized(values: np.ndarray, steps: Quantization) -> Ints:
    """Return float32 numbers in steps: divided in float32, to the nearest, ties to even."""
    scaled = np.rint(values / np.float32(steps.scales[0])).astype(np.float64)
    limits = np.iinfo(steps.dtype)
    bounded = np.clip(scaled + int(steps.zero_points[0]), limits.min, limits.max)
    return np.asarray(bounded.astype(np.int64))
