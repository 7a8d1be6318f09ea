"""The effect of an element type on the numbers that it stores and that ops read."""

from __future__ import annotations

import abc
import copy
from collections.abc import Sequence

import numpy as np

from ...artifacts.graphs.base import GraphTensor, Quantization
from ...artifacts.network import Node
from ...artifacts.precisions import UNIT_ROUNDOFF
from ...artifacts.ranges import HALF_STEP
from ...reference.network import (
    carried_variance,
    evaluate_node,
    node_error_bound,
    rounding_variance,
)
from ...reference.noise import input_step
from ...reference.operators.base import ROUNDING
from ...reference.operators.linear import LINEAR

# Deviations that the sum of independent rounding errors may have: one element in 4e11 has more.
_DEVIATIONS = 7.0


class Storage(abc.ABC):
    """How one tensor stores numbers."""

    @abc.abstractmethod
    def held(
        self, node: Node | None, expected: np.ndarray, allowed: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the number that should be stored, and the bound on the stored one's error.

        Args:
            node: The node that computes it; None for a conversion of numbers.
            expected: The exact value, float64.
            allowed: Bound on the error before it is stored.
        """


class Wide(Storage):
    """float32: the op's own bound includes the rounding of its result."""

    def held(
        self, node: Node | None, expected: np.ndarray, allowed: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See the base class."""
        return expected, allowed


class Half(Storage):
    """float16 after accumulation in float32: one rounding, by the least step near zero.

    Two roundings if a bias, or the shift of an affine, is added to the stored number.
    """

    def held(
        self, node: Node | None, expected: np.ndarray, allowed: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See the base class."""
        added = [] if node is None else [node.weights.get(name) for name in ("bias", "shift")]
        size = max((float(np.abs(a).max(initial=0.0)) for a in added if a is not None), default=0.0)
        stored = UNIT_ROUNDOFF["float16"] * (2 * np.abs(expected) + size) + HALF_STEP
        return expected, allowed + stored


class Derived(Storage):
    """float32, computed from numbers that other ops of the same node have rounded.

    Args:
        rounding: (P, …) bound on the error that comes from these roundings; infinite in samples
            that saturate.
    """

    def __init__(self, rounding: np.ndarray) -> None:
        self._rounding = rounding.reshape(len(rounding), -1).max(axis=1)

    def held(
        self, node: Node | None, expected: np.ndarray, allowed: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See the base class."""
        return expected, allowed + self._rounding.reshape(-1, *[1] * (allowed.ndim - 1))


class Steps(Storage):
    """Integers, or floats in steps: rounded and saturated.

    Args:
        quantization: How they represent numbers.
        rounding: Bound on the error of a stored number (`rounding_chain`): one, (P,) for each
            sample, or (P, …) for each element.
    """

    def __init__(self, quantization: Quantization, rounding: np.ndarray | float = 0.0) -> None:
        self.rounding = rounding
        limits, point = np.iinfo(quantization.dtype), int(quantization.zero_points[0])
        self.step = float(quantization.scales.max())
        self.low, self.high = ((limit - point) * self.step for limit in (limits.min, limits.max))

    def held(
        self, node: Node | None, expected: np.ndarray, allowed: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See the base class."""
        found = np.asarray(self.rounding)
        if found.size == allowed.size:
            found = found.reshape(allowed.shape)
        else:
            found = found.reshape(found.shape[0] if found.ndim else 1, -1).max(axis=1)
            found = found.reshape(-1, *[1] * (allowed.ndim - 1))
        return np.clip(expected, self.low, self.high), allowed + found

    def with_rounding(self, rounding: np.ndarray) -> Steps:
        """Return the same steps with other bounds."""
        found = copy.copy(self)
        found.rounding = rounding
        return found

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """Return the real numbers that stored values represent."""
        return np.clip(np.rint(values / self.step) * self.step, self.low, self.high)


def storage_of(tensor: GraphTensor, dtype: np.dtype, rounding: np.ndarray | float = 0.0) -> Storage:
    """Return how a tensor stores numbers.

    Args:
        tensor: The tensor.
        dtype: The type in which the runtime shows it.
        rounding: Bound on the error of a quantized number, as `Steps` takes it.
    """
    if dtype == np.float16:
        return Half()
    return Wide() if tensor.quantization is None else Steps(tensor.quantization, rounding)


def bound_in_half(
    node: Node, inputs: list[np.ndarray], output: np.ndarray, allowed: np.ndarray
) -> np.ndarray:
    """Return the bound on a node's error if a runtime may compute in half precision throughout.

    Its roundings are independent: of the inputs, of the operator and of the result.

    Args:
        node: The node.
        inputs: float64 values that it reads.
        output: Its exact value.
        allowed: Bound on the error in float32 arithmetic.
    """
    unit = UNIT_ROUNDOFF["float16"]
    read = [ROUNDING * np.square(x) for x in inputs]
    variance = rounding_variance(node, inputs, output, read, unit) + ROUNDING * np.square(output)
    least = [np.full_like(x, HALF_STEP) for x in inputs]
    denormal = node_error_bound(node, inputs, output, least, 0.0) + HALF_STEP
    return np.asarray(allowed + denormal + _DEVIATIONS * unit * np.sqrt(variance))


def expected_result(
    node: Node,
    inputs: list[np.ndarray],
    errors: list[np.ndarray],
    *,
    symmetric: bool | None,
    halves: Sequence[bool],
) -> tuple[np.ndarray, np.ndarray]:
    """Return a node's exact value and its bound, before it is stored.

    Args:
        node: With the weights of the file.
        inputs: float64 values that it reads.
        errors: Bound on the error of each.
        symmetric: Whether the op may quantize its input to 8 bits symmetrically about zero; None if
            it does not quantize it at run time.
        halves: For each input, whether it is stored in half precision: a runtime that computes in
            float32 may skip the rounding in between.
    """
    unit, output = UNIT_ROUNDOFF["float32"], evaluate_node(node, inputs)
    if symmetric is not None:
        step = input_step(inputs[0], symmetric=symmetric)
        read = [np.broadcast_to(step / 2, inputs[0].shape)]
    elif any(halves):
        half = UNIT_ROUNDOFF["float16"]
        read = [half * stored * np.abs(x) for stored, x in zip(halves, inputs)]
    else:
        return output, node_error_bound(node, inputs, output, errors, unit)
    if node.op not in LINEAR:
        passed = [error + limit for error, limit in zip(errors, read)]
        return output, node_error_bound(node, inputs, output, passed, unit)
    # Errors of a rounding, independent and uniform: a third of the squared limit each.
    deviation = np.sqrt(carried_variance(node, np.square(read[0]) / 3))
    allowed = node_error_bound(node, inputs, output, errors, unit)
    independent = allowed + _DEVIATIONS * deviation
    repeated = _repeats(inputs[0]).reshape(-1, *[1] * (output.ndim - 1))
    if not repeated.any():
        return output, independent
    greatest = node_error_bound(node, inputs, output, [errors[0] + read[0], *errors[1:]], unit)
    return output, np.where(repeated, greatest, independent)


def _repeats(x: np.ndarray) -> np.ndarray:
    """Return (P,) in which samples most numbers occur again, so that their rounding errors agree.

    Examples are a frame and an impulse. Zeros have no error.
    """
    rows = x.reshape(len(x), -1)
    return np.array([2 * len(np.unique(row)) < np.count_nonzero(row) for row in rows], bool)
