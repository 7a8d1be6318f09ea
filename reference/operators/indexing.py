"""Operations with computed indices: gathering, sorting, one-hot vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import Arrays, Attributes, Evaluated, Operator, Weights, greatest_error

# An index is a whole number; it changes only if its error is at least one half.
_NEXT = 0.5


class Gather(Operator):
    """Rows of a constant table by index."""

    def _rows(self, indices: np.ndarray, table: np.ndarray) -> np.ndarray:
        """Return the rows of whole indices, zero outside the table."""
        whole = np.nan_to_num(indices, posinf=-1.0, neginf=-1.0).astype(np.int64)
        known = (whole >= 0) & (whole < len(table))
        rows = table[np.where(known, whole, 0)]
        return rows * known.reshape(*known.shape, *[1] * (rows.ndim - known.ndim))

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        return self._rows(inputs[0], weights["kernel"])

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """See the base class: a wrong index may read any row."""
        return self._if_uncertain(at, errors[0] >= _NEXT, np.ptp(at.weights["kernel"], axis=0))

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        spread = np.square(np.ptp(at.weights["kernel"], axis=0) / unit)
        unsure = greatest_error(variances[0], unit) >= _NEXT
        return self._if_uncertain(at, unsure, spread)

    def _if_uncertain(self, at: Evaluated, unsure: np.ndarray, size: np.ndarray) -> np.ndarray:
        unsure = unsure.reshape(*unsure.shape, *[1] * size.ndim)
        return np.where(unsure, size, 0.0).astype(at.output.dtype)

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class: an index has no gradient."""
        return [np.zeros_like(at.inputs[0])]


class Pick(Operator):
    """Elements of the first input along an axis, at the indices given by the second input."""

    def _picked(self, table: np.ndarray, at: Arrays, attributes: Attributes) -> np.ndarray:
        """Return (N, *B, *I, *R) of (N, *B, A, *R) and indices (N, *B, *I)."""
        axis, indices = attributes["axis"], at[1]
        lead = int(np.prod(table.shape[:axis]))
        flat = np.nan_to_num(indices.reshape(lead, -1, 1)).astype(np.int64)
        rows = table.reshape(lead, table.shape[axis], -1)
        found = np.take_along_axis(rows, np.clip(flat, 0, rows.shape[1] - 1), axis=1)
        return found.reshape(*indices.shape, *table.shape[axis + 1 :])

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        return self._picked(inputs[0], inputs, attributes)

    def _passed(self, at: Evaluated, errors: np.ndarray, unsure: np.ndarray, size: float) -> Any:
        table, axis = at.inputs[0], at.attributes["axis"]
        spread = np.ptp(table, axis=axis, keepdims=True) * size
        spread = self._picked(np.broadcast_to(spread, table.shape), at.inputs, at.attributes)
        unsure = unsure.reshape(*unsure.shape, *[1] * (at.output.ndim - unsure.ndim))
        passed = self._picked(errors, at.inputs, at.attributes)
        return passed, np.where(unsure, spread, 0.0).astype(at.output.dtype)

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """See the base class: a wrong index may read any element."""
        passed, spread = self._passed(at, errors[0], errors[1] >= _NEXT, 1.0)
        return np.asarray(passed + spread)

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        unsure = greatest_error(variances[1], unit) >= _NEXT
        passed, spread = self._passed(at, variances[0], unsure, 1 / unit)
        return np.asarray(passed + np.square(spread))

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class: an index has no gradient."""
        places = np.arange(at.inputs[0].size).reshape(at.inputs[0].shape)
        read = self._picked(places, at.inputs, at.attributes)
        found = np.bincount(read.ravel(), gradient.ravel(), at.inputs[0].size)
        return [found.reshape(at.inputs[0].shape), np.zeros_like(at.inputs[1])]


class Sort(Operator):
    """The elements along the last axis, the greatest first."""

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        return -np.sort(-inputs[0], axis=-1)

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """The k-th greatest moves by no more than the greatest error."""
        return np.broadcast_to(errors[0].max(axis=-1, keepdims=True), at.output.shape)

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        return np.broadcast_to(variances[0].max(axis=-1, keepdims=True), at.output.shape)

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        found = np.zeros_like(at.inputs[0])
        np.put_along_axis(found, descending(at.inputs[0]), gradient, axis=-1)
        return [found]


class ArgSort(Operator):
    """The indices that sort the last axis, the greatest first; ties keep their order."""

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        return descending(inputs[0]).astype(inputs[0].dtype)

    def _unsure(self, at: Evaluated, reach: np.ndarray) -> np.ndarray:
        """Return whether a neighbour in the order is within the sum of both errors."""
        order = at.output.astype(int)
        x, r = (np.take_along_axis(array, order, -1) for array in (at.inputs[0], reach))
        both = r[..., 1:] + r[..., :-1]
        near = (both > 0) & (x[..., :-1] - x[..., 1:] <= both)
        found = np.zeros(x.shape, bool)
        found[..., 1:] |= near
        found[..., :-1] |= near
        return found

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        return np.where(self._unsure(at, errors[0]), at.output.shape[-1] - 1.0, 0.0)

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        unsure = self._unsure(at, greatest_error(variances[0], unit))
        size = np.square(at.output.shape[-1] / unit)
        return np.where(unsure, size, 0.0).astype(at.output.dtype)

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        return [np.zeros_like(at.inputs[0])]


class OneHot(Operator):
    """A vector of size `depth` on a new last axis: `on` at the index, `off` elsewhere."""

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        hit = np.asarray(inputs[0][..., None] == np.arange(attributes["depth"]))
        found = np.where(hit, attributes["on"], attributes["off"])
        return np.asarray(found, inputs[0].dtype)

    def _where(self, at: Evaluated, unsure: np.ndarray, size: float) -> np.ndarray:
        found = np.where(unsure[..., None], size, 0.0).astype(at.output.dtype)
        return np.broadcast_to(found, at.output.shape)

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        return self._where(at, errors[0] >= _NEXT, abs(at.attributes["on"] - at.attributes["off"]))

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        size = (at.attributes["on"] - at.attributes["off"]) / unit
        return self._where(at, greatest_error(variances[0], unit) >= _NEXT, size**2)

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        return [np.zeros_like(at.inputs[0])]


def descending(x: np.ndarray) -> np.ndarray:
    """Return the indices that sort the last axis, the greatest first; ties keep their order."""
    return np.asarray(np.argsort(-x, axis=-1, kind="stable"))


INDEXING: dict[str, Operator] = {
    "gather": Gather(),
    "pick": Pick(),
    "sort": Sort(),
    "argsort": ArgSort(),
    "one_hot": OneHot(),
}
