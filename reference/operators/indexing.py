"""Operations whose indices are values: gathering, sorting, one-hot vectors."""

from __future__ import annotations

import numpy as np

from .base import REACH, Arrays, Attributes, Evaluated, Operator, Weights


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
        """See the base class: a wrong index reads any row."""
        return self._if_uncertain(at, errors[0] > 0, np.ptp(at.weights["kernel"], axis=0))

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        spread = np.square(np.ptp(at.weights["kernel"], axis=0) / unit)
        return self._if_uncertain(at, variances[0] > 0, spread)

    def _if_uncertain(self, at: Evaluated, unsure: np.ndarray, size: np.ndarray) -> np.ndarray:
        unsure = unsure.reshape(*unsure.shape, *[1] * size.ndim)
        return np.where(unsure, size, 0.0).astype(at.output.dtype)

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class: an index has no gradient."""
        return [np.zeros_like(at.inputs[0])]


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
    """The indices that sort the last axis, the greatest first, equal ones as they stand."""

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        return descending(inputs[0]).astype(inputs[0].dtype)

    def _unsure(self, at: Evaluated, reach: np.ndarray) -> np.ndarray:
        """Return whether a neighbour in the order is within both errors."""
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
        unsure = self._unsure(at, REACH * unit * np.sqrt(variances[0]))
        size = np.square(at.output.shape[-1] / unit)
        return np.where(unsure, size, 0.0).astype(at.output.dtype)

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        return [np.zeros_like(at.inputs[0])]


class OneHot(Operator):
    """A vector of size `depth` on the last axis: `on` at the index, elsewhere `off`."""

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
        return self._where(at, errors[0] > 0, abs(at.attributes["on"] - at.attributes["off"]))

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        size = (at.attributes["on"] - at.attributes["off"]) / unit
        return self._where(at, variances[0] > 0, size**2)

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        return [np.zeros_like(at.inputs[0])]


def descending(x: np.ndarray) -> np.ndarray:
    """Return the indices that sort the last axis, the greatest first."""
    return np.asarray(np.argsort(-x, axis=-1, kind="stable"))


INDEXING: dict[str, Operator] = {
    "gather": Gather(),
    "sort": Sort(),
    "argsort": ArgSort(),
    "one_hot": OneHot(),
}
