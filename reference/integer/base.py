"""The tensors of an integer file, and an operator of it whose exact integers are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...artifacts.graphs.base import ArtifactGraph, GraphOp, Quantization
from ..operators import OPERATORS
from ..rounding.arithmetic import Arithmetic, Finish
from ..rounding.quantized import FloatsError, Ints, NotKnownError, Output, Quantized

# Exceptions of NumPy for files of an unexpected form.
_UNFORESEEN = (ValueError, IndexError, KeyError, TypeError, ArithmeticError, MemoryError)


def known(op: GraphOp, compute: Callable[[], Any]) -> Any:
    """Return the result of a computation; a failure means that the op is not known.

    Raises:
        NotKnownError: The computation failed.
    """
    try:
        with np.errstate(all="ignore"):
            return compute()
    except _UNFORESEEN as error:
        raise NotKnownError(f"{op.kind} in an unknown form ({error})") from error


def one_of(finish: Finish, place: int) -> Callable[[Arithmetic], np.ndarray]:
    """Return one of an op's several results."""

    def chosen(rule: Arithmetic) -> np.ndarray:
        results = finish(rule)
        found: np.ndarray = results[place] if isinstance(results, list) else results
        return found

    return chosen


def moved(operator: str, *arrays: np.ndarray, **attributes: Any) -> np.ndarray:
    """Evaluate an operator that only moves numbers on integers or floats (P, …)."""
    return OPERATORS[operator].evaluate(list(arrays), {}, attributes)


def picked(
    x: np.ndarray,
    index: np.ndarray,
    rows: int,
    choose: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Return ``choose`` of each part of x and its places, along the axes that both have first.

    Args:
        x: (P, …).
        index: (P, …); for either, the number of samples may be one.
        rows: How many axes both have first, that of the samples included.
        choose: Returns the chosen numbers of a part.
    """
    count = max(len(x), len(index))
    x, index = (np.broadcast_to(side, (count, *side.shape[1:])) for side in (x, index))
    parts = zip(x.reshape(-1, *x.shape[rows:]), index.reshape(-1, *index.shape[rows:]))
    found = np.stack([choose(part, places) for part, places in parts])
    return found.reshape(*x.shape[:rows], *found.shape[1:])


def together(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return arrays of equal rank, with axes of size one inserted after that of the samples."""
    rank = max(array.ndim for array in arrays)
    return [x.reshape(len(x), *[1] * (rank - x.ndim), *x.shape[1:]) for x in arrays]


def quotient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Divide; integers toward zero."""
    return np.trunc(x / y).astype(x.dtype) if x.dtype.kind in "iu" else np.divide(x, y)


def at_places(x: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the parts of x at places whose coordinates are on the last axis."""
    return np.asarray(x[tuple(np.moveaxis(places, -1, 0))])


@dataclass(frozen=True)
class IntegerOperator:
    """How one kind of operator of a file is read.

    Attributes:
        prepare: Computes everything that does not depend on the rule; raises `NotKnownError`.
        ruled: Whether the result depends on the rule.
    """

    prepare: Callable[[GraphOp, Values], Finish]
    ruled: bool = True


@dataclass(frozen=True)
class IntegerOp:
    """One integer op before rounding.

    Attributes:
        op: The op of the file that writes the integers.
        core: The op that computes; another one where a QuantizeLinear writes.
        got: (P, …) results of the runtime: integers, or floats if it dequantizes them.
        finish: Returns the results under a rounding rule, in the shape of ``got``.
        ruled: Whether the result depends on the rule.
        floats: (P, …) numbers that the op computes in float32 and then rounds; None for others.
    """

    op: GraphOp
    core: GraphOp
    got: Ints
    finish: Callable[[Arithmetic], Ints]
    ruled: bool = True
    floats: np.ndarray | None = None


class Values:
    """The tensors of a file whose numbers are known, for P samples at once.

    Every array has an axis of samples before the axes of the tensor; for a constant its size is
    one.

    Args:
        graph: The file.
        tensors: Key to (P, …): integers where the file has integers.
    """

    def __init__(self, graph: ArtifactGraph, tensors: Mapping[str, np.ndarray]) -> None:
        self.graph, self._tensors = graph, tensors

    @property
    def known(self) -> Mapping[str, np.ndarray]:
        """The given tensors."""
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
            NotKnownError: It is not known.
            FloatsError: It holds floats.
        """
        array = self.array(key)
        if array.dtype.kind not in "iu":
            raise FloatsError(f"tensor '{key}' holds no integers")
        return array.astype(np.int64)

    def floats(self, key: str) -> np.ndarray:
        """Return a tensor's float32 numbers.

        Raises:
            NotKnownError: It is not known, or is of another type.
        """
        array = self.array(key)
        if array.dtype != np.float32:
            raise NotKnownError(f"tensor '{key}' holds no float32 numbers")
        return array

    def quantized(self, key: str) -> Quantized:
        """Return a tensor's integers with their single scale.

        Raises:
            NotKnownError: It is not known, holds floats, or has several scales.
        """
        return Quantized(self.integers(key), self.steps(key))

    def output(self, op: GraphOp) -> Output:
        """Return the steps of an op's output."""
        return Output(self.steps(op.outputs[0]))

    def kernel(self, key: str) -> Quantized:
        """Return a constant kernel as exact float64 integers.

        Raises:
            NotKnownError: It is computed, or its zero point is not zero.
        """
        kernel, steps = self.constant(key), self.graph.tensors[key].quantization
        if steps is None or steps.zero_points.any():
            raise NotKnownError("weights with a zero point")
        return Quantized(kernel.astype(np.float64), steps)

    def bias(self, key: str) -> dict[str, Quantized]:
        """Return a constant bias as exact float64 integers; nothing for an empty key.

        Raises:
            NotKnownError: It is computed, or holds floats.
        """
        if not key:
            return {}
        bias = self.constant(key)
        if bias.dtype.kind != "i":
            raise NotKnownError("a bias of floats")
        steps = Quantization(np.ones(1), np.zeros(1, np.int64), bias.dtype)
        return {"bias": Quantized(bias.astype(np.float64).reshape(-1), steps)}
