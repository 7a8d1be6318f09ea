"""Operations that move values without computing, and move the errors of inputs likewise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..rounding.arithmetic import Finish
from .base import ROUNDING, Arrays, Attributes, Evaluated, Integers, Operator, Weights, gamma

Move = Callable[[Arrays, Weights, Attributes], np.ndarray]


class Moves(Operator):
    """A rearrangement of the elements of its inputs, with copies and zeros.

    Args:
        move: The rearrangement; it is applied to values, errors, variances and positions alike.
    """

    def __init__(self, move: Move) -> None:
        self._move = move

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        return self._move(inputs, weights, attributes)

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        return self._of_errors(at, errors)

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        return self._of_errors(at, variances)

    def _of_errors(self, at: Evaluated, errors: Arrays) -> np.ndarray:
        """Move errors; padding has none."""
        return self._move(errors, at.weights, {**at.attributes, "value": 0.0})

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """Add each element's gradient at the position from which the element was read."""
        ends = np.cumsum([0, *[x[0].size for x in at.inputs]])
        # Positions within a sample are counted from one; zero marks padding.
        places = [
            np.arange(start + 1, start + 1 + x[0].size, dtype=np.int64).reshape(1, *x.shape[1:])
            for start, x in zip(ends, at.inputs)
        ]
        read = self._of_errors(at, places).ravel().astype(np.int64)
        found = np.stack(
            [np.bincount(read, row.ravel(), int(ends[-1]) + 1)[1:] for row in gradient]
        )
        return [
            found[:, start:end].reshape(x.shape) for start, end, x in zip(ends, ends[1:], at.inputs)
        ]


def _spatial_start(attributes: Attributes) -> int:
    return 2 if attributes.get("data_format") == "channels_first" else 1


