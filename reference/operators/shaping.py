"""Operations that move values without computing: an input's error moves along with it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .base import ROUNDING, Arrays, Attributes, Operator, Weights

Move = Callable[[np.ndarray, Attributes], np.ndarray]


def _moved(move: Move) -> Operator:
    """Return the operator of a move of one value."""

    def evaluate(inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
        return move(inputs[0], attributes)

    def error(
        inputs: Arrays,
        weights: Weights,
        attributes: Attributes,
        output: np.ndarray,
        errors: Arrays,
        unit: float,
    ) -> np.ndarray:
        return move(errors[0], attributes)

    def variance(
        inputs: Arrays,
        weights: Weights,
        attributes: Attributes,
        output: np.ndarray,
        variances: Arrays,
        unit: float,
    ) -> np.ndarray:
        return move(variances[0], attributes)

    return Operator(evaluate, error, variance)


def _spatial_start(attributes: Attributes) -> int:
    return 2 if attributes.get("data_format") == "channels_first" else 1


def _pad(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    pads = [(0, 0)] * x.ndim
    for axis, amounts in enumerate(attributes["padding"], _spatial_start(attributes)):
        pads[axis] = (amounts[0], amounts[1])
    return np.pad(x, pads)


def _crop(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    cut = [slice(None)] * x.ndim
    for axis, (before, after) in enumerate(attributes["cropping"], _spatial_start(attributes)):
        cut[axis] = slice(before, x.shape[axis] - after)
    return x[tuple(cut)]


def _flatten(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    if attributes.get("data_format") == "channels_first" and x.ndim > 2:
        x = np.moveaxis(x, 1, -1)
    return x.reshape(len(x), -1)


def _nearest(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    for axis, times in enumerate(attributes["size"], _spatial_start(attributes)):
        x = np.repeat(x, times, axis=axis)
    return x


def _bilinear(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    """Interpolate with half-pixel centres, as tf.image.resize and Keras do."""
    for axis, times in enumerate(attributes["size"], _spatial_start(attributes)):
        size = x.shape[axis]
        place = np.clip((np.arange(size * times) + 0.5) / times - 0.5, 0, size - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, size - 1)
        part = (
            (place - low).astype(x.dtype).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        )
        x = np.take(x, low, axis) * (1 - part) + np.take(x, high, axis) * part
    return x


def _bilinear_error(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    errors: Arrays,
    unit: float,
) -> np.ndarray:
    """Per axis: the place, its complement, two products and a sum are rounded."""
    size = _bilinear(np.abs(inputs[0]) + errors[0], attributes)
    return np.asarray(_bilinear(errors[0], attributes) + 5 * len(attributes["size"]) * unit * size)


def _bilinear_variance(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    variances: Arrays,
    unit: float,
) -> np.ndarray:
    return np.asarray(_bilinear(variances[0], attributes) + 2 * ROUNDING * np.square(output))


def _concatenate(inputs: Arrays, weights: Weights, attributes: Attributes) -> np.ndarray:
    return np.concatenate(inputs, axis=attributes["axis"])


def _concatenate_error(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    errors: Arrays,
    unit: float,
) -> np.ndarray:
    return np.concatenate(errors, axis=attributes["axis"])


def _concatenate_variance(
    inputs: Arrays,
    weights: Weights,
    attributes: Attributes,
    output: np.ndarray,
    variances: Arrays,
    unit: float,
) -> np.ndarray:
    return np.concatenate(variances, axis=attributes["axis"])


SHAPING = {
    "identity": _moved(lambda x, a: x),
    "pad": _moved(_pad),
    "crop": _moved(_crop),
    "flatten": _moved(_flatten),
    "reshape": _moved(lambda x, a: x.reshape(len(x), *a["target_shape"])),
    "permute": _moved(lambda x, a: np.transpose(x, a["axes"])),
    "repeat": _moved(lambda x, a: np.repeat(x[:, None], a["times"], axis=1)),
    "upsample_nearest": _moved(_nearest),
    "upsample_bilinear": Operator(
        lambda i, w, a: _bilinear(i[0], a), _bilinear_error, _bilinear_variance
    ),
    "concatenate": Operator(_concatenate, _concatenate_error, _concatenate_variance),
}