def _pad(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    pads = [(0, 0)] * x.ndim
    for axis, amounts in enumerate(attributes["padding"], _spatial_start(attributes)):
        pads[axis] = (amounts[0], amounts[1])
    mode = attributes.get("mode", "constant")
    if mode == "constant":
        return np.pad(x, pads, constant_values=attributes.get("value", 0.0))
    return np.pad(x, pads, mode=mode)


def _crop(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    cut = [slice(None)] * x.ndim
    for axis, (before, after) in enumerate(attributes["cropping"], _spatial_start(attributes)):
        cut[axis] = slice(before, x.shape[axis] - after)
    return x[tuple(cut)]


def _slice(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    """Cut [start, stop, step] from every axis but that of the samples."""
    return x[(slice(None), *(slice(*cut) for cut in attributes["slices"]))]


def _flatten(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    if attributes.get("data_format") == "channels_first" and x.ndim > 2:
        x = np.moveaxis(x, 1, -1)
    return x.reshape(len(x), -1)


def _nearest(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    for axis, times in enumerate(attributes["size"], _spatial_start(attributes)):
        x = np.repeat(x, times, axis=axis)
    return x


def _take(inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
    return np.take(inputs[0], attributes["indices"], attributes["axis"])


def _rearrange(inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
    """Read each element from a position of the flattened sample, from one; 0 stands for padding."""
    flat = inputs[0].reshape(len(inputs[0]), -1)
    places = weights["places"].astype(np.int64)
    found = np.take(flat, np.maximum(places - 1, 0).ravel(), axis=1)
    return np.where(places > 0, found.reshape(-1, *places.shape), np.zeros(1, flat.dtype))


def _constant(inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
    """A constant for each sample of its input."""
    constant = weights["constant"]
    return np.broadcast_to(constant, (len(inputs[0]), *constant.shape))


class Constant(Moves):
    """A constant, repeated for each sample of an input; the input's values are not used."""

    def __init__(self) -> None:
        super().__init__(_constant)

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        return [np.zeros_like(x) for x in at.inputs]

    def _of_errors(self, at: Evaluated, errors: Arrays) -> np.ndarray:
        return np.zeros_like(at.output)


def _slopes(matrix: np.ndarray) -> np.ndarray:
    """Return the matrix of the image's slopes at the places where a matrix interpolates it.

    Between two neighbours the slope is their difference. Other interpolations have that of the
    matrix from row to row.
    """
    rows, size = matrix.shape
    if min(rows, size) == 1:
        return 0 * matrix
    if (matrix != 0).sum(axis=1).max() > 2:
        slopes: np.ndarray = np.gradient(matrix, axis=0) * (rows / size)
        return slopes
    left = np.minimum(np.argmax(matrix != 0, axis=1), size - 2)
    differences = np.eye(size, k=1) - np.eye(size)
    return differences[left].astype(matrix.dtype)


class Resize(Operator):
    """A product with one constant matrix for each axis that is resized, (out, in).

    Interpolations of images are such products: bilinear, bicubic, by area.
    """

    def _matrices(self, weights: Weights, attributes: Attributes) -> list[tuple[int, np.ndarray]]:
        return [(axis, weights[f"matrix_{axis}"]) for axis in attributes["axes"]]

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        x = inputs[0]
        for axis, matrix in self._matrices(weights, attributes):
            x = np.moveaxis(np.moveaxis(x, axis, -1) @ matrix.T, -1, axis)
        return x

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """See the base class; the bound is doubled, as kernels compute the factors in float32."""
        factors = {role: np.abs(matrix) for role, matrix in at.weights.items()}
        taps = sum(int((matrix != 0).sum(axis=1).max()) for matrix in factors.values())
        passed = self.evaluate(errors, factors, at.attributes)
        size = self.evaluate([np.abs(at.inputs[0]) + errors[0]], factors, at.attributes)
        peak = [np.broadcast_to(self._peak(at), at.inputs[0].shape)]
        places = self.evaluate(peak, factors, at.attributes)
        # Rounding a position of interpolation has an error relative to the axis' length.
        length = max(max(matrix.shape) for matrix in factors.values())
        return np.asarray(passed + 2 * gamma(taps + 4, unit) * size + length * unit * places)

    def _peak(self, at: Evaluated) -> np.ndarray:
        axes = tuple(at.attributes["axes"])
        return np.abs(at.inputs[0]).max(axis=axes, keepdims=True)

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """See the base class: products, and the positions that a kernel computes in float32."""
        squares = {role: np.square(matrix) for role, matrix in at.weights.items()}
        passed = self.evaluate(variances, squares, at.attributes)
        own = self.evaluate([np.square(at.inputs[0])], squares, at.attributes)
        return np.asarray(passed + 4 * ROUNDING * (own + np.square(at.output)) + self._placed(at))

    def _placed(self, at: Evaluated) -> np.ndarray:
        """Return the variance from rounding positions, in units of the unit roundoff squared.

        A position in [k, k + 1) is computed by a product and a difference of numbers up to k + 1,
        with an error of up to 2 (k + 1). It is multiplied by the slope of the image there.
        """
        found = np.zeros_like(at.output)
        axes = at.attributes["axes"]
        for axis, matrix in self._matrices(at.weights, at.attributes):
            rows, size = matrix.shape
            slope = _slopes(matrix)
            error = 2 * np.arange(1, rows + 1) * (size / rows)
            moved = {f"matrix_{a}": at.weights[f"matrix_{a}"] for a in axes}
            moved[f"matrix_{axis}"] = (slope * error[:, None]).astype(matrix.dtype)
            found += ROUNDING * np.square(self.evaluate(at.inputs, moved, at.attributes))
        return found

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        turned = {role: matrix.T for role, matrix in at.weights.items()}
        return [self.evaluate([gradient], turned, at.attributes)]

    def integer(self, at: Integers) -> Finish:
        """See the base class; bilinear over the two spatial axes."""
        x = at.operands[0]
        x.same_steps(at.output)
        how = (at.attributes["sizes"], at.attributes["align_corners"], at.attributes["half_pixel"])
        return lambda rule: rule.resized(x.integers, *how)


class Bilinear(Resize):
    """Enlarges by integer factors with half-pixel centres, as tf.image.resize and Keras do."""

    def evaluate(self, inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        """See the base class."""
        matrices, axes = self._of_factors(inputs[0], weights, attributes)
        return super().evaluate(inputs, matrices, axes)

    def _of_factors(
        self, x: np.ndarray, weights: Weights, attributes: Attributes
    ) -> tuple[Weights, Attributes]:
        if "axes" in attributes:
            return weights, attributes
        first = _spatial_start(attributes)
        axes = range(first, first + len(attributes["size"]))
        matrices = {
            f"matrix_{axis}": _interpolation(x.shape[axis], times).astype(x.dtype)
            for axis, times in zip(axes, attributes["size"])
        }
        return matrices, {"axes": list(axes)}

    def _explicit(self, at: Evaluated) -> Evaluated:
        matrices, axes = self._of_factors(at.inputs[0], at.weights, at.attributes)
        return Evaluated(at.inputs, matrices, axes, at.output)

    def error_bound(self, at: Evaluated, errors: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        return super().error_bound(self._explicit(at), errors, unit)

    def variance(self, at: Evaluated, variances: Arrays, unit: float) -> np.ndarray:
        """See the base class."""
        return super().variance(self._explicit(at), variances, unit)

    def gradient(self, at: Evaluated, gradient: np.ndarray) -> Arrays:
        """See the base class."""
        return super().gradient(self._explicit(at), gradient)


def _interpolation(size: int, times: int) -> np.ndarray:
    """Return the (size · times, size) matrix of bilinear interpolation."""
    place = np.clip((np.arange(size * times) + 0.5) / times - 0.5, 0, size - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, size - 1)
    matrix = np.zeros((size * times, size))
    rows = np.arange(size * times)
    np.add.at(matrix, (rows, low), 1 - (place - low))
    np.add.at(matrix, (rows, high), place - low)
    return matrix


SHAPING: dict[str, Operator] = {
    "identity": Moves(lambda i, w, a: i[0]),
    "pad": Moves(lambda i, w, a: _pad(i[0], a)),
    "crop": Moves(lambda i, w, a: _crop(i[0], a)),
    "slice": Moves(lambda i, w, a: _slice(i[0], a)),
    "flatten": Moves(lambda i, w, a: _flatten(i[0], a)),
    "reshape": Moves(lambda i, w, a: i[0].reshape(len(i[0]), *a["target_shape"])),
    "permute": Moves(lambda i, w, a: np.transpose(i[0], a["axes"])),
    "repeat": Moves(lambda i, w, a: np.repeat(i[0][:, None], a["times"], axis=1)),
    "tile": Moves(lambda i, w, a: np.tile(i[0], (1, *a["multiples"]))),
    "broadcast": Moves(lambda i, w, a: np.broadcast_to(i[0], (len(i[0]), *a["target_shape"]))),
    "take": Moves(_take),
    "rearrange": Moves(_rearrange),
    "concatenate": Moves(lambda i, w, a: np.concatenate(i, axis=a["axis"])),
    "upsample_nearest": Moves(lambda i, w, a: _nearest(i[0], a)),
    "upsample_bilinear": Bilinear(),
    "resize": Resize(),
    "constant": Constant(),
}
